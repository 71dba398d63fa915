"""What batches of labelled examples share, whatever the examples are."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Self

import torch


class LabelledBatch:
    """A base for frozen dataclasses of tensors whose first axis is the examples, or None; `labels` is int64 [R]."""

    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: value.to(device) for name, value in self._present().items()})

    def split(self, count: int) -> list[Self]:
        """So many batches of equally many consecutive examples; the length must be a multiple of count."""
        parts = {name: value.chunk(count) for name, value in self._present().items()}
        return [
            replace(self, **{name: chunks[part] for name, chunks in parts.items()})
            for part in range(count)
        ]

    def _present(self) -> dict[str, torch.Tensor]:
        """By name, everything that is not None."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}
