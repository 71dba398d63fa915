"""The file of a session: states, the fingerprint of their model, and a checksum of it all."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hgrn.errors import UserError
from hgrn.untrusted import parse_json

FORMAT = "hgrn-session-sha256"
WITHOUT_CHECKSUM = "hgrn-session-1"  # as the first versions wrote
UNSEALED = "0" * 64  # stands for the checksum while it is computed
BLOCK = 1 << 20  # bytes that are read at once


def metadata(fingerprint: str, lengths: Sequence[int]) -> dict[str, str]:
    """The metadata of a file before `seal`."""
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "lengths": json.dumps(lengths),
        "sha256": UNSEALED,
    }


def seal(path: Path) -> None:
    """Write the checksum of a file into its metadata, over the zeros that stand for it."""
    place = _place(path, UNSEALED)
    checksum = _checksum(path, place)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(checksum.encode())


def read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors.

    Raises UserError for any other file, and for one that has changed since.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") not in (FORMAT, WITHOUT_CHECKSUM):
                raise UserError(
                    f"{path} does not hold conversations; Session.save writes such files"
                )
            if about["format"] == FORMAT:
                _check(path, about.get("sha256", ""))
            else:
                warnings.warn(
                    f"{path} was saved without a checksum, so nobody can see whether it is "
                    "damaged; save it anew",
                    stacklevel=3,
                )
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as conversations: {error}") from error


def lengths(path: str | Path, about: Mapping[str, str]) -> list[int]:
    """How many tokens each conversation has. Raises UserError if the metadata does not say that."""
    try:
        found = parse_json(about.get("lengths", "null"))
    except ValueError:
        found = None
    if (
        not isinstance(found, list)
        or not found
        or any(type(length) is not int or length < 0 for length in found)
    ):
        raise UserError(
            f"{path} is damaged: its metadata does not say how many tokens each conversation has"
        )
    return found


def states(
    path: str | Path, tensors: Mapping[str, Tensor], one: Sequence[Sequence[Tensor]], count: int
) -> tuple[tuple[Tensor, ...], ...]:
    """The states of `count` conversations, layer by layer.

    Args:
        path: for messages.
        tensors: what was in the file.
        one: the states of a single conversation of the model, for their shapes, types and device.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    wanted = {
        f"{layer}.{part}": like
        for layer, parts in enumerate(one)
        for part, like in enumerate(parts)
    }
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise UserError(
            f"{path} does not hold the states of this model's layers: {', '.join(odd[:5])} in one "
            "of them only"
        )
    for name, like in wanted.items():
        found = tensors[name]
        shape = (count, *like.shape[1:])
        if found.shape != shape or found.dtype != like.dtype:
            raise UserError(
                f"{path}: state {name} must be {like.dtype} {list(shape)}; it is {found.dtype} "
                f"{list(found.shape)}"
            )
        if not found.isfinite().all():
            raise UserError(
                f"{path}: state {name} holds NaN or infinity, from which nothing follows; read the "
                "texts again"
            )
    return tuple(
        tuple(tensors[f"{layer}.{part}"].to(like.device) for part, like in enumerate(parts))
        for layer, parts in enumerate(one)
    )


def _check(path: str | Path, checksum: str) -> None:
    if (
        not re.fullmatch("[0-9a-f]{64}", checksum)
        or _checksum(path, _place(path, checksum)) != checksum
    ):
        raise UserError(
            f"{path} is damaged: its checksum does not match; copy it again, or read the texts "
            "again"
        )


def _place(path: str | Path, checksum: str) -> int:
    """Where the checksum stands in the file, whose header is known to be valid."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + file.read(size).index(b'"' + checksum.encode() + b'"') + 1


def _checksum(path: str | Path, place: int) -> str:
    """The checksum of the file with zeros at that place."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(place))
        file.seek(len(UNSEALED), 1)
        digest.update(UNSEALED.encode())
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
