"""The language of the CPU kernels: what it turns them into."""

import pytest

from hgrn.ops import available_engines

if "numba" not in available_engines("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

from numba import cfunc, types

from hgrn.ops.cpu import gated, layer, linear, scan
from hgrn.ops.cpu.language import _OPTIONS, _TOKENS, Call, Kernel

KERNELS = {
    name: kernel
    for module in (gated, layer, linear, scan)
    for name, kernel in vars(module).items()
    if isinstance(kernel, Kernel)
}


@pytest.mark.parametrize("name", KERNELS)
def test_float32_is_not_computed_with_in_float64(name):
    """An integer that meets a float32 makes a float64 of it in Numba: right, but half as many numbers a vector."""
    kernel = KERNELS[name]
    compiled = cfunc(types.void(Call(kernel.fields, _TOKENS["float32"], 1)), **_OPTIONS)(
        kernel.function
    )
    code = compiled.inspect_llvm()
    assert "float" in code and "double" not in code
