"""Reads files of records (JSON Lines, JSON, CSV, parquet) as streams of dictionaries.

Nothing here holds more of a file than one record and one block. Of parquet that is one row group of
the wanted columns.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, BinaryIO, TextIO

from hgrn.errors import UserError

Record = dict[str, Any]

BLOCK = 1 << 20  # characters of a JSON file read at a time
LARGEST = 1 << 28  # characters of one record of a JSON or CSV file
PARQUET_ROWS = 256  # read at a time
SPACE = re.compile(r"[ \t\r\n]*")  # what may stand between the values of JSON


class Ambiguous(dict):
    """A JSON object in which a key stands twice."""


def _json_object(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    return made if len(made) == len(pairs) else Ambiguous(made)


DECODER = json.JSONDecoder(object_pairs_hook=_json_object)


def json_lines(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[str, Record]]:
    """One JSON object a line."""
    for number, line in lines:
        where = f"{name}:{number}"
        try:
            value = DECODER.decode(line.removeprefix(codecs.BOM_UTF8).decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {_reason(error)}") from None
        if not isinstance(value, dict):
            raise UserError(
                f"{where}: every line must be a JSON object; got {type(value).__name__} "
                "(an array of objects is read from a file called .json)"
            )
        yield where, _unambiguous(value, where)


def json_values(stream: TextIO, name: str) -> Iterator[tuple[str, Record]]:
    """The objects of one array, or objects one after another."""
    values = _values(_Characters(stream))
    for number in count(1):
        where = f"{name}, record {number}"
        try:
            value = next(values)
        except StopIteration:
            return
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {_reason(error)}") from None
        if not isinstance(value, dict):
            raise UserError(
                f"{where}: every record must be a JSON object; got {type(value).__name__}"
            )
        yield where, _unambiguous(value, where)


def csv_rows(
    stream: TextIO, name: str, delimiter: str, number_field: str | None
) -> Iterator[tuple[str, Record]]:
    """The rows of a table with a header. All fields are text, but for `number_field`."""
    # Python refuses fields above 128 KiB otherwise, which texts of books are.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST))
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    header = None
    try:
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if not row:
                continue
            if header is None:
                header = row
                if len(set(header)) < len(header):
                    raise UserError(
                        f"{where}: two columns have one name; the header is {', '.join(header)}"
                    )
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{where}: the row has {len(row)} fields, and the header {len(header)}"
                )
            record: Record = dict(zip(header, row))
            if number_field is not None and number_field in record:
                record[number_field] = _number(record[number_field])
            yield where, record
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{name}, from line {reader.line_num} on: not a table of UTF-8 text: {error}"
        ) from None


def parquet_rows(
    stream: BinaryIO, name: str, wanted: list[str] | None
) -> Iterator[tuple[str, Record]]:
    """The rows of a parquet file.

    Only the wanted columns are read, unless the first of them is missing: then all are, so that a
    message can name them.
    """
    import pyarrow

    try:
        file = _parquet(stream)
        names = file.schema_arrow.names
        columns = None
        if wanted and wanted[0] in names:
            columns = [each for each in wanted if each in names]
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield f"{name}, record {number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not a whole parquet file: {_reason(error)}") from None


def count_parquet_rows(stream: BinaryIO, name: str) -> int:
    import pyarrow

    try:
        return _parquet(stream).metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a whole parquet file: {_reason(error)}") from None


def _parquet(stream: BinaryIO):
    from pyarrow.parquet import ParquetFile

    return ParquetFile(stream)


def _values(text: "_Characters") -> Iterator[Any]:
    """The values of one array, or one after another. Raises ValueError for what is not JSON."""
    if text.peek() != "[":
        while text.peek():
            yield text.value()
        return
    text.skip()
    is_last = text.peek() == "]"
    while not is_last:
        yield text.value()
        is_last = text.peek() != ","
        if not is_last:
            text.skip()
    if text.peek() != "]":
        raise ValueError("the array does not go on with a comma and is not closed")
    text.skip()
    if text.peek():
        raise ValueError("something follows the array")


class _Characters:
    """The characters of a stream, read as they are needed; those before `at` are forgotten."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.buffer = ""
        self.at = 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            space = SPACE.match(self.buffer, self.at)
            assert space is not None  # it matches the empty string
            self.at = space.end()
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Go behind the character that `peek` gave."""
        self.at += 1

    def value(self) -> Any:
        """The JSON value that begins behind the white space."""
        self.peek()
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.buffer, self.at)
                return value
            except json.JSONDecodeError:
                # Perhaps the end of the value has not been read yet: read on and try again.
                if len(self.buffer) - self.at > LARGEST:
                    raise ValueError(f"no end within {LARGEST} characters") from None
                if not self._more():
                    raise

    def _more(self) -> bool:
        """Reads on; False at the end."""
        # We read as much as is waiting, so that the tries for a long value grow by doubling.
        fresh = self.stream.read(max(BLOCK, len(self.buffer) - self.at))
        self.buffer = self.buffer[self.at :] + fresh
        self.at = 0
        return bool(fresh)


def _unambiguous(record: Record, where: str) -> Record:
    if isinstance(record, Ambiguous):
        raise UserError(
            f"{where}: a key stands twice in the object, so it is not clear which value is meant"
        )
    return record


def _number(text: str) -> float | str:
    """A table's field as a number, or as the text that it is."""
    try:
        return float(text)
    except ValueError:
        return text


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).strip().partition("\n")[0]
