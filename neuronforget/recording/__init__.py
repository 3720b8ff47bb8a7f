"""Record: one streaming pass over a corpus, and what is kept of one that was killed."""

from neuronforget.recording.recording import Positions, record, record_batch, write_norms
from neuronforget.recording.unfinished import Unfinished

__all__ = ["Positions", "Unfinished", "record", "record_batch", "write_norms"]
