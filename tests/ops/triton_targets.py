"""Run as a program: compiles the Triton kernels for a target without having it, and prints what each costs, as JSON.

python -m tests.ops.triton_targets cuda 90
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hgrn.ops.triton import kernels
from hgrn.ops.triton.launch import Tile, tile_of

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SIZES = ("steps", "rows", "stretch", "parts")
_NARROW = (
    "x",
    "f",
    "h",
    "dh",
    "dx",
    "df",
)  # of the tensors' dtype; all other tensors are of the state's
_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
_CHANNELS = 1024


def compile_kernel(kernel, dtype: str, target: GPUTarget, options: dict[str, int], **flags):
    """As the engine calls it: absent tensors are None, and tensors begin at multiples of 16 bytes."""
    absent = set()
    if not flags["COMPLEX"]:
        absent |= {"turns", "theta", "dtheta"}
    if not flags.get("FUSED", True):
        absent |= {"room", "dlower"}
    if not flags.get("MASKED", True):
        absent.add("mask")
    if not flags.get("PACKED", True):
        absent.add("bounds")
    if not flags.get("CARRY", True):
        absent |= {"decay", "turns"}
    kinds = {"mask": "*i32", "bounds": "*i64", "turns": "*i64"}
    signature = {}
    constants = {}
    attributes = {}
    for number, name in enumerate(kernel.arg_names):
        if name in flags or name in absent:
            signature[name], constants[(number,)] = "constexpr", flags.get(name)
        elif name in _SIZES or name.endswith(("_outer", "_inner")):
            signature[name] = "i32"
        else:
            signature[name] = kinds.get(
                name, "*" + dtype if name in _NARROW else f"*{flags['WIDE']}"
            )
        if signature[name].startswith("*") or name.endswith(("_outer", "_inner")):
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def compile_scan(
    kernel, dtype: str, target: GPUTarget, is_complex: bool, tile: Tile, masked: bool = False
):
    """A kernel of a scan of `_CHANNELS` channels in a block as wide as the tile's, contiguous but for the inputs' rows."""
    width = _CHANNELS * (2 if is_complex else 1)
    nvidia = target.backend == "cuda"
    times = dict(x_time=width + _CHANNELS, f_time=width + _CHANNELS) | (
        {"dh_time": width} if kernel is kernels.scan_backward else {}
    )
    return compile_kernel(
        kernel,
        dtype,
        target,
        tile.options(nvidia, target.warp_size),
        **times,
        inner=1,
        channels=_CHANNELS,
        REVERSE=False,
        COMPLEX=is_complex,
        FUSED=True,
        MASKED=masked,
        PACKED=masked,
        WRITE=True,
        CARRY=False,
        WIDE=tl.float64 if dtype == "fp64" else tl.float32,
        PTX=nvidia and dtype != "fp64",
        **tile.constants(nvidia),
    )


def costs(compiled, target: GPUTarget) -> dict[str, int]:
    """Registers of a thread, what of them is spilled to memory, and bytes of shared memory.

    Scalar registers of AMD spill into lanes of vector registers.
    """
    shared = {"shared": compiled.metadata.shared}
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, vector, scalar = (
            int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        )
        return {"registers": registers, "spilled": vector, "scalar": scalar} | shared
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        arch = f"sm_{target.arch}{'a' if target.arch == 90 else ''}"
        command = [_TOOLS / "ptxas", "-v", f"--gpu-name={arch}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups()
    return {
        "registers": int(re.search(r"(\d+) registers", said)[1]),
        "spilled": int(stores) + int(loads),
    } | shared


def instructions(compiled) -> int:
    """How many a thread executes for a tile, in NVIDIA's machine code: those of the longest loop."""
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        lines = subprocess.run(
            [_TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    labels = {}
    longest = 0
    number = 0
    for line in map(str.strip, lines):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = number
        elif re.match(r"/\*[0-9a-f]{4,}\*/ ", line):
            number += 1
            jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            longest = max(longest, number - labels.get(jump[1], number) if jump else 0)
    return longest


def main(backend: str, arch: str) -> None:
    target = GPUTarget(
        backend, arch if backend == "hip" else int(arch), 64 if backend == "hip" else 32
    )
    found = {}
    for kernel, dtype, is_complex in itertools.product(
        (kernels.scan, kernels.scan_backward), _BYTES, (False, True)
    ):
        tile = tile_of(is_complex, _BYTES[dtype], kernel is kernels.scan_backward, 32)
        for masked in (
            (False, True) if dtype == "bf16" else (False,)
        ):  # masked: the most that a kernel ever does
            compiled = compile_scan(kernel, dtype, target, is_complex, tile, masked)
            cost = costs(compiled, target)
            if backend == "cuda":
                cost["instructions"] = round(
                    instructions(compiled) / (tile.rows * tile.vector), 1
                )  # for a position of a channel
            found[
                f"{kernel.__name__} {dtype} {'complex' if is_complex else 'real'}{' masked packed' if masked else ''}"
            ] = cost
    chained = compile_kernel(
        kernels.chain,
        "fp32",
        target,
        {"num_warps": 4},
        channels=_CHANNELS,
        COMPLEX=True,
        BACKWARD=True,
        WIDE=tl.float32,
        BD=128,
    )
    found["chain"] = costs(chained, target)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
