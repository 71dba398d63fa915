"""The folder of a run: whose it is, and that only one process group writes to it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hgrn.errors import UserError
from hgrn.training.checkpointing import steps_saved
from hgrn.training.peers import Process
from hgrn.training.recipe import recipe_to_yaml
from hgrn.training.specs import Recipe

LOCK = "run.lock"


def check_free(run: Path, resume: bool) -> None:
    """Raise UserError unless `run` is missing or empty or, to resume, holds a run."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: give a folder for the run")
    if not run.exists():
        return
    entries = [entry.name for entry in run.iterdir() if not entry.name.startswith(LOCK)]
    if not entries:
        return
    if "recipe.yaml" not in entries:
        raise UserError(f"{run} is not empty and holds no run ({min(entries)}, ...): give another folder")
    if not resume:
        saved = steps_saved(run)
        at = f", saved up to step {saved[-1][0]}" if saved else ""
        raise UserError(f"{run} already holds a run{at}: add --resume to go on, or give another folder")


def write_recipe(run: Path, recipe: Recipe) -> None:
    """Put the run's recipe.yaml in place, whole at any moment."""
    draft = run / f"{LOCK}.recipe"
    draft.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    os.replace(draft, run / "recipe.yaml")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Make a run folder if need be and hold its lock.

    Raises UserError if the folder cannot be written, or a live process or any on another host holds the lock.
    """
    lock = run / LOCK
    mine = Process.this()
    # A link to a finished file appears whole or not at all, so a lock is never without its owner.
    draft = run / f"{LOCK}.{mine.host}.{mine.pid}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(asdict(mine)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror}. Give another folder.") from error
    try:
        try:
            os.link(draft, lock)
        except FileExistsError:
            _remove_stale(lock)
            os.link(draft, lock)
    finally:
        draft.unlink()
    try:
        yield
    finally:
        lock.unlink()


def _remove_stale(lock: Path) -> None:
    """Remove a lock whose process on this host is dead; raise UserError for any other."""
    try:
        holder = Process(**json.loads(lock.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{lock} is not readable: if no run writes to its folder now, remove it") from error
    if holder.is_gone:
        lock.unlink()
        return
    raise UserError(
        f"{lock.parent} is in use by process {holder.pid} on host {holder.host}: wait for it or give "
        f"another folder. If that process is gone, remove {lock}."
    )
