"""A metric of one's own, beside the built-in ones, on a small model and two edits of it. Half a minute on CPU."""

# %% From predictions to one number for each example: does the answer's first token lead, and by how much?
from pathlib import Path

import torch
from torch import Tensor

import neuronforget as nf
from neuronforget.metrics import Prediction


def first_margin(p: Prediction) -> Tensor:
    at = p.mask.int().argmax(1)  # the position that predicts the first answer token
    logits = p.logits[range(len(at)), at].float()
    right = p.batch.input_ids[range(len(at)), at + 1]
    own = logits.gather(1, right[:, None])[:, 0]
    others = logits.scatter(1, right[:, None], -torch.inf).amax(1)
    return own - others  # nats; NaN where the model returns NaN, which is counted and shown


# %% A small model whose knowledge is known, the neurons that carry it and as many others
if __name__ == "__main__":
    shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
    bed = nf.testbed.people(people=20, forget_people=2, shape=shape)
    scores = nf.attribute(bed.lm, bed.forget, bed.retain, score=nf.scores.grad_x_act)
    neurons = nf.select.per_layer(scores, 0.1)
    edits = {"found": nf.erase.ablate(bed.lm, neurons), "random": nf.erase.ablate(bed.lm, neurons.random_like(seed=0))}

    # %% It has intervals, paired differences, matched damage and a place in every table as the others have
    metrics = (nf.metrics.exact_match, nf.metrics.nll, first_margin)
    results = nf.evaluate(bed.lm, edits, bed.forget, bed.retain, gold=bed.gold, metrics=metrics)
    print(results.table("first_margin").round(2))
    gap = results.paired("found", "random", "forget", "first_margin")
    print("found less random, forget: {:.2f} [{:.2f}, {:.2f}]".format(*gap))
    out = Path("own-metric.html")
    nf.figures.dots(results, "first_margin").write_html(out)
    print(f"written to {out}")
