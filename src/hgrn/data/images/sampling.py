"""Which images a step sees; the position (epoch, index, seed) alone decides."""

import numpy as np

from hgrn.data.images.source import ImageSource
from hgrn.data.position import Positioned, share_of
from hgrn.errors import UserError


class ImageSampler(Positioned):
    """Endless steps of image indices.

    batch_size is B, the images of a step over all ranks. An epoch is a list of N places, N being
    the number of images: place p holds image order[p // repeats]. Step s takes places
    [sB, (s + 1)B), and rank r takes those at r, r + world, ...; the last incomplete step is left
    out.

    repeats = 1: an epoch takes every image at most once. repeats = 3 (repeated augmentation; Hoffer
    et al., "Augment your batch", 2020): it takes a third of the images three times each, the three
    on different ranks if there are three or more. It is as long as any other epoch.

    Raises UserError if there are too few images for one step, ValueError for sizes that do not fit
    each other.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ):
        share_of(batch_size, rank, world, repeats=repeats)  # only to check; ranks take turns here
        super().__init__(source.name, len(source) // batch_size, seed)
        self.source = source
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.repeats = repeats
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{source.name} has {len(source)} images, fewer than the {batch_size} of one step; "
                "use a smaller batch size"
            )

    def next(self) -> np.ndarray:
        """The images of this rank at the position, int64 [B / world]; the position moves on."""
        images = self.at(self.epoch, self.index)
        self.advance()
        return images

    def at(self, epoch: int, index: int) -> np.ndarray:
        """The images of this rank at any position, int64 [B / world]."""
        places = index * self.batch_size + np.arange(self.rank, self.batch_size, self.world)
        return self.source.order(places // self.repeats, self.seed, epoch)
