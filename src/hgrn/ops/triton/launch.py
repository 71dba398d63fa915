"""The GPU engine: what stands between the registered operators and the Triton kernels.

Shape letters as in `hgrn.ops.operators`; S stretches of time, R rows (sequences times inner indices).
"""

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import torch
import triton
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.triton import kernels

_WIDE = {torch.float32: triton.language.float32, torch.float64: triton.language.float64}
_SHORTEST = 4  # tiles of a stretch at least: the first pass over it has to pay
_BLOCKS = (64, 32, 16, 8)  # channels of a program, widest first
_AHEAD = (
    2**16
)  # bytes of the tiles that are on the way to a program: two fit on an H100, one on every GPU
_NVIDIA = torch.version.cuda is not None and isinstance(
    kernels.scan, triton.JITFunction
)  # and not the interpreter
_NO_CARRY = {"decay": None, "turns": None}


@dataclass(frozen=True)
class Tile:
    """How a program cuts its work: `rows` consecutive positions in each of `slots` slots, by `block` channels.

    vector: channels of one load of a thread. stages: tiles in flight, the one at work among them. registers: of a thread, at most.
    """

    rows: int
    slots: int
    block: int
    vector: int
    threads: int
    stages: int
    registers: int | None

    @property
    def steps(self) -> int:
        return self.rows * self.slots

    def constants(self, nvidia: bool) -> dict[str, int]:
        """As the kernels take them; AMD's keep tiles in flight in registers, so there is one of them."""
        return dict(
            R=self.rows,
            W=self.slots,
            BD=self.block,
            V=self.vector,
            STAGES=self.stages if nvidia else 2,
        )

    def options(self, nvidia: bool, warp: int) -> dict[str, int]:
        """As the compiler takes them, for warps of so many threads."""
        return {"num_warps": self.threads // warp} | (
            {"maxnreg": self.registers} if nvidia and self.registers else {}
        )


def tile_of(is_complex: bool, itemsize: int, backward: bool, block: int) -> Tile:
    """The tile for a state, the bytes of a number, a direction and a block of channels; docs/gpu.md says why.

    A thread holds `rows * vector` positions of channels: as many as let two programs of 256 threads, or three of 128, share the
    registers of a multiprocessor. float64 has to work, not to be fast.
    """
    numbers = (
        (7 if backward else 3) if is_complex else (4 if backward else 2)
    )  # that are read at a position of a channel
    vector = 2 if is_complex or backward else 4
    rows = 8 if not backward and itemsize <= (4 if is_complex else 2) else 4
    threads = 128 if is_complex and backward else 256
    ahead = min(2, _AHEAD // (numbers * rows * vector * threads * itemsize))
    registers = None if itemsize == 8 else 168 if threads == 128 else 128
    return Tile(rows, threads * vector // block, block, vector, threads, 1 + ahead, registers)


@cache
def _chip(device: torch.device):
    """What is known of a GPU; the interpreter has one multiprocessor."""
    return (
        torch.cuda.get_device_properties(device)
        if device.type == "cuda"
        else SimpleNamespace(multi_processor_count=1, warp_size=32)
    )


class _Scan:
    """The sizes of one call, how its tiles are cut, and the launch of a kernel over them."""

    def __init__(
        self,
        x: Tensor,
        channels: int,
        theta: Tensor | None,
        cu_seqlens: Tensor | None,
        mask: Tensor | None,
        reverse: bool,
        backward: bool = False,
    ):
        outer, self.steps, self.inner, width = x.shape
        self.channels = channels
        self.width = width
        self.complex = theta is not None
        self.device = x.device
        self.sequences = outer if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.rows = self.sequences * self.inner
        self.wide = at_least_float32(x.dtype)
        self.theta = theta
        self.bounds = cu_seqlens
        self.mask = None if mask is None else mask.int().contiguous()
        self.tile = self._tile(x.element_size(), backward)
        self.blocks = -(-channels // self.tile.block)
        self.parts, self.stretch = self._split()
        self.flags = dict(
            inner=self.inner,
            channels=channels,
            REVERSE=reverse,
            COMPLEX=self.complex,
            MASKED=mask is not None,
            PACKED=cu_seqlens is not None,
            WIDE=_WIDE[self.wide],
            PTX=_NVIDIA and self.wide == torch.float32,
            **self.tile.constants(_NVIDIA),
            **self.tile.options(_NVIDIA, _chip(self.device).warp_size),
        )

    def _tile(self, itemsize: int, backward: bool) -> Tile:
        """Of the widest block that gives every multiprocessor nearly two programs, or else of the narrowest."""
        enough = 1.8 * _chip(self.device).multi_processor_count
        wide = (block for block in _BLOCKS if -(-self.channels // block) * self.rows >= enough)
        return tile_of(self.complex, itemsize, backward, next(wide, _BLOCKS[-1]))

    def _split(self) -> tuple[int, int]:
        """How many stretches, and positions of each: several only where it pays to read all twice for more programs."""
        programs = max(self.blocks * self.rows, 1)
        length = self.tile.steps
        parts = _chip(self.device).multi_processor_count // programs
        parts = min(parts, self.steps // (_SHORTEST * length))
        if parts <= 1:
            return 1, max(self.steps, 1)
        stretch = -(-self.steps // (parts * length)) * length
        return -(-self.steps // stretch), stretch

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.device)

    def states(self, given: Tensor | None) -> Tensor:
        """`[R, C]`, zeros where nothing was given."""
        if given is None:
            return torch.zeros(self.rows, self.width, dtype=self.wide, device=self.device)
        return given.to(self.wide).reshape(self.rows, self.width).contiguous()

    def launch(self, kernel, **arguments) -> None:
        """Runs a kernel over all tiles."""
        if not (self.blocks and self.rows):
            return
        with torch.cuda.device_of(arguments["f"]):
            kernel[(self.blocks * self.rows, self.parts)](
                **arguments,
                mask=self.mask,
                bounds=self.bounds,
                steps=self.steps,
                rows=self.rows,
                stretch=self.stretch,
                **self.flags,
            )

    def chained(
        self, entering: Tensor, decay: Tensor, turns: Tensor | None, end: Tensor, backward: bool
    ) -> Tensor:
        """What enters each stretch, `[S, R, C]`."""
        states = torch.empty_like(end)
        if not (self.channels and self.rows):
            return states
        with torch.cuda.device_of(end):
            kernels.chain[(-(-self.channels // 128) * self.rows,)](
                entering,
                decay,
                turns,
                end,
                self.theta,
                states,
                self.rows,
                self.parts,
                channels=self.channels,
                COMPLEX=self.complex,
                BACKWARD=backward,
                WIDE=_WIDE[self.wide],
                BD=128,
            )
        return states

    def carry_outputs(self) -> dict[str, Tensor | None]:
        turns = (
            torch.zeros(self.parts, self.rows, dtype=torch.int64, device=self.device)
            if self.complex
            else None
        )
        return {"decay": self.empty(self.parts, self.rows, self.channels), "turns": turns}


def _strided(name: str, x: Tensor) -> dict[str, Tensor | int]:
    """The tensor `[O, T, I, C]` with unit last stride, and its other strides in elements."""
    outer, time, inner = x.stride()[:3]
    return {name: x, f"{name}_outer": outer, f"{name}_time": time, f"{name}_inner": inner}


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _room(lower_bound: Tensor | None, forget: Tensor) -> Tensor:
    """`1 - lower_bound`, `[D]`."""
    if lower_bound is None:
        return torch.ones(
            forget.shape[-1], dtype=at_least_float32(forget.dtype), device=forget.device
        )
    return 1 - lower_bound


def _forward(x, f, room, theta, initial_state, cu_seqlens, mask, reverse) -> tuple[Tensor, Tensor]:
    """Both scans: from pre-activations if `room` is given, else from log gates."""
    scan = _Scan(x, f.shape[-1], theta, cu_seqlens, mask, reverse)
    h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inputs = {
        **_strided("x", x),
        **_strided("f", f),
        "room": room,
        "theta": theta,
        "FUSED": room is not None,
    }
    entering = scan.states(initial_state)
    final = scan.empty(scan.parts, scan.rows, scan.width)
    if scan.parts > 1:
        carry = scan.carry_outputs()
        zeros = torch.zeros_like(final)
        scan.launch(
            kernels.scan,
            **inputs,
            initial=zeros,
            h=h,
            final=final,
            **carry,
            WRITE=False,
            CARRY=True,
        )
        entering = scan.chained(entering, **carry, end=final, backward=False)
    scan.launch(
        kernels.scan,
        **inputs,
        initial=entering,
        h=h,
        final=final,
        **_NO_CARRY,
        WRITE=True,
        CARRY=False,
    )
    last = final[-1] if scan.channels and scan.rows else scan.states(initial_state).clone()
    return h, last.reshape(scan.sequences, scan.inner, scan.width).clone()


def _backward(grad_h, grad_final, x, f, room, theta, initial_state, h, cu_seqlens, mask, reverse):
    """Gradients of x, f, lower bound, theta and initial state."""
    like = h if x is None else x
    scan = _Scan(like, f.shape[-1], theta, cu_seqlens, mask, reverse, backward=True)
    dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    df = torch.empty(f.shape, dtype=f.dtype, device=f.device)
    inputs = {
        **_strided("x", like),
        **_strided("f", f),
        "room": room,
        "theta": theta,
        "initial": scan.states(initial_state),
        "h": h.contiguous(),
        **_strided("dh", _unit_last_stride(grad_h)),
        "FUSED": room is not None,
    }
    entering = scan.states(grad_final)
    passed = scan.empty(scan.parts, scan.rows, scan.width)
    sums = torch.zeros(
        2, scan.parts * scan.rows, scan.channels, dtype=scan.wide, device=scan.device
    )
    outputs = {"dx": dx, "df": df, "dlower": sums[0], "dtheta": sums[1]}
    if scan.parts > 1:
        carry = scan.carry_outputs()
        zeros = torch.zeros_like(passed)
        scan.launch(
            kernels.scan_backward,
            **inputs,
            **outputs,
            entering=zeros,
            passed=passed,
            **carry,
            WRITE=False,
            CARRY=True,
        )
        entering = scan.chained(entering, **carry, end=passed, backward=True)
    scan.launch(
        kernels.scan_backward,
        **inputs,
        **outputs,
        entering=entering,
        passed=passed,
        **_NO_CARRY,
        WRITE=True,
        CARRY=False,
    )
    grad_lower, grad_theta = sums.sum(1).unbind(0)
    first = passed[0] if scan.channels and scan.rows else scan.states(grad_final)
    grad_initial = first.reshape(scan.sequences, scan.inner, scan.width).clone()
    return dx, df, grad_lower.clone(), grad_theta.clone(), grad_initial


def hgru_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan`."""
    candidate, forget, lower_bound, *rest = scan
    return _forward(candidate, forget, _room(lower_bound, forget), *rest)


def hgru_carry(given: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_carry`."""
    candidate, forget, lower_bound, theta, _, cu_seqlens, mask, reverse = given
    scan = _Scan(candidate, forget.shape[-1], theta, cu_seqlens, mask, reverse)
    room = _room(lower_bound, forget)
    final = scan.empty(scan.parts, scan.rows, scan.width)
    carry = scan.carry_outputs()
    scan.launch(
        kernels.scan,
        **_strided("x", candidate),
        **_strided("f", forget),
        room=room,
        theta=theta,
        FUSED=True,
        initial=torch.zeros_like(final),
        h=candidate,
        final=final,
        **carry,
        WRITE=False,
        CARRY=True,
    )
    if scan.parts > 1:
        # `chained` says what enters each stretch, so what leaves the last is still to be made.
        states = scan.chained(scan.states(None), **carry, end=final, backward=False)
        end = _after(
            states[-1],
            carry["decay"][-1],
            carry["turns"][-1] if scan.complex else None,
            theta,
            final[-1],
        )
    else:
        end = final[0]
    decay = carry["decay"].prod(0)
    shape = scan.sequences, scan.inner
    return decay.reshape(*shape, scan.channels), end.reshape(*shape, scan.width).clone()


def _after(
    state: Tensor, decay: Tensor, turns: Tensor | None, theta: Tensor | None, end: Tensor
) -> Tensor:
    """What a stretch makes of the state `[R, C]` that enters it."""
    if theta is None:
        return decay * state + end
    phase = torch.remainder(turns[:, None].double() * theta.double(), 2 * math.pi)
    cos = phase.cos().to(state.dtype)
    sin = phase.sin().to(state.dtype)
    re, im = state.chunk(2, -1)
    return torch.cat([decay * (cos * re - sin * im), decay * (sin * re + cos * im)], -1) + end


def hgru_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.hgru_scan_backward`."""
    candidate, forget, lower_bound, theta, initial_state, *where = scan
    room = _room(lower_bound, forget)
    return _backward(grad_h, grad_final, candidate, forget, room, theta, initial_state, h, *where)


def gated_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan`."""
    x, log_f, _, *rest = scan
    return _forward(x, log_f, None, *rest)


def gated_scan_backward(
    scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `hgrn.ops.engines.Engine.gated_scan_backward`."""
    _, log_f, _, theta, initial_state, *where = scan
    dx, df, _, grad_theta, grad_initial = _backward(
        grad_h, grad_final, None, log_f, None, theta, initial_state, h, *where
    )
    return dx, df, grad_theta, grad_initial
