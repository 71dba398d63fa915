"""The language of the CPU kernels: the fields of a call, typed access to memory, and the arithmetic of gates.

A kernel is a function of one argument, a `Call`: the address of a block of 64-bit integers (sizes, strides, addresses of
tensors) whose places its `fields` name, so that a kernel reads `call.steps`. The dtype of the tensors and a variant, a small
number whose meaning is the kernel's own, belong to the argument's type; a kernel is compiled for each pair when it is first
used. `call.token` stands for the dtype of the tensors (float32, float64, uint16 for bfloat16, int16 for float16), `call.one` is
the number 1 in the dtype of the state. Values are float32 in registers, float64 for float64.

An access names its stream, a small constant: different streams never overlap, which LLVM could otherwise only find out by more
run-time checks than it is willing to make, and would then give up on vector code.
"""

import hashlib
import logging
import math
import pickle
import sys
from functools import cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.datamodel import models
from numba.core.serialize import dumps
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    overload,
    register_model,
)

from hgrn.ops.cpu.cache import KernelFile, warn_once

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set; unset it for a fast one")

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# Calls

# Kernels use what stands in other files than their own.
_SOURCES = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]
# The first places of every call: how many tasks there are, and the next one that nobody has taken.
_COMMON = ("tasks", "next")
_STREAMS = 24
_SIZE = {types.float32: 4, types.float64: 8, types.uint16: 2, types.int16: 2}
_TOKENS = {
    "float32": types.float32,
    "float64": types.float64,
    "bfloat16": types.uint16,
    "float16": types.int16,
}


def _value_type(token):
    return types.float64 if token == types.float64 else types.float32


class Call(types.Type):
    """The type of a kernel's argument."""

    def __init__(self, fields: tuple[str, ...], token, variant: int):
        self.fields = fields
        self.token = token
        self.variant = variant
        super().__init__(f"Call({token}, {variant}, {', '.join(fields)}, {_SOURCES})")


@register_model(Call)
class _CallModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.IntType(64))


@infer_getattr
class _CallAttributes(AttributeTemplate):
    key = Call

    def generic_resolve(self, call, name):
        if name in ("token", "one"):
            return call.token if name == "token" else _value_type(call.token)
        return types.int64 if name == "variant" or name in call.fields else None


@lower_getattr_generic(Call)
def _field(context, builder, call, value, name):
    if name == "token":
        return context.get_constant(call.token, 0)
    if name == "one":
        return context.get_constant(_value_type(call.token), 1)
    if name == "variant":
        return context.get_constant(types.int64, call.variant)
    pointer = builder.inttoptr(value, ir.IntType(64).as_pointer())
    return builder.load(
        builder.gep(pointer, [ir.Constant(ir.IntType(64), call.fields.index(name))])
    )


@intrinsic
def next_task(typing, call):
    """Takes one of the tasks that nobody has taken yet, and returns its number; `call.tasks` or more if none is left."""

    def generate(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        pointer = builder.gep(
            builder.inttoptr(arguments[0], i64.as_pointer()),
            [ir.Constant(i64, _COMMON.index("next"))],
        )
        return builder.atomic_rmw("add", pointer, ir.Constant(i64, 1), "monotonic")

    return types.int64(call), generate


def _probe():
    """Compiled by nobody: only asked where its compiled form could be kept."""


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept on disk: the folder that Numba picks; None if none is writable, which is said once."""
    try:
        return Path(FunctionCache(_probe).cache_path)
    except (RuntimeError, OSError) as error:
        warn_once(None, str(error))
        return None


class _Kept:
    """A compiled kernel on disk, as Numba's `CFunc` asks for it."""

    def __init__(self, name: str, folder: Path):
        self._name = name
        self._folder = folder

    def _file(self, codegen) -> KernelFile:
        python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")  # Windows has no flags
        place = repr((codegen.magic_tuple(), numba.__version__, llvmlite.__version__, python))
        return KernelFile(self._folder, self._name, place, _SOURCES)

    def load_overload(self, signature, context):
        context.refresh()
        payload = self._file(context.codegen()).load()
        return None if payload is None else CompileResult._rebuild(context, *pickle.loads(payload))

    def save_overload(self, signature, result) -> None:
        self._file(result.codegen).save(dumps(result._reduce()))


# Contraction into fused multiply-adds is the only liberty: NaN and infinity keep their meaning.
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}
helper = njit(**_OPTIONS)
# For loops that sum along a row, which only in an order of its own choice become vector code.
summing = njit(fastmath={"contract", "reassoc"}, error_model="numpy")
# Inlined before LLVM sees it: LLVM's own inliner runs too late for the loop around the call to become vector code.
arithmetic = njit(inline="always", **_OPTIONS)


@cache
def _announce() -> None:
    """Says once that compiling is what takes the time."""
    log.info("compiling kernels for this processor (some seconds in all)")


class Kernel:
    """A kernel: a Python function of one `Call` whose fields are named here, compiled for a dtype when first used."""

    def __init__(self, fields: str):
        self.fields = (*_COMMON, *fields.split())

    def __call__(self, function) -> "Kernel":
        self.function = function
        self.compiled = cache(self._compile)
        return self

    def _compile(self, dtype: str, variant: int):
        made = CFunc(
            self.function, ((Call(self.fields, _TOKENS[dtype], variant),), types.void), {}, _OPTIONS
        )
        if (folder := cache_folder()) is not None:
            module = self.function.__module__.rpartition(".")[-1]
            made._cache = _Kept(f"{module}.{self.function.__qualname__}-{dtype}-{variant}", folder)
        made.compile()
        if not made.cache_hits:
            _announce()
        return made

    def address(self, dtype: str, variant: int) -> int:
        """Where the machine code for a dtype ("float32", ...) and a variant is: a C function of one pointer."""
        return self.compiled(dtype, variant).address

    def block(self, tasks: int, **values: int) -> np.ndarray:
        """The block of integers for one call; every field must be given."""
        return np.array(
            (tasks, 0, *map(values.__getitem__, self.fields[len(_COMMON) :])), dtype=np.int64
        )


@intrinsic
def enter(typing, kernel, block):
    """Calls the kernel at an address with a block."""

    def generate(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        function = builder.inttoptr(
            arguments[0], ir.FunctionType(ir.VoidType(), [i64]).as_pointer()
        )
        builder.call(function, [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def enter_parallel(typing, parallel, kernel, block, threads):
    """As `enter` on so many threads, by the function at address `parallel`: OpenMP's `GOMP_parallel`."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        i64 = ir.IntType(64)
        function = builder.inttoptr(
            arguments[0], ir.FunctionType(ir.VoidType(), [i64, i64, i32, i32]).as_pointer()
        )
        builder.call(
            function,
            [arguments[1], arguments[2], builder.trunc(arguments[3], i32), ir.Constant(i32, 0)],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


# ---------------------------------------------------------------------------------------------------------------------
# Memory

_MEMORY_TYPE = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.uint16: ir.IntType(16),
    types.int16: ir.HalfType(),
}


def _element(builder, token, address, index):
    return builder.gep(builder.inttoptr(address, _MEMORY_TYPE[token].as_pointer()), [index])


def _mark(module, instruction, stream: int) -> None:
    """Tells LLVM that the access belongs to `stream` and overlaps no other one."""
    domain = module.add_metadata(["hgrn"])
    scopes = [module.add_metadata([f"hgrn.{k}", domain]) for k in range(_STREAMS)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[stream]]))
    instruction.set_metadata(
        "noalias", module.add_metadata([s for k, s in enumerate(scopes) if k != stream])
    )


@intrinsic(prefer_literal=True)
def load(typing, token, address, index, stream):
    """The value at `address[index]`, widened to the type in which it is computed with."""
    number = stream.literal_value

    def generate(context, builder, signature, arguments):
        value = builder.load(
            _element(builder, token, arguments[1], arguments[2]), align=_SIZE[token]
        )
        _mark(builder.module, value, number)
        if token == types.uint16:  # bfloat16 is the upper half of a float32
            wide = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(wide, ir.FloatType())
        return builder.fpext(value, ir.FloatType()) if token == types.int16 else value

    return _value_type(token)(token, types.int64, types.int64, stream), generate


@intrinsic(prefer_literal=True)
def store(typing, token, address, index, value, stream):
    """Writes `address[index] = value`, rounded once to the nearest (ties to even)."""
    number = stream.literal_value

    def generate(context, builder, signature, arguments):
        _, address, index, value, _ = arguments
        if token == types.uint16:
            i32 = ir.IntType(32)
            bits = builder.bitcast(value, i32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(i32, 0x7FFF)))
            quiet = builder.or_(
                bits, ir.Constant(i32, 0x400000)
            )  # rounding up must not turn a NaN into infinity
            bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
            value = builder.trunc(builder.lshr(bits, ir.Constant(i32, 16)), ir.IntType(16))
        elif token == types.int16:
            value = builder.fptrunc(value, ir.HalfType())
        written = builder.store(value, _element(builder, token, address, index), align=_SIZE[token])
        _mark(builder.module, written, number)
        return context.get_dummy_value()

    return types.void(token, types.int64, types.int64, _value_type(token), stream), generate


@intrinsic
def load_index(typing, address, index):
    """The int64 at `address[index]`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def store_index(typing, address, index, value):
    """Writes the int64 at `address[index]`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(arguments[2], builder.gep(pointer, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def load_flag(typing, address, index):
    """The byte of a bool tensor at `address[index]`, as a truth value."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return cgutils.is_not_null(builder, builder.load(builder.gep(pointer, [arguments[1]])))

    return types.boolean(types.int64, types.int64), generate


@intrinsic
def load_byte(typing, one, address, index):
    """The signed byte at `address[index]`, as a number of the type of `one`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[1], ir.IntType(8).as_pointer())
        byte = builder.load(builder.gep(pointer, [arguments[2]]))
        return builder.sitofp(builder.sext(byte, ir.IntType(32)), context.get_value_type(one))

    return one(one, types.int64, types.int64), generate


@intrinsic
def number(typing, one, n):
    """The integer n as a number of the type of `one`: a float32 and an integer would meet in float64, at half the speed."""

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[1], context.get_value_type(one))

    return one(one, types.int64), generate


@intrinsic
def itemsize(typing, token):
    """Bytes of one element in memory."""
    size = _SIZE[token]
    return types.int64(token), lambda context, builder, signature, arguments: ir.Constant(
        ir.IntType(64), size
    )


@intrinsic
def _prefetch_line(typing, address):
    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read = ir.Constant(i32, 0)
        near = ir.Constant(i32, 2)
        data = ir.Constant(i32, 1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@helper
def prefetch(address, size):
    """Asks for the cache lines of `size` bytes from `address`, which need not be memory of ours; waits for nothing."""
    for offset in range(0, size, 64):
        _prefetch_line(address + offset)


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


@intrinsic
def select(typing, condition, yes, no):
    """`yes if condition else no` without a branch."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return yes(types.boolean, yes, yes), generate


@intrinsic
def inverse(typing, x):
    """`1 / x` for x between 1 and 2, or NaN; in float32 from an estimate and a Newton step where vectors have one.

    The estimate gives wrong results only at 0 and infinity, which is what the flags admit and the range excludes.
    """

    def generate(context, builder, signature, arguments):
        flags = ("arcp", "ninf", "contract") if x == types.float32 else ()
        return builder.fdiv(context.get_constant(x, 1), arguments[0], flags=flags)

    return x(x), generate


@intrinsic
def _power_of_two(typing, shifted):
    """`2^n` for a float32 that holds `n + 1.5 * 2^23`: its low bits are n, moved into the place of the exponent."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], i32), ir.Constant(i32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(i32, 0x3F800000)), ir.FloatType())

    return types.float32(types.float32), generate


def exp_nonpositive(x):
    """`exp(x)` for x <= 0; 0 below the smallest normal result; NaN stays NaN."""
    return math.exp(x)


_LOG2E = np.float32(1 / math.log(2))
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-87.33)
_ZERO = np.float32(0)
# 2^r = 1 + C1 r + ... + C5 r^5 on |r| <= 1/2, fitted for the smallest relative error: 1.1e-7.
_ONE = np.float32(1)
_C1, _C2, _C3, _C4, _C5 = (
    np.float32(c)
    for c in (
        0.6931470036506653,
        0.24022242426872253,
        0.05550733581185341,
        0.009671512991189957,
        0.001326472731307149,
    )
)


@overload(exp_nonpositive, inline="always", jit_options=_OPTIONS)
def _(x):
    if x == types.float64:
        return lambda x: math.exp(x)

    def single(x):
        shifted = x * _LOG2E + _SHIFT
        r = x * _LOG2E - (
            shifted - _SHIFT
        )  # contracted: the product is not rounded before the subtraction
        series = _ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * _C5))))
        return select(x < _LOWEST, _ZERO, series * _power_of_two(shifted))

    return single


@arithmetic
def sigmoid(one, x):
    """`sigmoid(x)`, to full precision where it is close to 0 too; 0 or 1 exactly where it is saturated."""
    e = exp_nonpositive(-abs(x))
    small = e * inverse(one + e)
    return select(x >= 0, one - small, small)


@arithmetic
def sigmoid_pair(one, x):
    """`sigmoid(x)` and `sigmoid(-x)`; the smaller one is never a difference."""
    e = exp_nonpositive(-abs(x))
    small = e * inverse(one + e)
    positive = x >= 0
    large = one - small
    return select(positive, large, small), select(positive, small, large)


@arithmetic
def silu(one, x):
    """`x * sigmoid(x)`."""
    return x * sigmoid(one, x)


@arithmetic
def silu_pair(one, x):
    """`x * sigmoid(x)` and its derivative."""
    on, off = sigmoid_pair(one, x)
    return x * on, on + x * on * off
