"""How the GPU engine cuts a scan into programs: tiles, blocks of channels, parts of time."""

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.triton import forward

WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}
# A part of time has this many tiles at least, or the first pass over it does not pay.
_FEWEST_TILES = 4
_BLOCKS = (64, 32, 16, 8)  # channels of a program, widest first
# Numbers that a thread reads at a position of a channel; the keys are `is_complex, backward`.
_NUMBERS = {(False, False): 2, (False, True): 4, (True, False): 3, (True, True): 7}
# Bytes of the tiles that are on the way to a program. Two programs fit on an H100 with this, and
# one on every GPU.
_BYTES_AHEAD = 2**16
# Triton's interpreter takes none of NVIDIA's options and instructions.
_NVIDIA = torch.version.cuda is not None and isinstance(forward.scan, triton.JITFunction)


@dataclass(frozen=True)
class Tile:
    """What a program works on in one turn: `slots` slots of `rows` positions, by `block` channels.

    vector: channels of one load of a thread.
    threads: of a program.
    stages: tiles in flight, the one at work among them.
    registers: of a thread, at most; None leaves it to the compiler.
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
        """Positions of a tile."""
        return self.rows * self.slots

    def constants(self, nvidia: bool) -> dict[str, int]:
        """What the kernels are compiled with."""
        # AMD's compiler keeps tiles in flight in registers, so only one may be on its way.
        stages = self.stages if nvidia else 2
        return dict(R=self.rows, W=self.slots, BD=self.block, V=self.vector, STAGES=stages)

    def options(self, nvidia: bool, warp: int) -> dict[str, int]:
        """Options of the compiler, for warps of so many threads."""
        options = {"num_warps": self.threads // warp}
        if nvidia and self.registers:
            options["maxnreg"] = self.registers
        return options


def tile_of(is_complex: bool, itemsize: int, backward: bool, block: int) -> Tile:
    """The tile for a kind of state, the bytes of a number, a direction and a block of channels.

    A thread holds `rows * vector` positions of channels: as many as let two programs of 256
    threads, or three of 128, share the registers of a multiprocessor. float64 has to work, not to
    be fast. docs/gpu.md counts.
    """
    vector = 2 if is_complex or backward else 4
    rows = 8 if not backward and itemsize <= (4 if is_complex else 2) else 4
    threads = 128 if is_complex and backward else 256
    tile_bytes = _NUMBERS[is_complex, backward] * rows * vector * threads * itemsize
    ahead = min(2, _BYTES_AHEAD // tile_bytes)
    registers = 168 if threads == 128 else 128
    if itemsize == 8:
        registers = None
    return Tile(rows, threads * vector // block, block, vector, threads, 1 + ahead, registers)


@cache
def chip(device: torch.device) -> Any:
    """What PyTorch knows of a GPU. The interpreter has one multiprocessor."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device)
    return SimpleNamespace(multi_processor_count=1, warp_size=32)


class ScanPlan:
    """The sizes of one scan, how it is cut, and the launch of a kernel over all programs.

    Attributes:
        rows: sequences times inner indices.
        tile: what a program does in a turn.
        blocks: blocks of channels.
        parts: parts of time S, each of `part_steps` positions.
        wide: dtype of states and sums.
        flags: what the kernels are compiled with.
    """

    def __init__(self, scan: Scan, backward: bool = False):
        _, self.steps, self.inner, self.width = scan.x.shape
        self.scan = scan
        self.channels = scan.channels
        self.is_complex = scan.theta is not None
        self.device = scan.x.device
        self.sequences = scan.sequences
        self.rows = self.sequences * self.inner
        self.wide = at_least_float32(scan.x.dtype)
        # 32 bits are the narrowest that loads by way of shared memory take.
        self.mask = None if scan.mask is None else scan.mask.int().contiguous()
        self.tile = self._tile(scan.x.element_size(), backward)
        self.blocks = math.ceil(self.channels / self.tile.block)
        self.parts, self.part_steps = self._parts()
        self.flags: dict[str, Any] = dict(
            inner=self.inner,
            channels=self.channels,
            REVERSE=scan.reverse,
            COMPLEX=self.is_complex,
            MASKED=scan.mask is not None,
            PACKED=scan.cu_seqlens is not None,
            WIDE=WIDE[self.wide],
            PTX=_NVIDIA and self.wide == torch.float32,
            **self.tile.constants(_NVIDIA),
            **self.tile.options(_NVIDIA, chip(self.device).warp_size),
        )

    def _tile(self, itemsize: int, backward: bool) -> Tile:
        """That of the widest block that gives every multiprocessor nearly two programs, if any."""
        enough = 1.8 * chip(self.device).multi_processor_count
        for block in _BLOCKS:
            if math.ceil(self.channels / block) * self.rows >= enough:
                break
        return tile_of(self.is_complex, itemsize, backward, block)

    def _parts(self) -> tuple[int, int]:
        """How many parts of time, and positions of each.

        Several parts read all inputs twice, so there is one unless multiprocessors would idle.
        """
        programs = max(self.blocks * self.rows, 1)
        parts = chip(self.device).multi_processor_count // programs
        parts = min(parts, self.steps // (_FEWEST_TILES * self.tile.steps))
        if parts <= 1:
            return 1, max(self.steps, 1)
        part_steps = math.ceil(self.steps / (parts * self.tile.steps)) * self.tile.steps
        return math.ceil(self.steps / part_steps), part_steps

    @property
    def is_empty(self) -> bool:
        """Whether there is no program to run."""
        return not (self.channels and self.rows)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.device)

    def states(self, given: Tensor | None) -> Tensor:
        """States `[N, I, C]` -> `[rows, C]`; None is zeros."""
        if given is None:
            return torch.zeros(self.rows, self.width, dtype=self.wide, device=self.device)
        return given.to(self.wide).reshape(self.rows, self.width).contiguous()

    def carry_outputs(self) -> dict[str, Any]:
        """Memory for what a part does to a state beside adding to it, as kernels take it."""
        turns = None
        if self.is_complex:
            turns = torch.zeros(self.parts, self.rows, dtype=torch.int64, device=self.device)
        return {"decay": self.empty(self.parts, self.rows, self.channels), "turns": turns}

    def launch(self, kernel: Any, **arguments: Any) -> None:
        """Runs `scan` or `scan_backward` over all rows, blocks and parts."""
        if self.is_empty:
            return
        with torch.cuda.device_of(self.scan.gate):
            kernel[(self.blocks * self.rows, self.parts)](
                **arguments,
                mask=self.mask,
                boundaries=self.scan.cu_seqlens,
                steps=self.steps,
                rows=self.rows,
                part_steps=self.part_steps,
                **self.flags,
            )

    def chained(
        self, entering: Tensor, decay: Tensor, turns: Tensor | None, end: Tensor, *, backward: bool
    ) -> Tensor:
        """What enters each part, `[S, rows, C]`, from what enters the first (last if backward)."""
        states = torch.empty_like(end)
        if self.is_empty:
            return states
        kernel: Any = forward.chain
        with torch.cuda.device_of(end):
            kernel[(math.ceil(self.channels / 128) * self.rows,)](
                entering,
                decay,
                turns,
                end,
                self.scan.theta,
                states,
                self.rows,
                self.parts,
                channels=self.channels,
                COMPLEX=self.is_complex,
                BACKWARD=backward,
                WIDE=WIDE[self.wide],
                BD=128,
            )
        return states
