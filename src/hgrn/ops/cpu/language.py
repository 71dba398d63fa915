"""The language of the CPU kernels: how a kernel is declared, called and compiled.

A kernel is a Python function of a `Call` and the number of a task, which it carries out:

    @Kernel(constants="parts", numbers="width", tensors="x y", states="scale")
    def scaled(call, task):
        x = call.x + task * call.width
        ...

**Block.** Whoever calls the kernel puts one block of 64-bit integers into memory: two of our own
(how many tasks there are, and the next one that nobody has taken), then the declared fields, which
are sizes, strides in elements, and addresses of tensors. The argument of the compiled function is
the address of this block. `call.width` reads a field of it.

**Types.** A field that holds the address of a tensor is a `Row` (see `rows`), so `call.x[j]` is an
element of x. The declaration says what a tensor holds: `tensors` have the dtype that the kernel is
compiled for, `states` the dtype of states (float32, or float64 for float64 tensors), `integers`
int64, `flags` bool, `bytes` int8. Each has an alias stream of its own, because outputs never
overlap inputs.

**Constants.** `constants` name small integers that are compiled in. A kernel is compiled for a
dtype and for values of its constants when they are first used, and `if call.parts == 1` then costs
nothing.

**Tasks.** Every thread runs the compiled function with the same block. It takes tasks until none is
left, by an atomic addition to the second integer of the block.
"""

import hashlib
import logging
import pickle
import sys
from functools import cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
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
from hgrn.ops.cpu.rows import MOST_STREAMS, Row

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set; unset it for a fast one")

log = logging.getLogger(__name__)

# The only liberty is to contract a product and a sum into one operation: NaN and infinity keep
# their meaning.
OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}
# A function that kernels call. Loops that should become vector code belong into one.
helper = njit(**OPTIONS)
# A helper that sums along a row. Only a sum in an order of LLVM's own choice becomes vector code.
summing = njit(fastmath={"contract", "reassoc"}, error_model="numpy")
# A function that is inlined before LLVM sees it. LLVM's own inliner runs too late for the loop
# around the call to become vector code.
arithmetic = njit(inline="always", **OPTIONS)

# A kernel also uses what other files of this folder define, so all of them are in the hash.
_SOURCES = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:12]
_I64 = ir.IntType(64)
# The first two integers of every block: how many tasks there are, and the next one to be taken.
_COMMON = ("tasks", "next")
NEXT = _COMMON.index("next")

# --------------------------------------------------------------------------------------------------
# Calls


class Call(types.Type):
    """The type of a kernel's argument: names and types of the block's integers, and the constants.

    Args:
        fields: names and types, in the order in which they lie in the block.
        constants: names and values.
    """

    def __init__(self, fields: dict[str, types.Type], constants: dict[str, int]):
        self.fields = fields
        self.constants = constants
        self.places = {name: place for place, name in enumerate(fields)}
        described = ", ".join(f"{name}: {kind}" for name, kind in fields.items())
        super().__init__(f"Call({described}, {constants}, {_SOURCES})")


@register_model(Call)
class _CallModel(models.PrimitiveModel):
    def __init__(self, manager, call):
        super().__init__(manager, call, _I64)


@infer_getattr
class _CallAttributes(AttributeTemplate):
    key = Call

    def generic_resolve(self, call, name):
        return types.int64 if name in call.constants else call.fields.get(name)


@lower_getattr_generic(Call)
def _field(context, builder, call, value, name):
    if name in call.constants:
        return context.get_constant(types.int64, call.constants[name])
    return builder.load(_integer(builder, value, call.places[name]))


def _integer(builder, block, place: int):
    """A pointer to one integer of a block."""
    return builder.gep(builder.inttoptr(block, _I64.as_pointer()), [ir.Constant(_I64, place)])


@intrinsic
def _next_task(typing, call):
    """Takes a task that nobody has taken yet: its number; `call.tasks` or more if none is left."""

    def generate(context, builder, signature, arguments):
        pointer = _integer(builder, arguments[0], NEXT)
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(call), generate


def by_constant(name: str, helpers: dict):
    """A helper that is `helpers[k]` where the constant `name` is k. No other one is compiled."""

    def chosen(call, *arguments):
        """Stands for one of the helpers."""

    @overload(chosen, jit_options=OPTIONS, strict=False)
    def _choose(call, *arguments):
        return helpers[call.constants[name]].py_func

    return chosen


# --------------------------------------------------------------------------------------------------
# Kernels on disk


def _probe():
    """Is never compiled. Numba only says where it would keep the compiled form."""


@cache
def cache_folder() -> Path | None:
    """The folder that Numba picks for compiled kernels; None, said once, if none is writable."""
    try:
        return Path(FunctionCache(_probe).cache_path)
    except (RuntimeError, OSError) as error:
        warn_once(None, str(error))
        return None


class _Kept:
    """A compiled kernel on disk, with the methods that Numba's `CFunc` wants of a cache."""

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


@cache
def _announce() -> None:
    """Says once why the first calls take long."""
    log.info("compiling kernels for this processor (some seconds in all)")


# --------------------------------------------------------------------------------------------------
# Kernels


class Kernel:
    """Declares the fields of a kernel (see the head of this file), and compiles it when needed.

    Each argument is a list of names, separated by spaces.

    Args:
        constants: integers that are compiled in.
        numbers: sizes and strides.
        tensors: rows in the dtype of the tensors.
        states: rows in the dtype of states.
        integers: rows of int64.
        flags: rows of bool.
        bytes: rows of int8, whose elements are read as numbers in the dtype of states.
        overlapping: fields that may lie in the same memory. They share a stream.
    """

    def __init__(
        self,
        *,
        constants: str = "",
        numbers: str = "",
        tensors: str = "",
        states: str = "",
        integers: str = "",
        flags: str = "",
        bytes: str = "",
        overlapping: str = "",
    ):
        self._constants = tuple(constants.split())
        self._numbers = (*_COMMON, *numbers.split())
        rows = {
            "tensor": tensors,
            "state": states,
            "int64": integers,
            "bool": flags,
            "int8": bytes,
        }
        self._rows = {name: kind for kind, names in rows.items() for name in names.split()}
        self._fields = (*self._numbers, *self._rows)
        self._overlapping = overlapping.split()
        if len(self._rows) > MOST_STREAMS:
            raise ValueError(f"a kernel has at most {MOST_STREAMS} rows, got {len(self._rows)}")

    def __call__(self, function) -> "Kernel":
        carry_out = helper(function)

        def run(call):
            task = _next_task(call)
            while task < call.tasks:
                carry_out(call, task)
                task = _next_task(call)

        # The name of the compiled function, by which kernels that come from disk are told apart.
        run.__module__ = function.__module__
        run.__qualname__ = function.__qualname__
        self.function = run
        self.compiled = cache(self._compile)
        return self

    def call(self, dtype: str, *constants: int) -> Call:
        """The type of the argument, for a dtype ("float32", ...) and values of the constants."""
        value = types.float64 if dtype == "float64" else types.float32
        elements = {"tensor": dtype, "state": str(value)}
        values = {"int64": types.int64, "bool": types.boolean}
        fields = dict.fromkeys(self._numbers, types.int64)
        for stream, (name, kind) in enumerate(self._rows.items()):
            if name in self._overlapping:
                stream = list(self._rows).index(self._overlapping[0])
            fields[name] = Row(elements.get(kind, kind), values.get(kind, value), stream)
        return Call(fields, dict(zip(self._constants, constants, strict=True)))

    def _compile(self, dtype: str, *constants: int) -> CFunc:
        made = CFunc(self.function, ((self.call(dtype, *constants),), types.void), {}, OPTIONS)
        if (folder := cache_folder()) is not None:
            module = self.function.__module__.rpartition(".")[-1]
            variant = "-".join(map(str, (dtype, *constants)))
            made._cache = _Kept(f"{module}.{self.function.__qualname__}-{variant}", folder)
        made.compile()
        if not made.cache_hits:
            _announce()
        return made

    def address(self, dtype: str, **constants: int) -> int:
        """Where the machine code is, a C function of one pointer; the first call compiles it."""
        return self.compiled(dtype, *(int(constants[name]) for name in self._constants)).address

    def block(self, tasks: int, **values: int) -> np.ndarray:
        """The block of integers for one call; every field must be given."""
        given = map(values.__getitem__, self._fields[len(_COMMON) :])
        return np.array((tasks, 0, *given), dtype=np.int64)


# --------------------------------------------------------------------------------------------------
# Kernels that call kernels


@intrinsic
def restart(typing, block):
    """Makes all tasks of the block at an address free to be taken again."""

    def generate(context, builder, signature, arguments):
        builder.store(ir.Constant(_I64, 0), _integer(builder, arguments[0], NEXT))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def enter(typing, kernel, block):
    """Calls the kernel at an address with the block at an address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [_I64])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(function, [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def enter_parallel(typing, parallel, kernel, block, threads):
    """Like `enter` on so many threads. `parallel` is the address of OpenMP's `GOMP_parallel`."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        function, kernel, block, threads = arguments
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, i32, i32])
        function = builder.inttoptr(function, kind.as_pointer())
        builder.call(function, [kernel, block, builder.trunc(threads, i32), ir.Constant(i32, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate
