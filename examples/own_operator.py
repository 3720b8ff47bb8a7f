"""Two operators of one's own, tried beside built-in ones on the neurons that were found. Half a minute on CPU.

On the command line, from the folder of this file: `neuronforget erase ... --method own_operator:share --set power=2`;
`neuronforget compare ... --operators own_operator:share memit` puts one in the table. Both record what it asks for.
"""

# %% By the statistics: what a neuron writes is kept to the share that retain has in its activity
from pathlib import Path

import torch

import neuronforget as nf


def share(
    lm: nf.LM, neurons: nf.Neurons, forget_moments: nf.Moments, retain_moments: nf.Moments, *, power: float = 1.0
) -> nf.Edit:
    forget, retain = (m["abs_sum"] / m.tokens for m in (forget_moments, retain_moments))
    return nf.erase.dampen(lm, neurons, factor=(retain / (forget + retain).clamp_min(1e-12)) ** power)


# %% By the weights: each neuron writes the mean of what its layer's other neurons write
def blend(lm: nf.LM, neurons: nf.Neurons) -> nf.Edit:
    changes = []
    for site in lm.sites:
        if (chosen := neurons.by_layer().get(site.layer)) is None:
            continue
        part, weight = site.write, lm.parameters[site.write.name].detach()
        others = torch.ones(lm.shape[1], dtype=torch.bool).index_fill_(0, chosen, False)
        before = weight.index_select(part.dim, chosen)
        mean = weight.index_select(part.dim, others.nonzero()[:, 0]).mean(part.dim, keepdim=True)
        changes.append(nf.Change(part.name, mean.expand_as(before), before, part.dim, chosen))
    return nf.Edit.build(lm, changes, method="blend", scope="neurons", neurons=len(neurons))


# %% A small model whose knowledge is known, and the neurons that carry it
if __name__ == "__main__":
    shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
    bed = nf.testbed.people(people=20, forget_people=2, shape=shape)
    moments = {name: nf.record(bed.lm, corpus) for name, corpus in (("forget", bed.forget), ("retain", bed.retain))}
    scores = nf.attribute(bed.lm, bed.forget, bed.retain, score=nf.scores.grad_x_act)
    neurons = nf.select.per_layer(scores, 0.1)

    # %% `make` gives an operator what its parameters name; random neurons are the control
    edits = {}
    for operator in (share, blend, nf.erase.ablate):
        for where, chosen in (("@found", neurons), ("@random", neurons.random_like(0))):
            edits[operator.__name__ + where] = nf.erase.make(
                operator, bed.lm, bed.forget, bed.retain, neurons=chosen, moments=moments
            )
            assert edits[operator.__name__ + where].certificate(bed.lm).holds

    # %% What did that do?
    results = nf.evaluate(bed.lm, edits, bed.forget, bed.retain, gold=bed.gold, strengths=(), damage=None)
    print(results.table().round(2))
    out = Path("own-operator.html")
    nf.figures.dots(results).write_html(out)
    print(f"written to {out}")
