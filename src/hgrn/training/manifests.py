"""Which checkpoints a run has, and whether they are whole: the manifest of each says.

`manifest.json` lists every file of a checkpoint but the model card, which anyone may edit, with its
size and checksum. It is the last file of a save, so a checkpoint without one is not whole.
"""

import errno
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from hgrn.errors import UserError
from hgrn.files import reading, whole_file
from hgrn.untrusted import parse_json

NAME = "manifest.json"
# Inference reads neither the state of the ranks nor the sharded copy of weights and optimizer.
_ONLY_FOR_TRAINING = re.compile(r"rank-\d+\.pt|sharded/.*")


@dataclass(frozen=True)
class SavedFile:
    """A file of a checkpoint: its name below the folder, its bytes, their checksum."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, file: Path, folder: Path) -> "SavedFile":
        """The entry of a file as it is now on disk."""
        return cls(file.relative_to(folder).as_posix(), file.stat().st_size, _sha256(file))

    @property
    def is_below(self) -> bool:
        """Whether the name leads to a place below the folder of the checkpoint."""
        place = PurePosixPath(self.name)
        return bool(self.name) and not place.is_absolute() and ".." not in place.parts


@dataclass(frozen=True)
class Manifest:
    """The files of a whole checkpoint, its step, its number of processes, and the fingerprint of
    its data."""

    step: int
    world: int
    data: str
    files: list[SavedFile]

    @classmethod
    def read(cls, checkpoint: Path) -> "Manifest":
        """The manifest as it stands in the folder; `damage` says whether it holds.

        Raises ValueError, KeyError or TypeError for a file that `write` did not write.
        """
        content = parse_json((checkpoint / NAME).read_text(encoding="utf-8"))
        manifest = cls(**{**content, "files": [SavedFile(**row) for row in content["files"]]})
        if not all(file.is_below for file in manifest.files):
            raise ValueError("a file of a checkpoint lies below its folder")
        if type(manifest.step) is not int or type(manifest.world) is not int or manifest.world < 1:
            raise ValueError("step and world are whole numbers")
        return manifest

    def write(self, checkpoint: Path) -> None:
        """Put the manifest on disk, in a folder whose files are there already."""
        with whole_file(checkpoint / NAME) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def steps_saved(run: Path) -> list[tuple[int, Path]]:
    """The step and folder of every checkpoint in a run folder, whole or not, oldest first."""
    folder = run / "checkpoints"
    found = []
    try:
        with reading(folder):
            names = os.listdir(folder)
    except FileNotFoundError:
        return []
    # Hidden folders of saves that were killed have other names.
    for name in names:
        if number := re.fullmatch(r"step-(\d+)", name):
            found.append((int(number[1]), folder / name))
    return sorted(found)


def damage(checkpoint: Path, *, for_inference: bool = False) -> str | None:
    """Why the manifest of a checkpoint does not hold, or None if it does.

    for_inference: take the checksums only of the files that inference loads; of the others, which
    are two thirds of the bytes, check the sizes. Raises UserError for files that may be whole, but
    that this user may not read.
    """
    with reading(checkpoint):
        try:
            return _unlike_manifest(checkpoint, for_inference)
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except OSError as error:
            # A failing disk is damage; a missing permission is for the user to mend.
            if error.errno != errno.EIO:
                raise
            return f"a file cannot be read: {error.strerror}"


def _unlike_manifest(checkpoint: Path, for_inference: bool) -> str | None:
    """The first thing that is not as the manifest says."""
    try:
        files = Manifest.read(checkpoint).files
    except (ValueError, KeyError, TypeError):
        return "manifest.json is not one that hgrn wrote"
    for listed in files:
        file = checkpoint / listed.name
        if not file.is_file():
            return f"{listed.name} is missing"
        # Sizes first: they cost nothing, and most damage shows in them.
        if file.stat().st_size != listed.size:
            return f"{listed.name} has {file.stat().st_size} bytes instead of {listed.size}"
        if for_inference and _ONLY_FOR_TRAINING.fullmatch(listed.name):
            continue
        if _sha256(file) != listed.sha256:
            return f"the checksum of {listed.name} does not match"
    return None


def latest_valid(
    run: Path, *, for_inference: bool = False
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint whose manifest holds (see `damage`), and each newer one with the reason
    why it was passed over."""
    passed_over = []
    for _, folder in reversed(steps_saved(run)):
        reason = damage(folder, for_inference=for_inference)
        if reason is None:
            return folder, passed_over
        passed_over.append((folder, reason))
    return None, passed_over


def find_checkpoint(path: Path, *, for_inference: bool = False) -> Path:
    """The checkpoint to load from `path`: itself, or the newest whole one if it is a run folder.

    A folder without our manifest passes if it holds a config.json, as any saved transformers model
    does. for_inference: see `damage`. Raises UserError.
    """
    with reading(path):
        if not path.is_dir():
            raise UserError(
                f"no checkpoint folder {path}: give a run folder, one of its checkpoints, or a "
                "saved model"
            )
        is_ours = (path / NAME).is_file()
        is_saved = (path / "config.json").is_file()
    if is_ours:
        if reason := damage(path, for_inference=for_inference):
            raise UserError(
                f"checkpoint {path} is damaged: {reason}. Use another one of the run, or copy it "
                "again."
            )
        return path
    if is_saved:
        return path
    newest, passed_over = latest_valid(path, for_inference=for_inference)
    if newest is None:
        reasons = "".join(f"\n  {folder}: {reason}" for folder, reason in passed_over)
        raise UserError(
            f"{path} holds no complete checkpoint and no config.json: it is not a saved model"
            f"{reasons}"
        )
    return newest


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
