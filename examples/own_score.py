"""Two scores of one's own, beside a built-in one, on a model whose true neurons are known. Half a minute on CPU.

On the command line, from the folder of this file: `neuronforget attribute ... --score own_score:gap_x_grad`.
"""

# %% From moments: what the forget loss would do if the neuron's activation moved to its mean on retain (first order)
from pathlib import Path

import torch

import neuronforget as nf
from neuronforget import LM, Corpus, Moments, Scores
from neuronforget.taps import TorchHooks


def gap_x_grad(forget: Moments, retain: Moments) -> Scores:
    values = forget["u"] / forget.examples * (retain["mean"] - forget["mean"])
    return Scores(values, "gap_x_grad", "positive: the forget loss rises", forget.layers)


# %% From the model itself: how much more active the neuron is where the answer is about to begin
@nf.scores.runs_model
def before_answer(lm: LM, forget: Corpus, retain: Corpus, *, batch_size: int, progress: bool) -> Scores:
    tap, means = TorchHooks(lm), []
    for corpus in (forget, retain):
        found = []
        for batch in lm.batches(corpus, batch_size):
            at = batch.answer_mask.int().argmax(1) - 1  # the position that predicts the first answer token
            with torch.no_grad():
                acts = tap(batch.inputs).acts
            found.append(torch.stack([acts[site.layer][range(len(at)), at] for site in lm.sites], 1))
        means.append(torch.cat(found).double().mean(0).cpu())
    layers = tuple(site.layer for site in lm.sites)
    return Scores(means[0] - means[1], "before_answer", "positive: more active on forget", layers)


# %% Which finds the true neurons?
if __name__ == "__main__":
    shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
    bed = nf.testbed.people(people=20, forget_people=2, shape=shape)
    print(f"{'score':<14} {'AUROC':>6} {'95%':>14} {'recall':>7}   (recall at {len(bed.truth)}, as many as are true)")
    found = {}
    for score in (gap_x_grad, before_answer, nf.scores.grad_x_act):
        scores = found[score] = nf.attribute(bed.lm, bed.forget, bed.retain, score=score)
        area, low, high = nf.metrics.localisation.auroc(scores, bed.truth)
        recall = nf.metrics.localisation.recall_curve(scores, bed.truth, [len(bed.truth)])[0]["recall"]
        print(f"{scores.name:<14} {area:>6.2f} {f'[{low:.2f}, {high:.2f}]':>14} {recall:>7.2f}")
    out = Path("own-score.html")
    nf.figures.attribution_map(found[gap_x_grad], truth=bed.truth).write_html(out)
    print(f"written to {out}")
