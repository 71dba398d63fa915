"""What batches of labelled examples share, whatever the examples are."""

from dataclasses import Field, fields, replace
from typing import Any, ClassVar, Self

import torch


class LabelledBatch:
    """A base for frozen dataclasses of a batch.

    Each field is None or a tensor whose first axis counts the R examples; `labels` is int64 [R].
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # the subclasses are dataclasses
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: value.to(device) for name, value in self._present().items()})

    def split(self, count: int) -> list[Self]:
        """`count` batches of equally many consecutive examples.

        The length must be a multiple of count.
        """
        parts = {name: value.chunk(count) for name, value in self._present().items()}
        return [
            replace(self, **{name: chunks[part] for name, chunks in parts.items()})
            for part in range(count)
        ]

    def _present(self) -> dict[str, torch.Tensor]:
        """The fields that are not None, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}
