"""Compiles the Triton kernels for a GPU that need not be here, and prints their costs as JSON.

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

from hgrn.ops.triton.backward import scan_backward
from hgrn.ops.triton.forward import chain, scan
from hgrn.ops.triton.plan import Tile, tile_of

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SIZES = ("steps", "rows", "part_steps", "parts")
_NARROW = ("x", "gate", "h", "dh", "dx", "dgate")  # other tensors have the dtype of the state
_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
_CHANNELS = 1024


def compile_kernel(kernel, dtype: str, target: GPUTarget, options: dict[str, int], **flags):
    """Compiles a kernel as the engine calls it.

    Absent tensors are None, and tensors begin at multiples of 16 bytes.
    """
    absent = set()
    if not flags["COMPLEX"]:
        absent |= {"turns", "theta", "dtheta"}
    if not flags.get("FUSED", True):
        absent |= {"complement", "dlower"}
    if not flags.get("MASKED", True):
        absent.add("mask")
    if not flags.get("PACKED", True):
        absent.add("boundaries")
    if not flags.get("CARRY", True):
        absent |= {"decay", "turns"}
    kinds = {"mask": "*i32", "boundaries": "*i64", "turns": "*i64"}
    signature = {}
    constants = {}
    attributes = {}
    for number, name in enumerate(kernel.arg_names):
        if name in flags or name in absent:
            signature[name] = "constexpr"
            constants[(number,)] = flags.get(name)
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
    """Compiles a scan of `_CHANNELS` channels in blocks as wide as the tile's.

    Candidate and gate are slices of one projection, as in a layer; all else is contiguous.
    """
    width = _CHANNELS * (2 if is_complex else 1)
    nvidia = target.backend == "cuda"
    times = dict(x_time=width + _CHANNELS, gate_time=width + _CHANNELS)
    if kernel is scan_backward:
        times["dh_time"] = width
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
    """Registers of a thread, bytes of them that are spilled, and bytes of shared memory.

    On AMD it counts spilled registers, and scalar ones by themselves: they spill into lanes of
    vector registers, not into memory.
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
    """How many instructions a thread executes for a tile: the longest loop of the machine code."""
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        lines = subprocess.run(
            [_TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    # A loop ends with a jump back to a label; its length is the distance in instructions.
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
        (scan, scan_backward), _BYTES, (False, True)
    ):
        tile = tile_of(is_complex, _BYTES[dtype], kernel is scan_backward, 32)
        # A kernel does most where positions are masked and packed.
        for masked in (False, True) if dtype == "bf16" else (False,):
            compiled = compile_scan(kernel, dtype, target, is_complex, tile, masked)
            cost = costs(compiled, target)
            if backend == "cuda":
                # A thread has so many positions of channels in a tile.
                positions = tile.rows * tile.vector
                cost["instructions"] = round(instructions(compiled) / positions, 1)
            words = [kernel.__name__, dtype, "complex" if is_complex else "real"]
            words += ["masked", "packed"] if masked else []
            found[" ".join(words)] = cost
    chained = compile_kernel(
        chain,
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
