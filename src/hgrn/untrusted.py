"""Read files that a stranger may have written: up to a limit, and with one kind of error."""

import json
import os
from pathlib import Path
from typing import Any

from hgrn.errors import UserError

# Bytes; a configuration with the names of a million classes has half as many.
LARGEST_JSON = 1 << 26
# Levels. Code that walks through a value calls itself for each level, and Python limits that.
DEEPEST_JSON = 50


def read_bytes(path: str | Path, largest: int) -> bytes:
    """The bytes of a file. Raises UserError if it has more than `largest`, or no access."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise UserError(f"{path} has {size:,} bytes; such a file has at most {largest:,}")
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as `json.loads` does; raise ValueError also if it is nested too deep to parse."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises UserError if there is none, or the file cannot be read."""
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
