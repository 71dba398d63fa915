"""Rows: memory with a type, which a kernel reads as `row[j]` and writes as `row[j] = x`.

A row is an address. Its type, a `Row`, says which elements lie there, so Numba compiles `row[j]` to
the right load and `row[j] = x` to the right store. Three things follow from the type:

- The *element* is what memory holds: "float32", "bfloat16", "int64" and so on.
- The *value* is what a kernel computes with. It is float64 for "float64", and float32 for every
  other floating element. A load widens exactly. A store rounds once, to the nearest, ties to even.
- The *stream* is a small number. Rows of different streams never overlap. LLVM needs this promise
  to make vector code of a loop over many rows: without it, it would have to compare the addresses
  at run time, and beyond a few rows it gives up. Every load and store carries the promise as
  metadata.

`row + n` is the row that begins n elements further on, in the same stream. `if row:` asks whether
the row is there at all: a tensor that the caller did not give has address 0.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

MOST_STREAMS = 16  # streams that a kernel may name; as many again are for the rows of `second`
_I8 = ir.IntType(8)
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
# What LLVM loads and stores for an element, and how many bytes that takes.
_MEMORY = {
    "float32": (ir.FloatType(), 4),
    "float64": (ir.DoubleType(), 8),
    "bfloat16": (_I16, 2),
    "float16": (ir.HalfType(), 2),
    "int8": (_I8, 1),
    "bool": (_I8, 1),
    "int64": (_I64, 8),
}


class Row(types.Type):
    """The type of a row.

    Args:
        element: what memory holds, a key of `_MEMORY`.
        value: Numba's type of `row[j]`.
        stream: rows of other streams never overlap this one.
    """

    def __init__(self, element: str, value: types.Type, stream: int):
        self.element = element
        self.value = value
        self.stream = stream
        self.memory, self.size = _MEMORY[element]
        super().__init__(f"Row({element}, {value}, {stream})")


@register_model(Row)
class _RowModel(models.PrimitiveModel):
    """In compiled code a row is a 64-bit integer, its address."""

    def __init__(self, manager, row):
        super().__init__(manager, row, _I64)


def _pointer(builder, row: Row, address, index):
    return builder.gep(builder.inttoptr(address, row.memory.as_pointer()), [index])


def _mark(module, access, stream: int) -> None:
    """Tells LLVM that this load or store belongs to `stream`, and overlaps no other stream."""
    domain = module.add_metadata(["hgrn"])
    scopes = [module.add_metadata([f"hgrn.{k}", domain]) for k in range(2 * MOST_STREAMS)]
    others = [scope for k, scope in enumerate(scopes) if k != stream]
    access.set_metadata("alias.scope", module.add_metadata([scopes[stream]]))
    access.set_metadata("noalias", module.add_metadata(others))


# --------------------------------------------------------------------------------------------------
# row[j]


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args, kws):
        row, index = args
        if isinstance(row, Row) and isinstance(index, types.Integer):
            return signature(row.value, row, types.int64)
        return None


@lower_builtin(operator.getitem, Row, types.int64)
def _load(context, builder, call, arguments):
    row = call.args[0]
    loaded = builder.load(_pointer(builder, row, *arguments), align=row.size)
    _mark(builder.module, loaded, row.stream)
    if row.element == "bfloat16":  # the upper half of a float32
        bits = builder.shl(builder.zext(loaded, _I32), ir.Constant(_I32, 16))
        return builder.bitcast(bits, ir.FloatType())
    if row.element == "float16":
        return builder.fpext(loaded, ir.FloatType())
    if row.element == "int8":
        return builder.sitofp(builder.sext(loaded, _I32), context.get_value_type(row.value))
    if row.element == "bool":
        return cgutils.is_not_null(builder, loaded)
    return loaded


# --------------------------------------------------------------------------------------------------
# row[j] = x


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args, kws):
        row, index, _ = args
        if isinstance(row, Row) and isinstance(index, types.Integer):
            return signature(types.none, row, types.int64, row.value)
        return None


@lower_builtin(operator.setitem, Row, types.int64, types.Any)
def _store(context, builder, call, arguments):
    row = call.args[0]
    address, index, value = arguments
    if row.element == "bfloat16":
        value = _rounded_to_bfloat16(builder, value)
    elif row.element == "float16":
        value = builder.fptrunc(value, ir.HalfType())
    written = builder.store(value, _pointer(builder, row, address, index), align=row.size)
    _mark(builder.module, written, row.stream)
    return context.get_dummy_value()


def _rounded_to_bfloat16(builder, value):
    """The upper half of a float32, rounded to the nearest, ties to even."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
    # Rounding up would turn some NaNs into infinity, so a NaN keeps its bits and becomes a quiet
    # one.
    quiet = builder.or_(bits, ir.Constant(_I32, 0x400000))
    bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(bits, ir.Constant(_I32, 16)), _I16)


# --------------------------------------------------------------------------------------------------
# row + n, and what else a row can do


@infer_global(operator.add)
class _Add(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Row) and isinstance(args[1], types.Integer):
            return signature(args[0], args[0], types.int64)
        return None


@lower_builtin(operator.add, Row, types.int64)
def _add(context, builder, call, arguments):
    return _further(builder, call.args[0], *arguments)


def _further(builder, row: Row, address, count):
    return builder.add(address, builder.mul(count, ir.Constant(_I64, row.size)))


@infer_global(bool)
class _Bool(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], Row):
            return signature(types.boolean, args[0])
        return None


@lower_builtin(bool, Row)
def _is_there(context, builder, call, arguments):
    return cgutils.is_not_null(builder, arguments[0])


@intrinsic
def second(typing, row, distance):
    """The row `distance` elements further on, in a stream of its own.

    It is for rows that hold two parts side by side, such as real and imaginary parts. Every access
    to the second part must go through `second`, since LLVM believes that the first never reaches
    it.
    """
    other = Row(row.element, row.value, row.stream + MOST_STREAMS)

    def generate(context, builder, signature, arguments):
        return _further(builder, row, *arguments)

    return other(row, types.int64), generate


@intrinsic
def number(typing, like, n):
    """The integer n as a value of the row `like`, or in the type of the number `like`.

    Numba would compute `1 - x` in float64 for a float32 x: right, but half as many numbers a
    vector.
    """
    value = like.value if isinstance(like, Row) else like

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[1], context.get_value_type(value))

    return value(like, types.int64), generate


@intrinsic
def prefetch(typing, row, count, after=0):
    """Asks for the cache lines of `count` elements of a row, from `after` bytes behind its start.

    It waits for nothing, and the memory need not be ours.
    """

    def generate(context, builder, signature, arguments):
        address, count, after = arguments
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read = ir.Constant(_I32, 0)
        near = ir.Constant(_I32, 2)
        data = ir.Constant(_I32, 1)
        begin = builder.add(address, after)
        size = builder.sub(_further(builder, row, begin, count), begin)
        # Counted from 0 by ones, because LLVM unrolls only loops whose number of turns it can see.
        # A loop over addresses costs twice as much, which shows in every piece of every scan.
        lines = builder.ashr(builder.add(size, ir.Constant(_I64, 63)), ir.Constant(_I64, 6))
        with cgutils.for_range(builder, lines, intp=_I64) as loop:
            place = builder.add(begin, builder.shl(loop.index, ir.Constant(_I64, 6)))
            builder.call(function, [builder.inttoptr(place, pointer), read, near, data])
        return context.get_dummy_value()

    return types.void(row, types.int64, types.int64), generate
