"""Find the neurons that hold ten facts, erase them, and compare with random neurons. About half a minute on CPU."""

# %% A small model whose knowledge is known
from pathlib import Path

import neuronforget as nf

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape)

# %% Which neurons carry the facts?
scores = nf.attribute(bed.lm, bed.forget, bed.retain, score=nf.scores.grad_x_act)
neurons = nf.select.per_layer(scores, 0.1)
print(scores, neurons, f"recall of the true neurons: {neurons.recall(bed.truth):.2f}", sep="\n")

# %% Erase, with a control
edits = {
    "ablate": nf.erase.ablate(bed.lm, neurons),
    "ablate@random 0": nf.erase.ablate(bed.lm, neurons.random_like(seed=0)),
    "npo@neurons": nf.erase.finetune(bed.lm, bed.forget, bed.retain, loss=nf.losses.npo, neurons=neurons, steps=20),
}

# %% What did that do?
results = nf.evaluate(bed.lm, edits, bed.forget, bed.retain, gold=bed.gold)
frame = results.frame.query("metric == 'exact_match' and point == 'full'")
print(frame.pivot_table(index="edit", columns="corpus", values="value").round(3).to_string())

# %% A picture
out = Path("attribution-map.html")
nf.figures.attribution_map(scores, neurons, bed.truth).write_html(out)
print(f"written to {out}")
