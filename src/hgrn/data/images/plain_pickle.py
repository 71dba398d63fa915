"""Pickles of plain data, read as data: nothing that the file names is ever called.

A pickle is a program for a small stack machine. This is such a machine with the few operations that a batch of
CIFAR needs: dictionaries, lists, tuples, strings, numbers, and numpy arrays of integers. A class or function that
the file names is a name here, and its "call" is looked up in `_call`. An array is made at the end, by us, when its
type, shape and bytes have been seen to fit. So memory stays in proportion to the file.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hgrn.errors import UserError
from hgrn.untrusted import read_bytes

LARGEST_FILE = 1 << 30  # bytes; the largest published batch has 155 million
MOST_OPERATIONS = 2_000_000  # the longest published batch has about 400,000
LARGEST_RANK = 8
NAMES = {
    "__builtin__.bytes",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
}
# Operations that push what stands behind them in the file.
VALUES = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NO_MEANING = {"PROTO", "FRAME"}


def load_plain_pickle(path: Path) -> Any:
    """What a pickle of plain data holds, strings of Python 2 as bytes.

    The arrays of a dictionary are numpy's. Raises UserError for a pickle that is not plain, or not whole.
    """
    content = read_bytes(path, LARGEST_FILE)
    try:
        return _with_arrays(_Machine(content).run())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # What damage does to the arguments of an operation: of the wrong type, not there, beyond the end.
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        struct.error,
    ) as error:
        raise UserError(
            f"{path} is not a whole pickle: {type(error).__name__}: {error}; fetch it again"
        ) from None


@dataclass(frozen=True)
class _Name:
    """A class or function that the file names."""

    name: str


@dataclass
class _Dtype:
    """code: such as "u1"; order: of its bytes, "<", ">" or "|" where there is one."""

    code: str
    order: str = "|"

    def numpy(self) -> np.dtype:
        if (
            self.code[:1] not in ("i", "u")
            or self.code[1:] not in ("1", "2", "4", "8")
            or self.order not in ("<", ">", "|")
        ):
            raise UserError("the pickle holds an array of another type than integers")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array that the file describes; without a dtype, one of which nothing is known yet."""

    shape: tuple = ()
    dtype: _Dtype | None = None
    order: str = "C"
    data: bytes = b""

    def numpy(self) -> np.ndarray:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.data, (bytes, bytearray)):
            raise UserError("the pickle holds an array without its type or its bytes")
        dtype = self.dtype.numpy()
        if not isinstance(self.shape, tuple) or not 1 <= len(self.shape) <= LARGEST_RANK:
            raise UserError("the pickle holds an array without a shape")
        if any(type(size) is not int or size < 1 for size in self.shape):
            raise UserError("the pickle holds an array whose sizes are not all positive")
        needed = prod(self.shape) * dtype.itemsize
        if needed != len(self.data):
            raise UserError(
                f"the pickle holds an array whose shape needs {needed} bytes, and {len(self.data)} are there"
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape, order=self.order)


class _Machine:
    def __init__(self, content: bytes):
        self.file = io.BytesIO(content)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPERATIONS):
            code = pickletools.code2op[self.file.read(1).decode("latin-1")]
            name = code.name
            argument = None
            if name == "STRING":  # the reader of `pickletools` takes ASCII only
                argument = codecs.escape_decode(self.file.readline().strip()[1:-1])[0]
            elif code.arg is not None:
                argument = code.arg.reader(self.file)
            if name == "STOP":
                return self.stack.pop()
            self._do(name, argument)
        raise UserError(
            f"the pickle has more than {MOST_OPERATIONS:,} operations; no batch is that long"
        )

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "STRING":
            stack.append(argument)
        elif name in ("SHORT_BINSTRING", "BINSTRING"):
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in TUPLES:
            stack.append(tuple(self._take(TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "LIST":
            stack.append(self._since_mark())
        elif name == "DICT":
            stack.append(_filled({}, self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._take(1) if name == "APPEND" else self._since_mark()
            _of_type(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._take(2) if name == "SETITEM" else self._since_mark()
            _filled(_of_type(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_named(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            stack.append(_named(*self._take(2)))
        elif name == "REDUCE":
            function, arguments = self._take(2)
            stack.append(_call(_of_type(function, _Name).name, _of_type(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self._take(1)
            _build(stack[-1], _of_type(state, tuple))
        elif name not in NO_MEANING:
            raise UserError(
                f"the pickle has the operation {name}, which plain data never needs; it was not run"
            )

    def _take(self, count: int) -> list:
        """The last values of the stack, which are no longer there then."""
        if len(self.stack) < count:
            raise ValueError("an operation has too few values")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _since_mark(self) -> list:
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(
            f"an operation needs a {kind.__name__.strip('_')}, not a {type(value).__name__.strip('_')}"
        )
    return value


def _filled(target: dict, items: list) -> dict:
    """The dictionary with keys and values that alternate in a list."""
    keys = items[0::2]
    values = items[1::2]
    if len(keys) != len(values) or any(type(key) not in (bytes, str, int) for key in keys):
        raise ValueError(
            "a dictionary needs a value for each key, and keys that are text or whole numbers"
        )
    target.update(zip(keys, values))
    return target


def _named(module: Any, name: Any) -> _Name:
    full = f"{_of_text(module)}.{_of_text(name)}".replace("numpy.core.", "numpy._core.")
    if full not in NAMES:
        raise UserError(
            f"the pickle asks for {full[:80]}, which plain data never needs; it was not run. "
            "Get the file from its publisher, or use the binary version"
        )
    return _Name(full)


def _call(name: str, arguments: tuple) -> Any:
    """What a call of a known name describes."""
    if name == "_codecs.encode":  # as Python 3 writes bytes for old readers
        text, encoding = arguments
        if _of_text(encoding) not in ("latin1", "latin-1"):  # others decompress, or look modules up
            raise UserError(
                f"the pickle asks for the codec {_of_text(encoding)[:80]!r}; only latin1 is plain data"
            )
        return _of_type(text, str).encode("latin-1")
    if name == "__builtin__.bytes" and not arguments:  # as it writes no bytes at all
        return b""
    if name == "numpy.dtype":
        code, _align, _copy = arguments
        return _Dtype(_of_text(code))
    if name == "numpy._core.multiarray._reconstruct":
        kind, _shape, _code = arguments
        if kind != _Name("numpy.ndarray"):
            raise ValueError("only a numpy.ndarray is made anew")
        return _Array()
    if name == "numpy._core.multiarray.scalar":
        dtype, data = arguments
        return _Array((1,), _of_type(dtype, _Dtype), "C", data).numpy().item()
    if name == "numpy._core.numeric._frombuffer":
        data, dtype, shape, order = arguments
        return _Array(shape, dtype, _order(order), data)
    raise UserError(f"the pickle calls {name}, which plain data never does; it was not run")


def _build(target: Any, state: tuple) -> None:
    """What the file says of a dtype or of an array that it has named."""
    if isinstance(target, _Dtype):
        _version, order, *_rest = state
        target.order = _of_text(order)
    elif isinstance(target, _Array):
        _version, target.shape, target.dtype, is_fortran, target.data = state
        target.order = "F" if is_fortran is True else "C"
    else:
        raise ValueError("only an array and its type have a state")


def _with_arrays(content: Any) -> Any:
    """The same with arrays of numpy, where the file describes one, at the top of a dictionary."""
    if isinstance(content, (_Name, _Dtype, _Array)):
        raise UserError("the pickle holds no dictionary of plain data")
    if not isinstance(content, dict):
        return content
    return {
        key: value.numpy() if isinstance(value, _Array) else value for key, value in content.items()
    }


def _of_text(value: Any) -> str:
    """Text of Python 2 or 3."""
    return value.decode("latin-1") if type(value) is bytes else _of_type(value, str)


def _order(value: Any) -> str:
    if _of_text(value) not in ("C", "F"):
        raise ValueError("the order of an array must be C or F")
    return _of_text(value)
