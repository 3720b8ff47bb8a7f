# %% [markdown]
# # Which method erases, and at what price?
#
# Five edits of one small model, each with what it has to be held against: the untouched model, a *gold twin* that never
# saw the facts, and the same operator on random neurons. Fifteen seconds on one core once the model is cached.

# %%
import neuronforget as nf
from neuronforget.evaluation.ranking import ranked

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=False)
lm, forget, retain = bed.lm, bed.forget, bed.retain
scores = nf.attribute(lm, forget, retain, progress=False)
neurons = nf.select.per_layer(scores, 0.1)
random = neurons.random_like(seed=0)

# %% [markdown]
# ## The edits
#
# An edit of random neurons is a control for the one it is named after: same operator, as many neurons of each layer.
# The report holds `ablate@random` against `ablate`, `npo@random` against `npo@neurons`.

# %%
npo = {"loss": nf.losses.npo, "steps": 20, "progress": False}
edits = {
    "ablate": nf.erase.ablate(lm, neurons),
    "ablate@random": nf.erase.ablate(lm, random),
    "npo@neurons": nf.erase.finetune(lm, forget, retain, neurons=neurons, **npo),
    "npo@random": nf.erase.finetune(lm, forget, retain, neurons=random, **npo),
    "npo": nf.erase.finetune(lm, forget, retain, **npo),
}
for name, edit in edits.items():
    print(f"{name}: {edit}")

# %% [markdown]
# ## At full strength
#
# An erasure should come to the gold twin's row, not to 0: who never knew guesses right now and then. Where the control
# does as well as the edit it belongs to, it is the training that erases, and not the choice of neurons.

# %%
results = nf.evaluate(lm, edits, forget, retain, gold=bed.gold, damage=0.05, progress=False)
print(results.table().round(3))

# %% [markdown]
# ## At matched damage
#
# A stronger push erases more and breaks more, whatever the method. So each edit is weakened until the retain loss has
# risen by 0.05 nats a token; only here can two rows be compared.

# %%
for metric in ("exact_match", "probability"):
    print(metric, results.table(metric, point="matched").round(3), "", sep="\n")

# %% [markdown]
# ## Who is best?
#
# A difference counts where it holds over subjects: the facts of one person stand and fall together. Two forgotten
# people are too few for any verdict, and the test says so. A comparison that is to be believed needs five at the very
# least.

# %%
for place in ranked(results, "forget", "probability", "matched"):
    verdict = "best, or not told apart from it" if place.tied() else "worse than the best"
    print(f"{place.edit:<15} {place.value:.3f}  {verdict}")

# %% [markdown]
# ## The whole frontier
#
# Every edit at several strengths: down is more forgotten, right is more kept.

# %%
nf.report(results, "report.html", scores=scores, neurons=neurons, truth=bed.truth)
nf.figures.frontier(results, "probability", "probability")
