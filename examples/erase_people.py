# %% [markdown]
# # Find the neurons that hold what a model knows of two people, and erase it
#
# On a small model whose knowledge is known. Ten seconds on one core once the model is cached (half a minute the first
# time).

# %%
import neuronforget as nf
from neuronforget.evaluation.generation import Decoding, generate

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=False)
lm, forget, retain = bed.lm, bed.forget, bed.retain
some = forget.head(5)


def show_answers():
    answers = generate(lm, some, Decoding(max_new_tokens=8), progress=False)
    for example, answer in zip(some, answers, strict=True):
        print(f"{example.prompt} [{example.answer}] {answer.partition(' ')[0]}")


show_answers()

# %% [markdown]
# ## Which neurons carry the facts?
#
# `attribute` scores every neuron, a rule selects. Here the true neurons are known: were they found?

# %%
scores = nf.attribute(lm, forget, retain, score=nf.scores.grad_x_act, progress=False)
neurons = nf.select.per_layer(scores, 0.1)
print(scores, neurons, f"recall of the true neurons: {neurons.recall(bed.truth):.2f}", sep="\n")

# %% [markdown]
# ## Make edits
#
# An edit is made beside the model, which stays as it was. As many random neurons are the control. A training can be
# told what it may cost: the last weights are kept at which the retain loss had risen by 0.05 nats a token at most.

# %%
npo = {"loss": nf.losses.npo, "steps": 20, "progress": False}
edits = {
    "ablate": nf.erase.ablate(lm, neurons),
    "ablate@random": nf.erase.ablate(lm, neurons.random_like(seed=0)),
    "ablate, half": nf.erase.ablate(lm, neurons).scaled(0.5),
    "npo on neurons": nf.erase.finetune(lm, forget, retain, neurons=neurons, **npo),
    "npo, budget": nf.erase.finetune(lm, forget, retain, neurons=neurons, budget=0.05, **npo),
}
for name, edit in edits.items():
    print(f"{name}: {edit}")
print("npo, budget: stopped after", edits["npo, budget"].info["stopped_at"], "steps")

# %% [markdown]
# ## Put one on, and take it off
#
# The certificate compares every weight outside the edit before and after it, and all of them after it was taken off.

# %%
edit = edits["ablate"]
with edit.on(lm):
    show_answers()
for edit in edits.values():
    assert edit.certificate(lm).holds
print(edits["npo on neurons"].certificate(lm))

# %% [markdown]
# `apply` and `undo` do the same without a block, and a file keeps the edit: with the old values, so that whoever has it
# can bring back what was erased.

# %%
start = lm.digest()
edits["ablate"].save("ablate.safetensors")
again = nf.Edit.load("ablate.safetensors")
again.apply(lm)
print("edited:", lm.digest() != start)
again.undo(lm)
print("as it was, to the bit:", lm.digest() == start)

# %% [markdown]
# ## What did that do?
#
# Share of answers that are exactly right. `unseen` are phrasings that the erasure did not see; `gold` is a model that
# never knew, so its row is where an erasure should come to.

# %%
results = nf.evaluate(lm, edits, forget, retain, gold=bed.gold, strengths=(), damage=None, progress=False)
print(results.table().round(3))

# %% [markdown]
# ## A picture
#
# Every neuron of each layer; selected ones and true ones are marked.

# %%
figure = nf.figures.attribution_map(scores, neurons, bed.truth)
figure.write_html("attribution-map.html")
figure

# %% [markdown]
# Next: [more ways to find neurons, and whether they are the right ones](find_neurons.py), [methods compared at equal
# damage](compare_methods.py), [erased or only hidden?](audit_an_edit.ipynb)
