"""Context parallelism: one sequence over the ranks of a group, each of which reads a stretch of it.

`api` is what callers use; `scan` and `window` are what layers call on a stretch; `exchange` is a
rank's place among the others and the messages between them.
"""

from hgrn.ops.packing import next_labels
from hgrn.parallel.api import (
    context_scan,
    last_state,
    local_cu_seqlens,
    local_stretch,
    parallelize,
    whole_sequences,
)

__all__ = [
    "context_scan",
    "last_state",
    "local_cu_seqlens",
    "local_stretch",
    "next_labels",
    "parallelize",
    "whole_sequences",
]
