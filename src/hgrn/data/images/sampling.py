"""Which images a step sees, as a function of the position alone: (epoch, index, seed)."""

from __future__ import annotations

import numpy as np

from hgrn.data.images.source import ImageSource
from hgrn.errors import UserError


class ImageSampler:
    """Endless steps of image indices.

    batch_size is B, the images of a step over all ranks. An epoch is a list of N places, N the number of
    images: place p holds image order[p // repeats]. Step s takes places [sB, (s + 1)B), and of them rank r
    those at r, r + world, ...; the last incomplete step is left out. With repeats = 1 an epoch so takes every
    image at most once. With repeats = 3 (repeated augmentation; Hoffer et al., "Augment your batch", 2020) it
    takes a third of them three times each, the three on different ranks where there are as many, and it is as
    long as any other.

    Raises UserError if there are too few images for one step, ValueError for sizes that do not fit each other.
    """

    def __init__(self, source: ImageSource, batch_size: int, seed: int, rank: int = 0, world: int = 1, repeats: int = 1):
        for name, value in (("batch_size", batch_size), ("world", world), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the {world} ranks")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}); got {rank}")
        self.source, self.batch_size, self.rank, self.world, self.repeats = source, batch_size, rank, world, repeats
        self.epoch, self.index, self.seed = 0, 0, seed
        self.steps_per_epoch = len(source) // batch_size
        if self.steps_per_epoch == 0:
            raise UserError(f"{source.name} has {len(source)} images, fewer than the {batch_size} of one step; "
                            "use a smaller batch size")

    def next(self) -> np.ndarray:
        """The images of this rank at the position, int64 [B / world]; the position moves on by one."""
        images = self.at(self.epoch, self.index)
        self.epoch, self.index = self.after(self.epoch, self.index)
        return images

    def at(self, epoch: int, index: int) -> np.ndarray:
        """The images of this rank at any position, int64 [B / world]."""
        places = index * self.batch_size + np.arange(self.rank, self.batch_size, self.world)
        return self.source.order(places // self.repeats, self.seed, epoch)

    def after(self, epoch: int, index: int) -> tuple[int, int]:
        """The position that follows one."""
        return (epoch, index + 1) if index + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, index of the next step in it, seed."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position. Raises ValueError for one that these images, with this batch size, do not have."""
        if not 0 <= state["index"] < self.steps_per_epoch or state["epoch"] < 0:
            raise ValueError(f"position {state} is not in {self.source.name} of {self.steps_per_epoch} steps per epoch; "
                             "was it saved with other data or another batch size?")
        self.epoch, self.index, self.seed = state["epoch"], state["index"], state["seed"]
