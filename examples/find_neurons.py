# %% [markdown]
# # Which neurons carry the facts, and how would one know?
#
# A score ranks neurons; a rule cuts the ranking. Here both are held against the truth, which is known: the facts were
# trained into chosen neurons of a small model. Then come the questions that can be asked of any model. Ten seconds on
# one core, once the model is cached (half a minute the first time).

# %%
from functools import partial

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import knockout, localisation, nll

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=False)
lm, forget, retain, truth = bed.lm, bed.forget, bed.retain, bed.truth
print(bed, forget.examples[0], sep="\n")

# %% [markdown]
# ## One recording, several scores
#
# A recording is one pass over a corpus. Scores are functions of it, so the second one costs nothing.

# %%
moments = [nf.record(lm, corpus, per_example=True, progress=False) for corpus in (forget, retain)]
found = {s.__name__: s(*moments) for s in (nf.scores.grad_x_act, nf.scores.fisher, nf.scores.activation_gap)}
for scores in found.values():
    print(scores)

# %% [markdown]
# ## Against the truth
#
# AUROC: the chance that a true neuron is ranked above another (0.5 is chance). Recall: the share of the true neurons in
# a top list as long as theirs; luck is what 95% of random lists stay below. Spearman: the rank correlation with the
# *exact* effect of every neuron, ablated alone; it needs no truth, and can be had of any model for a shortlist of
# neurons.

# %%
exact = nf.attribute(lm, forget, score=nf.scores.exact, progress=False)
print(f"{'score':<15} {'AUROC':>6} {'95%':>14} {'recall':>7} {'luck':>5} {'Spearman':>9}")
for name, scores in (found | {"exact": exact}).items():
    area, low, high = localisation.auroc(scores, truth)
    row = localisation.recall_curve(scores, truth, [len(truth)])[0]
    print(f"{name:<15} {area:>6.2f} {f'[{low:.2f}, {high:.2f}]':>14} {row['recall']:>7.2f} {row['high']:>5.2f}", end="")
    print(f" {localisation.spearman(scores, exact)[0]:>9.2f}")

# %% [markdown]
# ## How many? As many as retain can bear
#
# `retain_budget` takes the neurons of the largest predicted forget effect whose predicted retain damage stays within
# 0.05 nats a token. What the set really does is measured below: effects of single neurons do not add up exactly.

# %%
effects = [nf.scores.grad_x_act(m) for m in moments]
neurons = nf.select.retain_budget(*effects, epsilon=0.05, k=0.1)
print(neurons, f"predicted damage {neurons.info['damage']:.3f}, recall {neurons.recall(truth):.2f}", sep="\n")

# %% [markdown]
# ## Would other examples have given the same set?

# %%
print(nf.select.stability(*moments, partial(nf.select.per_layer, k=0.1), resamples=20, progress=False))

# %% [markdown]
# ## Does it do more than other neurons do?
#
# The rise of the loss when the set is ablated, beside random sets of as many neurons: anywhere (`count`), of each layer
# (`layer`), of each layer with write vectors of like norm (`norm`). Where the interval
# holds zero, one more random set might do as much; what lies beyond is due to the choice.


# %%
def loss_on(corpus):
    return lambda lm: measure(lm, corpus, [nll])["nll"]


norms = nf.recording.write_norms(lm)
for corpus in (forget, retain):
    print(f"{corpus.name}: untouched {loss_on(corpus)(lm).mean():.2f} nats a token")
    for row in knockout.selected_minus_random(lm, neurons, loss_on(corpus), norms=norms, progress=False):
        gap = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        print(f"  {row['control']:<6} found {row['selected']:.2f}, random {row['random']:.2f}, difference {gap}")

# %% [markdown]
# ## A picture
#
# Every neuron of each layer; selected ones and true ones are marked.

# %%
figure = nf.figures.attribution_map(found["grad_x_act"], neurons, truth)
figure.write_html("neurons.html")
figure

# %% [markdown]
# ## What to conclude
#
# On a model of one's own there is no truth to look up. Three of these tables can still be made: agreement with `exact`
# on a shortlist, stability, controls. A set that passes all three *can be used* to remove the facts. It need not be the
# only such set, and what an edit of it leaves behind is the question of [the audit](audit_an_edit.ipynb).
