"""Sequences to be split over ranks, and what one process makes of them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import HGRN
from hgrn.ops import hgru_scan
from hgrn.ops.packing import lengths_to_cu_seqlens
from tests.ops.cases import Case, make

WORLDS = (2, 3, 4)
# 24 positions are cut at 12; at 8 and 16; at 6, 12 and 18.
ON_CUTS = [6, 2, 4, 4, 2, 6]
EMPTY = [0, 6, 0, 2, 0, 0, 4, 4, 0, 2, 6, 0, 0]
LONG = dict(batch=1, steps=130, channels=5, extreme=True)  # gates of 0.9999, angles of 1 radian

SCANS = {
    "complex": make(steps=29),
    "real, reverse, mask": make(steps=31, complex_state=False, mask=True, reverse=True),
    "one position a rank or none": make(steps=2, mask=True),
    "no time": make(steps=0, reverse=True),
    "no bound, no state": make(steps=9, bound=False, initial=False),
    "extreme": make(**LONG),
    "extreme, mask, reverse": make(**LONG, mask=True, reverse=True),
    "packed, inside": make(lengths=[5, 1, 0, 17, 6], extreme=True),
    "packed, inside, reverse, mask": make(lengths=[5, 1, 0, 17, 6], reverse=True, mask=True),
    "packed, on cuts": make(lengths=ON_CUTS),
    "packed, on cuts, reverse": make(lengths=ON_CUTS, reverse=True, initial=False),
    "packed, over three": make(lengths=[2, 124, 4], extreme=True, mask=True),
    "packed, over three, reverse": make(lengths=[2, 124, 4], extreme=True, reverse=True),
    "packed, one": make(lengths=[24], extreme=True, mask=True),
    "packed, empty": make(lengths=EMPTY, extreme=True),
    "packed, empty, reverse, real": make(
        lengths=EMPTY, reverse=True, complex_state=False, mask=True
    ),
    "packed, all empty": make(lengths=[0, 0]),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def borders_of(case: Case) -> list[int]:
    """Of the sequences on the time axis."""
    cu_seqlens = case.options.get("cu_seqlens")
    return [0, case.candidate.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()


def rows_of(case: Case, stretches: list[slice]) -> list[list[int]]:
    """For each rank the sequences of which it has a row of states."""
    borders = borders_of(case)
    rows = []
    continued = 0
    for rank, stretch in enumerate(stretches):
        last = rank == len(stretches) - 1
        begins = sum(stretch.start <= b and (b < stretch.stop or last) for b in borders[1:-1])
        rows.append(list(range(continued, continued + begins + 1)))
        continued += begins
    return rows


def weights_of(case: Case, stretches: list[slice]) -> tuple[Tensor, list[Tensor]]:
    """What a loss multiplies the hidden states with, and the final states of each rank."""
    generator = torch.Generator().manual_seed(
        14
    )  # sums over the time do not cancel, which in bfloat16 leaves few digits

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = len(case.candidate)
    width = case.candidate.shape[-1]
    packed = "cu_seqlens" in case.options
    finals = [normal(len(rows) if packed else batch, width) for rows in rows_of(case, stretches)]
    return normal(*case.candidate.shape), finals


def whole_scan(
    case: Case, stretches: list[slice], dtype: torch.dtype
) -> dict[str, Tensor | list[Tensor]]:
    """Hidden states, the states after each stretch, and all gradients.

    They are the float64 reference's, on inputs rounded to dtype.
    """
    rounded = case.inputs(dtype)
    leaves = [None if x is None else x.detach().double().requires_grad_() for x in rounded]
    h, _ = hgru_scan(*leaves, engine="reference", **case.options)
    initial = leaves[4]
    if initial is None:
        initial = torch.zeros(
            len(borders_of(case)) - 1 if "cu_seqlens" in case.options else len(h), h.shape[-1]
        ).double()
    finals = [
        _after(case, h, initial, stretch, rows)
        for stretch, rows in zip(stretches, rows_of(case, stretches), strict=True)
    ]
    weight, weights = weights_of(case, stretches)
    loss = (h * weight).sum() + sum((final * w).sum() for final, w in zip(finals, weights))
    wanted = [x for x in leaves if x is not None]
    grads = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
    names = ("candidate", "forget", "lower_bound", "theta", "initial_state")
    of = {f"gradient of {name}": next(grads) for name, x in zip(names, leaves) if x is not None}
    return {"h": h.detach(), "finals": [final.detach() for final in finals], **of}


def _after(case: Case, h: Tensor, initial: Tensor, stretch: slice, rows: list[int]) -> Tensor:
    """The states of `rows` where a scan leaves the stretch: found among the hidden states."""
    borders = borders_of(case)
    reverse = case.options.get("reverse", False)
    found = []
    for row in rows:
        begin = borders[row]
        end = borders[row + 1]
        at = max(begin, stretch.start) if reverse else min(end, stretch.stop) - 1
        seen = at < end if reverse else at >= begin
        if "cu_seqlens" in case.options:
            found.append(h[0, at] if seen else initial[row])
        else:
            return h[:, at] if seen else initial
    return torch.stack(found)


@dataclass(frozen=True)
class StackCase:
    """A whole stack on a batch that is masked, packed, or neither."""

    steps: int = 24
    options: dict = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    mask: bool = False
    checkpointing: bool = False

    def model(self, dtype: torch.dtype) -> HGRN:
        """Two layers with forget gates near 0.9999 and angles of 1 radian."""
        torch.manual_seed(3)
        model = HGRN(5, 2, **self.options).to(dtype)
        with torch.no_grad():
            for block in model.blocks:
                candidate, forget, _ = block.mixer.joined_rows["in_proj"]
                block.mixer.in_proj.bias[candidate : candidate + forget] = 9.2
                block.gradient_checkpointing = self.checkpointing
                if getattr(block.mixer, "theta", None) is not None:
                    block.mixer.theta.fill_(1.0)
                    if block.mixer.theta.ndim == 2:
                        block.mixer.theta[1] *= -0.5
        return model

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x and the weights of y in the loss, `[B, T, dim]`; mask and boundaries."""
        generator = torch.Generator().manual_seed(4)
        batch = 2 if self.lengths is None else 1
        x, weight = (
            torch.randn(batch, self.steps, 5, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        where = {}
        if self.mask:
            where["mask"] = torch.rand(batch, self.steps, generator=generator) > 0.4
            weight = torch.where(
                where["mask"][..., None], weight, 0
            )  # the outputs of masked positions mean nothing
        if self.lengths is not None:
            where["cu_seqlens"] = lengths_to_cu_seqlens(
                torch.tensor(self.lengths, dtype=torch.int64)
            )
        return x.to(dtype), weight.to(dtype), where


CONVOLUTION = dict(conv_size=4, norm_type="rms")
HGRN2 = dict(mixer="hgrn2", norm_type="rms")
STACKS = {
    "plain": StackCase(25),
    "real, mask": StackCase(options=dict(complex_state=False), mask=True),
    "convolution": StackCase(options=CONVOLUTION),
    "convolution, mask": StackCase(options=CONVOLUTION, mask=True),
    "convolution, shorter than its window": StackCase(5, options=CONVOLUTION, mask=True),
    "convolution, empty stretches": StackCase(3, options=CONVOLUTION),
    # Behind a border, some stretches end before the window is full again.
    "convolution, packed": StackCase(options=CONVOLUTION, lengths=(5, 1, 0, 5, 4, 2, 7)),
    "convolution, packed on cuts, mask": StackCase(
        options=CONVOLUTION, lengths=tuple(EMPTY), mask=True
    ),
    "convolution, checkpointing": StackCase(options=CONVOLUTION, checkpointing=True),
    "hgrn2": StackCase(25, options=HGRN2),
    "hgrn2, mask": StackCase(options=HGRN2, mask=True),
    "hgrn2, empty stretches": StackCase(3, options=HGRN2),
    "hgrn2, packed": StackCase(options=HGRN2, lengths=(5, 1, 0, 5, 4, 2, 7)),
    "hgrn2, packed on cuts, mask": StackCase(options=HGRN2, lengths=tuple(EMPTY), mask=True),
    "hgrn2, convolution, packed": StackCase(options=HGRN2 | CONVOLUTION, lengths=(2, 20, 2)),
    "both directions": StackCase(options=dict(bidirectional=True), mask=True),
    "both directions, two thetas, packed": StackCase(
        options=dict(bidirectional=True, shared_theta=False), lengths=(2, 20, 2)
    ),
    "both directions, real, packed on cuts": StackCase(
        options=dict(bidirectional=True, complex_state=False), lengths=tuple(ON_CUTS), mask=True
    ),
}


def whole_stack(case: StackCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, state and all gradients of one process.

    In float64, on parameters and inputs rounded to dtype.
    """
    model = case.model(dtype).double()
    x, weight, where = case.inputs(dtype)
    x = x.double().requires_grad_()
    y, state = model(x, **where)
    (y * weight.double()).sum().backward()
    grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    final = (
        {}
        if state is None
        else {
            f"state {i} {j}": part.detach() for i, s in enumerate(state) for j, part in enumerate(s)
        }
    )
    kept = where.get("mask", torch.ones(x.shape[:2], dtype=torch.bool))
    return {
        "y": torch.where(kept[..., None], y.detach(), 0),
        "gradient of x": x.grad,
        **final,
        **grads,
    }


def language_model() -> tuple[HGRNForCausalLM, Tensor, Tensor]:
    """A small model, a row of tokens, and the borders of its documents."""
    torch.manual_seed(5)
    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=6, num_hidden_layers=2)).double()
    return model, torch.randint(11, (1, 24)), torch.tensor([0, 5, 8, 21, 24])
