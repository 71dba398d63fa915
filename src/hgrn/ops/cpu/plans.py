"""How a call of a kernel is put together: its tasks, and the block of integers that it reads.

A `Launch` is a kernel with a block, ready to run. The functions and the class here make one from
tensors: `ScanPlan` for scans, `rows_launch` for norms and units, `linear_launch` for linear maps.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.arguments import Scan, at_least_float32
from hgrn.ops.cpu import threads
from hgrn.ops.cpu.gates import ACTIVATIONS
from hgrn.ops.cpu.language import NEXT, Kernel

# Channels of one task of a scan, at most: their states and parameters stay near the core.
_CHANNELS = 1024
# Blocks of channels are multiples of this many, a cache line of float32.
_LINE = 16
# Rows of one task of a norm, a unit or a linear map: few enough to keep all threads busy, and so
# many that the partial sums of a backward cost little.
ROWS = 64


class Launch(addresses.HoldsAddresses):
    """A kernel and a block for it, to be run once or many times.

    Args:
        kernel: address of the compiled kernel. block: the block of integers, which holds addresses
        of tensors. work: how many elements there are in all. tensors: what lies at those addresses;
        it is kept here so that it lives as long as the block.
    """

    def __init__(self, kernel: int, block: np.ndarray, work: int, tensors: tuple):
        self.kernel = kernel
        self.block = block
        self.work = work
        self.tensors = tensors

    def run(self) -> None:
        """Carries out all tasks."""
        self.block[NEXT] = 0  # an earlier run has taken them all
        threads.run(self.kernel, self.block, self.work)


class ScanPlan:
    """The sizes of one scan as the kernels take them, and how it is cut into tasks.

    Args:
        scan: the scan, in the canonical layout.
        fused: whether this is `hgru_scan` or `hgru_carry`; otherwise it is `gated_scan`.
    """

    def __init__(self, scan: Scan, *, fused: bool):
        self.scan = scan
        self.fused = fused
        self.channels = scan.channels
        self.sequences = scan.sequences
        self.parts = scan.x.shape[-1] // max(self.channels, 1)
        self.dtype = scan.x.dtype
        self.accumulate = at_least_float32(scan.x.dtype)
        self.inner = scan.x.shape[2]
        self.rows = self.sequences * self.inner

        # As many blocks of channels as it takes for each thread to have a task.
        for_threads = groups(threads.count(), max(self.rows, 1))
        wanted = max(for_threads, groups(self.channels, _CHANNELS))
        self.block = max(1, groups(self.channels, wanted * _LINE)) * _LINE
        self.blocks = groups(self.channels, self.block)

    def states(self, given: Tensor | None) -> Tensor:
        """Running states `[N, I, C]`: a copy of `given`, or zeros."""
        if given is not None:
            return given.clone(memory_format=torch.contiguous_format)
        return torch.zeros(
            self.sequences,
            self.inner,
            self.parts * self.channels,
            dtype=self.accumulate,
            device="cpu",
        )

    def _parameters(self) -> dict[str, Tensor | int]:
        """`1 - lower_bound`, cosine and sine of theta, each `[D]`; 0 for what no kernel reads."""
        parameters: dict[str, Tensor | int] = {"complement": 0, "cos": 0, "sin": 0}
        lower_bound = self.scan.lower_bound
        if lower_bound is not None:
            parameters["complement"] = 1 - lower_bound
        elif self.fused:
            ones = torch.ones(self.channels, dtype=self.accumulate, device="cpu")
            parameters["complement"] = ones
        if self.scan.theta is not None:
            # The angles are float64, so that cosine and sine are rounded once.
            theta = self.scan.theta.double()
            parameters["cos"] = theta.cos().to(self.accumulate)
            parameters["sin"] = theta.sin().to(self.accumulate)
        return parameters

    def launch(
        self,
        kernel: Kernel,
        dense: dict[str, Tensor],
        strided: dict[str, Tensor] | None = None,
        **states: Tensor | int,
    ) -> Launch:
        """The kernel over all tasks.

        Args:
            dense: contiguous tensors in the dtype of x. strided: tensors `[O, T, I, C]` in the
            dtype of x besides x and the gate, which the kernel
                only reads. Strides of the first three axes are free.
            states: contiguous tensors in the dtype of states; 0 for what is absent.
        """
        scan = self.scan
        strided = {"x": scan.x, "gate": scan.gate} | (strided or {})
        strided = {name: unit_last_stride(x) for name, x in strided.items()}
        states |= self._parameters()
        bounds = scan.cu_seqlens
        if bounds is not None:
            bounds = bounds.to(torch.int64).contiguous()
        mask = None if scan.mask is None else scan.mask.contiguous()

        fields = addresses_of(self.dtype, dense, states)
        for name, x in strided.items():
            fields[name] = addresses.address_of_rows(x, self.dtype)
            for axis, stride in zip(("outer", "time", "inner"), x.stride()):
                fields[f"{name}_{axis}"] = stride
        block = kernel.block(
            self.rows * self.blocks,
            steps=scan.x.shape[1],
            inner=self.inner,
            channels=self.channels,
            blocks=self.blocks,
            block=self.block,
            reverse=scan.reverse,
            bounds=addresses.optional(bounds, torch.int64),
            mask=addresses.optional(mask, torch.bool),
            **fields,
        )
        address = kernel.address(name_of(self.dtype), parts=self.parts, fused=self.fused)
        tensors = (bounds, mask, *strided.values(), *dense.values(), *states.values())
        return Launch(address, block, scan.x.numel(), tensors)


def rows_launch(
    kernel: Kernel,
    like: Tensor,
    rows: dict[str, Tensor],
    dense: dict[str, Tensor],
    *,
    activation: str = "identity",
    gate_first: bool = False,
    centred: bool = True,
    **states: Tensor | int,
) -> Launch:
    """A kernel of `layer` over the rows of `like` `[..., C]`.

    Args:
        rows: tensors `[R, C]` in the dtype of `like`; the stride from row to row is free.
        dense: contiguous tensors in that dtype.
        states: contiguous tensors in the dtype of states.
    """
    dtype = like.dtype
    width = like.shape[-1]
    count = like.numel() // max(width, 1)
    fields = addresses_of(dtype, dense, states)
    for name, x in rows.items():
        fields[name] = addresses.address_of_rows(x, dtype)
        fields[f"{name}_row"] = x.stride(0)
    block = kernel.block(
        groups(count, ROWS),
        rows=count,
        block=ROWS,
        width=width,
        gate_first=gate_first,
        centred=centred,
        **fields,
    )
    address = kernel.address(name_of(dtype), activation=ACTIVATIONS[activation])
    tensors = (*rows.values(), *dense.values(), *states.values())
    return Launch(address, block, like.numel(), tensors)


def linear_launch(
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    add: Tensor | None = None,
    scale: Tensor | None = None,
) -> Launch:
    """A linear map of the rows of x `[R, I]`, which have unit last stride, into y `[R, O]`.

    All tensors have one dtype, and all but x are contiguous. With a scale the weight is int8.
    """
    out, width = weight.shape
    dtype = x.dtype
    block = kernel.block(
        groups(out, ROWS),
        rows=out,
        block=ROWS,
        width=width,
        batch=x.shape[0],
        x=addresses.address_of_rows(x, dtype),
        x_row=x.stride(0),
        y=addresses.address(y, dtype),
        bias=addresses.optional(bias, dtype),
        weight=addresses.address(weight, dtype if scale is None else torch.int8),
        add=addresses.optional(add, dtype),
        scale=addresses.optional(scale, dtype),
    )
    tensors = (x, weight, bias, y, add, scale)
    return Launch(kernel.address(name_of(dtype)), block, weight.numel(), tensors)


def addresses_of(
    dtype: torch.dtype, dense: dict[str, Tensor], states: dict[str, Tensor | int]
) -> dict[str, int]:
    fields = {name: addresses.address(x, dtype) for name, x in dense.items()}
    accumulate = at_least_float32(dtype)
    for name, x in states.items():
        fields[name] = addresses.address(x, accumulate) if isinstance(x, Tensor) else x
    return fields


def unit_last_stride(x: Tensor) -> Tensor:
    """x itself if neighbours along its last axis are neighbours in memory, otherwise a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def groups(count: int, size: int) -> int:
    """How many groups of `size` it takes to hold `count`."""
    return -(-count // size)


@cache
def name_of(dtype: torch.dtype) -> str:
    """The dtype as `Kernel` calls it: "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
