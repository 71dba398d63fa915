"""The language of the CPU kernels: what rows do, and what kernels are compiled to."""

import pytest
import torch

from hgrn.ops import available_engines

if "numba" not in available_engines("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

from numba import cfunc, types

from hgrn.ops.cpu import gates, gla, hgrn2, layer, linear, scan, threads
from hgrn.ops.cpu.language import OPTIONS, Kernel
from hgrn.ops.cpu.rows import number, second

KERNELS = {
    name: kernel
    for module in (gla, hgrn2, layer, linear, scan)
    for name, kernel in vars(module).items()
    if isinstance(kernel, Kernel)
}
SCANS = [(parts, fused) for parts in (1, 2) for fused in (0, 1)]
CONSTANTS = {
    "scan_forward": SCANS,
    "scan_backward": SCANS,
    "gated_norm": [(gates.SILU,)],
    "gated_norm_backward": [(gates.SILU,)],
    "gated_unit": [(gates.SILU,)],
    "gated_unit_backward": [(gates.SILU,)],
    "gla_forward": [(64,)],
    "gla_backward": [(64,)],
    "hgrn2_inputs": [(gates.SILU, gates.IDENTITY)],
    "hgrn2_inputs_backward": [(gates.SILU, gates.IDENTITY)],
    "hgrn2_step": [(64, gates.SILU, gates.IDENTITY)],
}
VARIANTS = [(name, constants) for name in KERNELS for constants in CONSTANTS.get(name, [()])]


@pytest.mark.parametrize("name, constants", VARIANTS, ids=str)
def test_float32_is_computed_with_in_vectors_of_float32(name, constants):
    """An integer that meets a float32 makes a float64 of it in Numba: right, but half the speed."""
    kernel = KERNELS[name]
    compiled = cfunc(types.void(kernel.call("float32", *constants)), **OPTIONS)(kernel.function)
    code = compiled.inspect_llvm()
    assert "x float>" in code and "double" not in code


@Kernel(tensors="x y", states="sums", integers="counts", flags="mask", bytes="small")
def every_row(call, task):
    """Adds what the rows hold, moves on, and writes to each kind that a kernel writes to."""
    total = number(call.sums, 0)
    for j in range(3):
        if not call.mask or call.mask[j]:
            total += call.x[j] + call.small[j]
    call.sums[0] = total
    call.counts[0] = call.counts[0] + 1
    later = call.y + 1
    later[0] = call.x[0]
    second(later, 2)[0] = call.x[1]


def run(dtype, x, mask):
    """Runs `every_row`: y `[5]`, the sum and the count that it leaves."""
    x = torch.tensor(x, dtype=dtype)
    y = torch.zeros(5, dtype=dtype)
    sums = torch.zeros(1, dtype=torch.promote_types(dtype, torch.float32))
    counts = torch.tensor([2**40])
    small = torch.tensor([-128, 127, 1], dtype=torch.int8)
    address = every_row.address(str(dtype).removeprefix("torch."))
    block = every_row.block(
        1,
        x=x.data_ptr(),
        y=y.data_ptr(),
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        mask=0 if mask is None else mask.data_ptr(),
        small=small.data_ptr(),
    )
    threads.run(address, block, 0)
    return y, sums.item(), counts.item()


@pytest.mark.parametrize("mask", [None, [True, False, True]], ids=["no mask", "mask"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_rows_of_every_kind_are_read_and_written(dtype, mask):
    y, total, count = run(dtype, [1.5, -2.0, 3.0], None if mask is None else torch.tensor(mask))
    assert y.tolist() == [0, 1.5, 0, -2, 0]
    assert total == (2.5 + 0 if mask is None else 1.5 - 128 + 3 + 1)
    assert count == 2**40 + 1


def test_more_rows_than_streams_are_refused():
    with pytest.raises(ValueError, match="a kernel has at most 16 rows, got 17"):
        Kernel(tensors=" ".join(f"x{n}" for n in range(17)))
