"""Inputs for the tests of the ops: awkward shapes, every option, gates near 0 and 1."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hgrn.ops import reference
from hgrn.ops.arguments import Scan
from hgrn.ops.packing import lengths_to_cu_seqlens


@dataclass
class Case:
    """One call of hgru_scan: tensors in float64, and options."""

    candidate: Tensor
    forget: Tensor
    lower_bound: Tensor | None
    theta: Tensor | None
    initial_state: Tensor | None
    options: dict = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor | None]:
        return [self.candidate, self.forget, self.lower_bound, self.theta, self.initial_state]

    def inputs(self, dtype: torch.dtype) -> list[Tensor | None]:
        """The tensors as leaves in dtype; parameters and states in the state's dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        dtypes = (dtype, dtype, wide, wide, wide)
        return [
            None if x is None else x.to(d).requires_grad_() for x, d in zip(self.tensors, dtypes)
        ]


def make(
    batch=2,
    steps=5,
    channels=3,
    *,
    complex_state=True,
    bound=True,
    initial=True,
    mask=False,
    lengths=None,
    extreme=False,
    seed=0,
    **options,
) -> Case:
    """A random case.

    `lengths` packs sequences; `extreme` puts gates near 0 and 1 and angles at 1 radian.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = 2 if complex_state else 1
    sequences = batch if lengths is None else len(lengths)
    if lengths is not None:
        batch = 1
        steps = sum(lengths)
        options["cu_seqlens"] = lengths_to_cu_seqlens(torch.tensor(lengths, dtype=torch.int64))
    forget = normal(batch, steps, channels)
    lower_bound = torch.rand(channels, generator=generator, dtype=torch.float64) if bound else None
    theta = 3 * normal(channels) if complex_state else None
    if extreme:
        forget = forget * 30
        lower_bound = (
            None if lower_bound is None else torch.where(lower_bound > 0.5, 0.9999, 1e-4).double()
        )
        theta = None if theta is None else torch.ones_like(theta)
    if mask:
        options["mask"] = torch.rand(batch, steps, generator=generator) > 0.3
    return Case(
        normal(batch, steps, parts * channels),
        forget,
        lower_bound,
        theta,
        normal(sequences, parts * channels) if initial else None,
        options,
    )


def plain_loop(name: str):
    """The reference's loop as a function of `[B, T, *]`, which PyTorch derives in every mode.

    Unlike the engine "reference", which goes through the operators as every engine does, it shares
    nothing with their derivatives.
    """
    function = getattr(reference, name)

    def call(
        x,
        gate,
        lower_bound=None,
        theta=None,
        initial_state=None,
        *,
        cu_seqlens=None,
        mask=None,
        reverse=False,
    ):
        if name == "gated_scan" and mask is not None:
            x = torch.where(mask[..., None], x, 0)
        scan = Scan(
            x.unsqueeze(2),
            gate.unsqueeze(2),
            lower_bound,
            theta,
            None if initial_state is None else initial_state.unsqueeze(1),
            cu_seqlens,
            None if mask is None else mask.unsqueeze(2),
            reverse,
        )
        first, state = function(scan)
        return first.squeeze(1 if name == "hgru_carry" else 2), state.squeeze(1)

    return call


# Every option pair appears at least once; lengths 1, 2, 63, 64, 65, 500; odd and even numbers of
# channels; batch 1.
CASES = {
    "real": make(complex_state=False),
    "complex": make(),
    "one step": make(steps=1, batch=1, mask=False),
    "two steps, no bound": make(steps=2, bound=False, complex_state=False),
    "63 steps, reverse": make(steps=63, channels=7, reverse=True),
    "64 steps, mask": make(steps=64, channels=8, mask=True, complex_state=False),
    "65 steps, mask, reverse": make(steps=65, channels=9, mask=True, reverse=True),
    "500 steps": make(steps=500, channels=5, batch=1),
    "500 steps, extreme, real": make(
        steps=500, channels=5, extreme=True, complex_state=False, mask=True
    ),
    # Rotation by a cosine and sine rounded to float32 is off by up to 6e-8 a step, and a gate of
    # 0.9999 forgets none of it.
    "130 steps, extreme": make(steps=130, channels=5, batch=1, extreme=True),
    "130 steps, extreme, mask": make(steps=130, channels=5, extreme=True, mask=True, initial=False),
    "packed": make(lengths=[3, 1, 7]),
    "packed, empty": make(lengths=[0, 4, 0, 2, 0], complex_state=False, reverse=True),
    "packed, empty, complex": make(lengths=[2, 0, 0, 5], mask=True, bound=False),
    "packed, mask, reverse": make(lengths=[4, 6, 0], mask=True, reverse=True, initial=False),
    "packed, all empty": make(lengths=[0, 0]),
    "real, no state, no bound": make(
        complex_state=False, initial=False, bound=False, mask=True, reverse=True
    ),
    "no time": make(steps=0),
    "wide": make(steps=3, channels=1037, batch=1),
}
