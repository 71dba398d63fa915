"""A rank's place among those that share a sequence, and what the layers call there.

Shape letters: R ranks, B batch, T positions of this rank's stretch, C channels of a state, N sequences that are packed into the
stretch, W taps of a convolution.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from hgrn.ops.engines import choose
from hgrn.ops.scans import Layout, check_gate
from hgrn.parallel.scan import ContextScan, passes
from hgrn.parallel.window import ContextWindow, last_inputs, moved

Group = dist.ProcessGroup | DeviceMesh

GROUPS: dict[
    str, dist.ProcessGroup
] = {}  # by name, which a module can hold and be copied with; a group cannot be copied


@dataclass(frozen=True)
class Context:
    """This rank's place among those that share a sequence."""

    name: str
    rank: int
    world: int

    @classmethod
    def of(cls, group: Group) -> "Context":
        """From a process group or a device mesh of one dimension."""
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(
                    f"group must have one dimension, got a mesh of {group.ndim}; take one, as mesh['context']"
                )
            group = group.get_group()
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"group must be a ProcessGroup or a DeviceMesh of one dimension, got {type(group).__name__}"
            )
        GROUPS[group.group_name] = group
        return cls(group.group_name, dist.get_rank(group), dist.get_world_size(group))

    def is_first(self, reverse: bool) -> bool:
        """Whether a scan begins on this rank."""
        return self.rank == (self.world - 1 if reverse else 0)

    def before(self, x: Tensor, reverse: bool) -> Tensor:
        """Of values of all ranks `[R, ...]` those of the ranks that a scan reads before this one, nearest last."""
        return x[self.rank + 1 :].flip(0) if reverse else x[: self.rank]

    def gather(self, x: Tensor) -> Tensor:
        """`[...]` of every rank -> `[R, ...]` on every rank."""
        gathered = x.new_empty((self.world, *x.shape))
        dist.all_gather(list(gathered), x.contiguous(), group=GROUPS[self.name])
        return gathered

    # A compiler would drop or move an exchange whose result this rank does not need, and the others would wait: both are eager.
    @torch.compiler.disable
    def scan(
        self,
        candidate: Tensor,
        forget: Tensor,
        lower_bound: Tensor | None,
        directions: list[tuple[bool, Tensor | None]],
        initial_state: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        mask: Tensor | None = None,
        engine: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of the scans in all directions `(reverse, theta)`, which share messages; the final state of the first."""
        thetas = [theta for _, theta in directions]
        layout = Layout(candidate, "candidate", 1, cu_seqlens)
        if candidate.ndim != 3:
            raise ValueError(f"candidate must have shape [B, T, C], got {tuple(candidate.shape)}")
        if cu_seqlens is not None and cu_seqlens.shape[0] < 2:
            raise ValueError(
                "cu_seqlens must hold at least one sequence on every rank, as local_cu_seqlens makes it"
            )
        size = check_gate(forget, "forget", layout, thetas[0])
        initial = layout.initial(initial_state)
        *h, final = ContextScan.apply(
            layout.canonical(candidate),
            layout.canonical(forget),
            layout.channels(lower_bound, "lower_bound", size),
            None
            if thetas[0] is None
            else torch.stack([layout.channels(theta, "theta", size) for theta in thetas]),
            None if initial is None else initial.squeeze(1),
            cu_seqlens,
            layout.mask(mask),
            tuple(reverse for reverse, _ in directions),
            choose(engine, candidate.device.type),
            self,
        )
        return sum(h[1:], h[0]).reshape(candidate.shape), final

    @torch.compiler.disable
    def window(
        self, x: Tensor, state: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        """The inputs in front of this rank's stretch x `[B, T, C]`, `[N, W - 1, C]`: `state` where no earlier rank has them."""
        if state.shape[1] == 0:
            return state
        before, later = (
            (state, state[:0]) if cu_seqlens is None else (state[:1], state[1:])
        )  # later ones begin in x
        if not self.is_first(reverse=False):
            before = torch.zeros_like(before)
        own, kept = last_inputs(x, state.shape[1], mask, cu_seqlens)
        own = own + moved(later[-1:] if len(later) else before, kept)
        passed = kept if passes(cu_seqlens) else torch.full_like(kept, state.shape[1])
        # Zeros are added on the first rank too: its part of the backward's exchange hangs on them.
        return torch.cat([before + ContextWindow.apply(own, passed, self), later])
