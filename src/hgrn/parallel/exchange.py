"""A rank's place among those that share a sequence, and the messages between them.

Shape letters: R ranks, Q ranks that a scan reads before this one, nearest last.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

Group = dist.ProcessGroup | DeviceMesh

# By name, because a module is copied with what it holds, and a process group cannot be copied.
GROUPS: dict[str, dist.ProcessGroup] = {}


@dataclass(frozen=True)
class Context:
    """This rank's place: the name of its group, its number there, and how many ranks there are."""

    name: str
    rank: int
    world: int

    @classmethod
    def of(cls, group: Group) -> "Context":
        """From a process group or a device mesh of one dimension.

        Raises:
            ValueError: the mesh has several dimensions.
            TypeError: group is neither.
        """
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(
                    f"group must have one dimension, got a mesh of {group.ndim}; "
                    "take one, as mesh['context']"
                )
            group = group.get_group()
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "group must be a ProcessGroup or a DeviceMesh of one dimension, "
                f"got {type(group).__name__}"
            )
        GROUPS[group.group_name] = group
        return cls(group.group_name, dist.get_rank(group), dist.get_world_size(group))

    def is_first(self, reverse: bool) -> bool:
        """Whether a scan begins on this rank."""
        return self.rank == (self.world - 1 if reverse else 0)

    def before(self, x: Tensor, reverse: bool) -> Tensor:
        """`[R, ...]` -> `[Q, ...]`: the values of the ranks before this one, nearest last."""
        return x[self.rank + 1 :].flip(0) if reverse else x[: self.rank]

    def gather(self, x: Tensor) -> Tensor:
        """`[...]` of every rank -> `[R, ...]` on every rank."""
        gathered = x.new_empty((self.world, *x.shape))
        dist.all_gather(list(gathered), x.contiguous(), group=GROUPS[self.name])
        return gathered

    def broadcast_last(self, x: Tensor) -> None:
        """Overwrites x on every rank with the last rank's."""
        dist.broadcast(x, group=GROUPS[self.name], group_src=self.world - 1)


def passes(cu_seqlens: Tensor | None) -> bool:
    """Whether a state passes through the whole stretch: no sequence begins inside."""
    return cu_seqlens is None or cu_seqlens.shape[0] == 2


def sum_of_nearer(counts: Tensor) -> Tensor:
    """For each of Q ranks the sum of the counts `[Q, ...]` of the ranks that are nearer."""
    return torch.cat([counts[1:], torch.zeros_like(counts[:1])]).flip(0).cumsum(0).flip(0)
