"""Muon: momentum made orthogonal for the matrices inside the network, AdamW for everything else.

`torch.optim.Muon` iterates in bfloat16, which most CPUs emulate some twenty times slower than
float32, and takes one matrix at a time. This one iterates in float32, over all matrices of a shape
together.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTUM = 0.95
_STEPS = 5
# Coefficients of the quintic `a x + b x^3 + c x^5`. Repeated, it takes singular values between 0
# and 1 to about 1 (Jordan et al. 2024).
_A = 3.4445
_B = -4.7750
_C = 2.0315


def orthogonalize(matrices: Tensor) -> Tensor:
    """About `U V^T` for each matrix `U S V^T` of `[N, rows, columns]`.

    Every singular value is brought to between 0.7 and 1.2. Values far below a thousandth of the
    largest one would need more than five steps, and stay smaller.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # The Frobenius norm bounds the largest singular value, which is now at most 1.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Updates matrices by their orthogonalized Nesterov momentum, and the other parameters like
    AdamW.

    A step of a matrix is scaled by `0.2 sqrt(max(rows, columns))`. It then has the size of AdamW's
    steps, so one learning rate and one weight decay serve both (Liu et al. 2025, "Muon is scalable
    for LLM training").

    Args:
        matrices: pairs of a parameter `[rows, columns]` and the rows of each linear map in it.
            Maps that are fused into one matrix are orthogonalized separately.
        others: groups for AdamW.
        weight_decay: decoupled, for the matrices.
        options: lr, betas and eps as in `torch.optim.AdamW`.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, tuple[int, ...]]],
        others: list[dict],
        weight_decay: float,
        **options,
    ):
        pairs = list(matrices)
        group = {
            "params": [parameter for parameter, _ in pairs],
            "rows": [rows for _, rows in pairs],
        }
        super().__init__([*others, group | {"weight_decay": weight_decay}], fused=True, **options)

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; it sets the gradients of the matrices to None."""
        for group in self.param_groups:
            if "rows" in group:
                self._step_of_matrices(group)
        super().step()

    def _step_of_matrices(self, group: dict) -> None:
        """One step of all matrices of a group."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter, rows in zip(group["params"], group["rows"]):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # AdamW expects a step in every state that it loads.
                state |= {
                    "step": torch.zeros((), device="cpu"),
                    "momentum": torch.zeros_like(parameter, dtype=torch.float32),
                }
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(parameter.grad.float(), 1 - _MOMENTUM)
            update = parameter.grad.float().lerp(momentum, _MOMENTUM)
            if isinstance(parameter, DTensor):
                self._step_of_shard(group, parameter, update, rows)
                parameter.grad = None
                continue
            for pair in zip(update.split(rows), parameter.split(rows)):
                by_shape.setdefault(pair[0].shape, []).append(pair)
            # AdamW skips a parameter without a gradient.
            parameter.grad = None
        # One iteration for all maps of a shape costs less than one for each.
        for shape, pairs in by_shape.items():
            directions = orthogonalize(torch.stack([update for update, _ in pairs]))
            for (_, part), direction in zip(pairs, directions):
                part.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                    direction, alpha=_size(group, shape)
                )

    def _step_of_shard(
        self, group: dict, parameter: DTensor, update: DTensor, rows: tuple[int, ...]
    ) -> None:
        """One step of a sharded matrix; collective. Only this matrix is whole in memory then."""
        maps = update.full_tensor().split(rows)
        direction = torch.cat(
            [orthogonalize(part[None])[0] * _size(group, part.shape) for part in maps]
        )
        direction = distribute_tensor(
            direction, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction)


def _size(group: dict, shape: torch.Size) -> float:
    """The factor for a direction of this shape."""
    return group["lr"] * 0.2 * max(shape) ** 0.5
