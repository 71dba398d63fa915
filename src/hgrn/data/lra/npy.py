"""Reads tables that `numpy.save` wrote, from files that a stranger may have made.

numpy's own reader evaluates the header as Python and allocates whatever size it announces.
"""

import re
import sys

import numpy as np

NUMPY_MAGIC = b"\x93NUMPY"
# Exactly as numpy writes it; under Python 2 with an L after whole numbers.
HEADER = re.compile(
    rb"\{'descr': '([<>|=](?:[US][0-9]{1,4}|[iu][1248]|f[48]|b1))', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9]{1,12})L?, ([0-9]{1,4})L?\), \} *\n"
)


def read_table(content: bytes) -> list[list]:
    """The rows of a table of text or numbers. Raises ValueError for any other content."""
    # The magic number, two bytes of version, the header's length in 2 or 4 bytes, the header.
    version = content[len(NUMPY_MAGIC) : len(NUMPY_MAGIC) + 2]
    width = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(version)
    if width is None:
        raise ValueError(f"its version {version!r} is not known")
    start = len(NUMPY_MAGIC) + 2 + width
    start += int.from_bytes(content[start - width : start], "little")
    match = HEADER.fullmatch(content[len(NUMPY_MAGIC) + 2 + width : start])
    if match is None:
        raise ValueError("its header is not that of a table of text or numbers with two axes")
    dtype = np.dtype(match[1].decode())
    rows = int(match[3])
    columns = int(match[4])
    needed = rows * columns * dtype.itemsize
    found = len(content) - start
    if needed == 0 or needed != found:
        raise ValueError(
            f"{rows} x {columns} values of {dtype} need {needed} bytes, and {found} are there"
        )
    if dtype.kind == "U":
        characters = np.frombuffer(content, dtype.byteorder + "u4", offset=start)
        if characters.max() > sys.maxunicode:
            raise ValueError("its text has characters that do not exist")
    order = "F" if match[2] == b"True" else "C"
    return np.frombuffer(content, dtype, offset=start).reshape(rows, columns, order=order).tolist()
