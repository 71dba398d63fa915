"""Pickles of plain data, read as data: nothing that the file names is ever called.

A pickle is a program for a small stack machine. This is such a machine, with only the operations
that a batch of CIFAR needs: dictionaries, lists, tuples, strings, numbers, and numpy arrays of
integers. A class or function in the file is only a name to this machine, and `_call` knows what a
"call" of that name describes. At the end we make the arrays ourselves, after we have checked that
type, shape and bytes fit. So memory stays in proportion to the file.

Python's own unpickler, restricted to these names, would not do: the file can make it allocate
memory that has nothing to do with its size.
"""

import codecs
import io
import pickletools
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hgrn.errors import UserError
from hgrn.untrusted import read_bytes

LARGEST_FILE = 1 << 30  # bytes; the largest published batch has 155 million
MOST_OPERATIONS = 2_000_000  # the longest published batch has about 400,000
LARGEST_RANK = 8
OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
# The classes and functions that pickles of plain data name.
NAMES = {
    "__builtin__.bytes",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
}
# Operations that push the value that follows them in the file.
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NO_MEANING = {"PROTO", "FRAME"}


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle of plain data; strings of Python 2 are bytes.

    Arrays that are values of the outermost dictionary become numpy arrays. Raises UserError for a
    pickle that is not plain or not whole.
    """
    content = read_bytes(path, LARGEST_FILE)
    try:
        return _with_arrays(_Machine(content).run())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # Damage gives an operation arguments that are of the wrong type, missing, or beyond the end.
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
    """A class or function of which the file has the name."""

    name: str


@dataclass
class _Dtype:
    """The type of an array.

    code: such as "u1". order: of its bytes, "<" or ">"; "|" for types of one byte.
    """

    code: str
    order: str = "|"

    def numpy(self) -> np.dtype:
        """The same in numpy. Raises UserError unless it is a type of integers."""
        if (
            self.code[:1] not in ("i", "u")
            or self.code[1:] not in ("1", "2", "4", "8")
            or self.order not in ("<", ">", "|")
        ):
            raise UserError("the pickle holds an array of another type than integers")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array that the file describes. Its fields may still be missing or of any type."""

    shape: Any = ()
    dtype: Any = None
    order: Literal["C", "F"] = "C"
    data: Any = b""

    def numpy(self) -> np.ndarray:
        """Make the array. Raises UserError unless type, shape and bytes fit each other."""
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
                f"the pickle holds an array whose shape needs {needed} bytes, and "
                f"{len(self.data)} are there"
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape, order=self.order)


class _Machine:
    """The stack machine: a stack of values, marks in it, and a memo of values to use again."""

    def __init__(self, content: bytes):
        self.file = io.BytesIO(content)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program leaves."""
        for _ in range(MOST_OPERATIONS):
            code = OPERATIONS[self.file.read(1).decode("latin-1")]
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
        """Run one operation. Raises UserError for one that plain data never needs."""
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
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
        """Remove the last values from the stack and return them."""
        if len(self.stack) < count:
            raise ValueError("an operation has too few values")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _since_mark(self) -> list:
        """Remove the values above the last mark from the stack and return them."""
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken


def _of_type(value: Any, kind: type) -> Any:
    """The value, if it is of this type and not of a subclass; ValueError if not."""
    if type(value) is not kind:
        found = type(value).__name__.strip("_")
        raise ValueError(f"an operation needs a {kind.__name__.strip('_')}, not a {found}")
    return value


def _filled(target: dict, items: list) -> dict:
    """Add to a dictionary the keys and values that alternate in a list; return it."""
    keys = items[0::2]
    values = items[1::2]
    if len(keys) != len(values) or any(type(key) not in (bytes, str, int) for key in keys):
        raise ValueError(
            "a dictionary needs a value for each key, and keys that are text or whole numbers"
        )
    target.update(zip(keys, values))
    return target


def _named(module: Any, name: Any) -> _Name:
    """A name of the file. Raises UserError for one that plain data never needs."""
    # numpy 2 renamed its inner package.
    full = f"{_of_text(module)}.{_of_text(name)}".replace("numpy.core.", "numpy._core.")
    if full not in NAMES:
        raise UserError(
            f"the pickle asks for {full[:80]}, which plain data never needs; it was not run. "
            "Get the file from its publisher, or use the binary version"
        )
    return _Name(full)


def _call(name: str, arguments: tuple) -> Any:
    """The value that a call of a known name describes."""
    if name == "_codecs.encode":  # as Python 3 writes bytes for old readers
        text, encoding = arguments
        if _of_text(encoding) not in ("latin1", "latin-1"):  # others decompress, or look modules up
            raise UserError(
                f"the pickle asks for the codec {_of_text(encoding)[:80]!r}; only latin1 is plain "
                "data"
            )
        return _of_type(text, str).encode("latin-1")
    if name == "__builtin__.bytes" and not arguments:  # as it writes an empty byte string
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
    """Fill in a dtype or an array that was named before."""
    if isinstance(target, _Dtype):
        _version, order, *_rest = state
        target.order = _of_text(order)
    elif isinstance(target, _Array):
        _version, target.shape, target.dtype, is_fortran, target.data = state
        target.order = "F" if is_fortran is True else "C"
    else:
        raise ValueError("only an array and its type have a state")


def _with_arrays(content: Any) -> Any:
    """Make numpy arrays of those that the outermost dictionary has."""
    if isinstance(content, (_Name, _Dtype, _Array)):
        raise UserError("the pickle holds no dictionary of plain data")
    if not isinstance(content, dict):
        return content
    return {
        key: value.numpy() if isinstance(value, _Array) else value for key, value in content.items()
    }


def _of_text(value: Any) -> str:
    """A text, which Python 2 wrote as bytes."""
    return value.decode("latin-1") if type(value) is bytes else _of_type(value, str)


def _order(value: Any) -> Literal["C", "F"]:
    if _of_text(value) not in ("C", "F"):
        raise ValueError("the order of an array must be C or F")
    return "F" if _of_text(value) == "F" else "C"
