"""Edit: what changes in a model, how it is put on and taken off, checked, saved and exported."""

from neuronforget.edits.certificates import Certificate
from neuronforget.edits.changes import Change
from neuronforget.edits.edits import Edit
from neuronforget.edits.guarding import Guard

__all__ = ["Certificate", "Change", "Edit", "Guard"]
