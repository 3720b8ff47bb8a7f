"""The one training loop, when it stops, and how it goes on after a kill."""

from neuronforget.train.loop import Plan, StepLoss, draw, fit, steps
from neuronforget.train.stopping import Budget

__all__ = ["Budget", "Plan", "StepLoss", "draw", "fit", "steps"]
