"""Record: one streaming pass over a corpus, and what is kept of one that was killed."""

from neuronforget.recording.batches import Positions, record_batch
from neuronforget.recording.recording import record, write_norms
from neuronforget.recording.unfinished import Unfinished

__all__ = ["Positions", "Unfinished", "record", "record_batch", "write_norms"]
