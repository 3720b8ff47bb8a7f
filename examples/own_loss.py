"""A loss of one's own, beside two built-in ones, on neurons and on the whole model. Half a minute on CPU.

On the command line, from the folder of this file: `neuronforget erase ... --method finetune --loss own_loss:until`.
"""

# %% Ascend only until an answer is as unlikely as wanted; hold the retain predictions where they were
from functools import partial
from pathlib import Path

from torch import Tensor

import neuronforget as nf
from neuronforget.losses import Outputs


@nf.losses.asks_for("retain", unless_zero="alpha")
def until(outputs: Outputs, *, nats: float = 4.0, alpha: float = 1.0) -> Tensor:
    missing = (nats - outputs.forget.nlls).relu()  # of each example, per answer token
    return missing.mean() + alpha * outputs.retain.drift


# %% A small model whose knowledge is known, and the neurons that carry it
if __name__ == "__main__":
    shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
    bed = nf.testbed.people(people=20, forget_people=2, shape=shape)
    scores = nf.attribute(bed.lm, bed.forget, bed.retain, score=nf.scores.grad_x_act)
    neurons = nf.select.per_layer(scores, 0.1)

    # %% The same losses on neurons and on the whole model; settings are bound with partial
    edits = {}
    for loss in (until, nf.losses.npo, partial(nf.losses.simnpo, beta=2.5)):
        for where, chosen in (("@neurons", neurons), ("", None)):
            edits[nf.losses.name_of(loss) + where] = nf.erase.finetune(
                bed.lm, bed.forget, bed.retain, loss=loss, neurons=chosen, steps=20
            )

    # %% What did that do?
    results = nf.evaluate(bed.lm, edits, bed.forget, bed.retain, gold=bed.gold, strengths=(), damage=None)
    print(results.table("nll").round(2))
    out = Path("own-loss.html")
    nf.figures.dots(results).write_html(out)
    print(f"written to {out}")
