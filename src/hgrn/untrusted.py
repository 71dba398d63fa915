"""Files that a stranger may have written: read up to a limit, and with one kind of error for whatever is wrong."""

import json
import os
from pathlib import Path
from typing import Any

from hgrn.errors import UserError

LARGEST_JSON = 1 << 26  # bytes; a configuration with the names of a million classes has half of it

DEEPEST_JSON = 50  # levels; code that walks through a value calls itself for each


def read_bytes(path: str | Path, largest: int) -> bytes:
    """What a file holds. Raises UserError if it has more bytes than `largest`, or cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise UserError(f"{path} has {size:,} bytes; such a file has at most {largest:,}")
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`. Raises ValueError also for nesting that Python's parser cannot follow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError for any other content, and for a file that cannot be read."""
    try:
        found = parse_json(read_bytes(path, LARGEST_JSON))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object; it holds a {type(found).__name__}")
    if _levels(found) > DEEPEST_JSON:
        raise UserError(f"{path} is nested more than {DEEPEST_JSON} levels deep")
    return found


def _levels(value: Any) -> int:
    """How deep lists and objects are nested, counted up to one more than is allowed."""
    levels = 0
    inside = [value]
    while inside and levels <= DEEPEST_JSON:
        levels += 1
        parts = [
            part.values() if isinstance(part, dict) else part
            for part in inside
            if isinstance(part, (dict, list))
        ]
        inside = [each for part in parts for each in part]
    return levels
