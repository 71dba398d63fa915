"""Draws batches of text. The next batch depends on the position alone: (epoch, index, seed).

Shapes: B sequences of a step (over all ranks), T block size, R rows of this rank or micro-batch.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from hgrn.data.position import Positioned, share_of
from hgrn.data.shuffle import hashed, shuffled
from hgrn.data.tokens import TokenFile
from hgrn.errors import UserError

IGNORED = -100

Mode = Literal["reset", "carry", "documents"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences and, at each position, the token that follows.

    input_ids, labels: int64 [R, T], or [1, R * T] when packed. Labels are -100 where there is
        nothing to predict.
    cu_seqlens: None, or int32 borders of the sequences in a packed row, from 0 to R * T.
    restart: whether the state of the batch before must be dropped.
    block_size: T.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor | None
    restart: bool
    block_size: int

    @property
    def num_blocks(self) -> int:
        """R, whether the blocks are rows or packed into one."""
        return self.input_ids.numel() // self.block_size

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of equally many blocks, in order.

        Raises:
            ValueError: parts does not divide the number of blocks.
        """
        if parts < 1 or self.num_blocks % parts:
            raise ValueError(
                f"parts must divide the {self.num_blocks} blocks of the batch; got {parts}"
            )
        if self.cu_seqlens is None:
            return [
                replace(self, input_ids=ids, labels=labels)
                for ids, labels in zip(self.input_ids.chunk(parts), self.labels.chunk(parts))
            ]
        # A packed row is cut between blocks, so every border of a sequence falls into one part.
        width = self.input_ids.shape[1] // parts
        micro = []
        for start in range(0, self.input_ids.shape[1], width):
            inside = (self.cu_seqlens >= start) & (self.cu_seqlens <= start + width)
            micro.append(
                replace(
                    self,
                    input_ids=self.input_ids[:, start : start + width],
                    labels=self.labels[:, start : start + width],
                    cu_seqlens=self.cu_seqlens[inside] - start,
                )
            )
        return micro

    def to(self, device: torch.device | str) -> "Batch":
        cu_seqlens = None if self.cu_seqlens is None else self.cu_seqlens.to(device)
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            cu_seqlens=cu_seqlens,
        )


class BlockSampler(Positioned):
    """Endless batches of contiguous blocks.

    batch_size is B, the sequences of a step over all ranks. Each rank takes its slice of
    consecutive rows; the rows of a step do not depend on the number of ranks. The mode says what a
    sequence may know of the text before it:

    - "reset": nothing. Block i is tokens [iT, iT + T). An epoch takes every block once, in an order
      of its own, and leaves out the last incomplete block and batch.
    - "carry": everything back to the start of the epoch. Row b of successive steps reads on through
      one of B adjacent stretches of the text. Their borders differ between epochs, and the first
      step of an epoch restarts.
    - "documents": as reset, and nothing across the start of a document either. The blocks lie end
      to end in one packed row, cut at every document. The last token of a document predicts
      nothing.

    Raises:
        UserError: the text is too short for one step.
        ValueError: sizes do not fit each other.
    """

    def __init__(
        self,
        tokens: TokenFile,
        block_size: int,
        batch_size: int,
        mode: Mode,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        share = share_of(batch_size, rank, world, block_size=block_size)
        if mode not in ("reset", "carry", "documents"):
            raise ValueError(f"mode must be 'reset', 'carry' or 'documents'; got {mode!r}")
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.mode = mode
        self._rows = np.arange(batch_size)[share]
        # The last label needs one token more. "carry" leaves T tokens free, so that borders can
        # move.
        margin = block_size if mode == "carry" else 1
        super().__init__("a text", max(len(tokens) - margin, 0) // (block_size * batch_size), seed)
        if self.steps_per_epoch == 0:
            needed = block_size * batch_size + margin
            raise UserError(
                f"the text has {len(tokens)} tokens, and one step of {batch_size} sequences of "
                f"{block_size} needs {needed}; use more text, or a smaller batch or block size"
            )

    def next(self) -> Batch:
        """The batch at the position, which moves on by one."""
        restart = self.mode != "carry" or self.index == 0
        starts = self._stream_starts() if self.mode == "carry" else self._block_starts()
        tokens = np.stack(
            [self.tokens.read(start, self.block_size + 1) for start in starts.tolist()]
        )
        self.advance()
        if self.mode == "documents":
            return self._packed(tokens, starts)
        return self._batch(tokens[:, :-1], tokens[:, 1:], None, restart)

    def _block_starts(self) -> np.ndarray:
        blocks = (len(self.tokens) - 1) // self.block_size
        order = shuffled(self.index * self.batch_size + self._rows, blocks, self.seed, self.epoch)
        return order * self.block_size

    def _stream_starts(self) -> np.ndarray:
        stretch = self.steps_per_epoch * self.block_size
        free = len(self.tokens) - 1 - self.batch_size * stretch
        offset = hashed(self.seed, self.epoch) % (free + 1)
        return offset + self._rows * stretch + self.index * self.block_size

    def _packed(self, tokens: np.ndarray, starts: np.ndarray) -> Batch:
        size = self.block_size
        labels = tokens[:, 1:].copy()
        borders = []
        for row, start in enumerate(starts.tolist()):
            # Counted from the block's first token, so in [1, T].
            documents = self.tokens.document_starts(start + 1, start + size + 1) - start
            labels[row, documents - 1] = IGNORED
            borders += [row * size, *(row * size + documents[documents < size]).tolist()]
        borders.append(labels.size)
        cu_seqlens = torch.tensor(borders, dtype=torch.int32, device="cpu")
        return self._batch(
            tokens[:, :-1].reshape(1, -1), labels.reshape(1, -1), cu_seqlens, restart=True
        )

    def _batch(
        self,
        input_ids: np.ndarray,
        labels: np.ndarray,
        cu_seqlens: torch.Tensor | None,
        restart: bool,
    ) -> Batch:
        ids, targets = (torch.from_numpy(np.ascontiguousarray(x)) for x in (input_ids, labels))
        return Batch(ids, targets, cu_seqlens, restart, self.block_size)
