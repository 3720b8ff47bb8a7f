"""Training losses: each a function of `Outputs` to a scalar, used on neurons and on whole models alike.

`NLL` is the mean over examples of the mean negative log-likelihood per answer token; `dlogp` is
`logp - logp_start`, summed over answer tokens, the start model being the one before training; `f` and `r` are
the forget and the retain batch. Log-likelihoods of the answer, never raw logits, and never prompt or padding.
Another loss is another function; its settings are bound with `functools.partial`.
"""

from neuronforget.losses.ascent import ga, grad_diff, kl_min, learn, satimp, wga
from neuronforget.losses.hidden import rmu
from neuronforget.losses.naming import identity, name_of, settings_of
from neuronforget.losses.outputs import Answer, Answered, Loss, Outputs, Passes
from neuronforget.losses.parts import asks_for, names
from neuronforget.losses.preference import altpo, dpo, ga_rt, idk_ap, npo, rt, simnpo
from neuronforget.losses.targets import ce_u, elm, me_gd, pdu, undial, whp

__all__ = [
    "Answer", "Answered", "Loss", "Outputs", "Passes", "altpo", "asks_for", "ce_u", "dpo", "elm", "ga", "ga_rt",
    "grad_diff", "identity", "idk_ap", "kl_min", "learn", "me_gd", "name_of", "names", "npo", "pdu", "rmu", "rt",
    "satimp", "settings_of", "simnpo", "undial", "wga", "whp",
]  # fmt: skip
