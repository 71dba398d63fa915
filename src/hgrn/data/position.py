"""The position of a sampler as plain data: (epoch, index of its next step, seed).

What a sampler draws depends on nothing else, so a resumed run goes on with the same batches.
"""


def share_of(batch_size: int, rank: int, world: int, **counts: int) -> slice:
    """The rows of a batch that belong to one rank; all ranks get equally many.

    counts: other sizes that must be at least 1. Raises ValueError unless they are, rank is in
    [0, world) and the ranks can divide the batch.
    """
    for name, value in {**counts, "batch_size": batch_size, "world": world}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {world} ranks")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, {world}); got {rank}")
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)


class Positioned:
    """What all samplers share: endless epochs, and a position that can be saved and restored.

    what: the kind of data, for messages.
    """

    def __init__(self, what: str, steps_per_epoch: int, seed: int):
        self._what = what
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0
        self.index = 0
        self.seed = seed

    def after(self, epoch: int, index: int) -> tuple[int, int]:
        """The position that follows one."""
        return (epoch, index + 1) if index + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def advance(self) -> None:
        """Move on by one step."""
        self.epoch, self.index = self.after(self.epoch, self.index)

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, index of the next step in it, seed."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position.

        Raises:
            ValueError: there is no such position, as after a change of the data or the batch size.
        """
        if not 0 <= state["index"] < self.steps_per_epoch or state["epoch"] < 0:
            raise ValueError(
                f"position {state} is not in {self._what} of {self.steps_per_epoch} steps per "
                "epoch; was it saved with other data, or with batches of another size?"
            )
        self.epoch = state["epoch"]
        self.index = state["index"]
        self.seed = state["seed"]
