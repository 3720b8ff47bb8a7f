# %% [markdown]
# # Erased, or only hidden?
#
# Two edits after which a model no longer answers: the found neurons are ablated, or the whole model is trained not to
# answer (NPO). The audit asks each in other ways, beside a *gold twin* that never knew: what the twin shows too is no
# knowledge. Fifteen seconds on one core once the model is cached.

# %%
import neuronforget as nf
from neuronforget.reporting.audit_page import audit_report

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=False)
lm, forget, retain = bed.lm, bed.forget, bed.retain
neurons = nf.select.per_layer(nf.attribute(lm, forget, retain, progress=False), 0.15)
edits = {
    "ablate": nf.erase.ablate(lm, neurons),
    "npo": nf.erase.finetune(lm, forget, retain, loss=nf.losses.npo, progress=False),
}

# %% [markdown]
# ## Asked plainly

# %%
results = nf.evaluate(lm, edits, forget, retain, gold=bed.gold, strengths=(), damage=None, progress=False)
print(results.table().round(3))

# %% [markdown]
# ## Asked in every way
#
# Other phrasings and prompts, a choice between right and wrong answers, coarser weights, half of the facts taught
# again, the answer read off every block, states put back into the untouched model. The verdict is the worst finding:
#
# - *not erased*: answered when asked;
# - *hidden*: not answered when asked, but found by another probe;
# - *destroyed*: much of what was to be kept is gone too, so that nothing is said of erasure;
# - *suppressed*: the right answer is avoided more than by a model that never knew. To avoid it takes the fact;
# - *gone, as far as asked*: nothing found. It says nothing of probes that were not made, and with so few examples a
#   check may come out *unclear*.
#
# What is kept in the folder `measured` is not measured again: the untouched model and the twin are asked once for both
# edits, and a killed audit goes on.

# %%
audits = {}
for name, edit in edits.items():
    audits[name] = nf.audit(lm, edit, forget, retain, gold=bed.gold, kept="measured", progress=False)
    audit_report(audits[name], f"audit-{name}.html", title=f"{name}: erased, or only hidden?")
    print(f"## {name}", audits[name], "", sep="\n")

# %% [markdown]
# ## Every check of both, as a picture
#
# Each line leads from the gold twin to the untouched model; an erased fact lies at the twin. The pages written above
# have these, with the curves of relearning and of every block.

# %%
nf.figures.checks(audits["ablate"].checks)

# %%
nf.figures.checks(audits["npo"].checks)
