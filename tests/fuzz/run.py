"""Mutants are read in a child process, which may take so much time and memory and no more."""

import contextlib
import faulthandler
import os
import random
import resource
import select
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hgrn.data.images.source import CorruptImage
from hgrn.errors import UserError
from tests.fuzz.mutations import mutate

SECONDS = 10  # for one mutant
GRACE = 20  # seconds more, for the machine and for a reader that does not hear the alarm
MEMORY = 1 << 30  # bytes that a mutant may take beyond what the process has
OF_ONE_CHILD = 250  # mutants; then a fresh one takes over, so that nothing adds up


@dataclass(frozen=True)
class Target:
    """A reader and what it reads.

    folder: undamaged files. A mutant is a copy of it with one of `files` changed.
    read: takes the folder of the copy. It may return, or raise UserError or CorruptImage;
        anything else is a fault.
    weight: how often this target is drawn.
    """

    name: str
    folder: Path
    files: Sequence[str]
    read: Callable[[Path], object]
    weight: int = 1


@dataclass
class Counts:
    """tried, read and refused by target; faults: what went wrong, by name of the mutant."""

    tried: Counter = field(default_factory=Counter)
    read: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)


class TookTooLong(BaseException):
    """Of no class that a reader may catch."""


def fuzz(
    targets: Sequence[Target], mutants: int, seed: int, work: Path, keep: Path | None = None
) -> Counts:
    """Tries `mutants` mutants, until a keyboard interrupt. The same seed makes the same mutants.

    keep: a folder for those that fail.
    """
    counts = Counts()
    with contextlib.suppress(KeyboardInterrupt):
        _try(counts, targets, mutants, seed, work, keep)
    return counts


def _try(
    counts: Counts,
    targets: Sequence[Target],
    mutants: int,
    seed: int,
    work: Path,
    keep: Path | None,
) -> None:
    done = 0
    drawn = random.Random(seed).choices(targets, [target.weight for target in targets], k=mutants)
    while done < mutants:
        last = min(done + OF_ONE_CHILD, mutants)
        for number, outcome in _in_a_child(drawn, range(done, last), seed, work):
            target = drawn[number]
            done = number + 1
            counts.tried[target.name] += 1
            if outcome in ("read", "refused"):
                getattr(counts, outcome)[target.name] += 1
                continue
            name = f"{target.name.replace(' ', '-')}-{seed}-{number}"
            counts.faults[name] = outcome
            if keep is not None:
                _copy(target, number, seed, keep / name)
                (keep / name / "fault.txt").write_text(outcome)


def _in_a_child(drawn: Sequence[Target], numbers: range, seed: int, work: Path):
    """Number and outcome of each mutant, up to one at which the child dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(drawn, numbers, seed, work, writing)
    os.close(writing)
    received = b""
    number = numbers.start
    try:
        while number < numbers.stop:
            ready, _, _ = select.select([reading], [], [], SECONDS + GRACE)
            block = os.read(reading, 1 << 16) if ready else b""
            if not block:
                break
            *outcomes, received = (received + block).split(b"\0")
            for outcome in outcomes:
                yield number, outcome.decode()
                number += 1
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reading)
    if number < numbers.stop:
        died = f"the process died, status {status}"
        yield number, died if ready else "no answer: the process was stopped"


def _child(drawn: Sequence[Target], numbers: range, seed: int, work: Path, writing: int) -> None:
    """Never returns."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the child ends)
    faulthandler.disable()  # the parent tells how a child died
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.RLIM_INFINITY))
    for number in numbers:
        _copy(drawn[number], number, seed, work / "mutant")
        os.write(
            writing, _outcome(drawn[number], work / "mutant").encode("utf-8", "replace") + b"\0"
        )
    signal.pause()


def _outcome(target: Target, folder: Path) -> str:
    signal.alarm(SECONDS)
    try:
        target.read(folder)
        return "read"
    except (UserError, CorruptImage):
        return "refused"
    except BaseException:
        return traceback.format_exc()[-4000:].replace("\0", "")
    finally:
        signal.alarm(0)


def _copy(target: Target, number: int, seed: int, place: Path) -> None:
    """The folder of a mutant."""
    chance = random.Random(f"{seed} {number}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(target.folder, place)
    file = place / chance.choice(list(target.files))
    file.write_bytes(mutate(file.read_bytes(), chance))


def _too_long(*_: object) -> None:
    raise TookTooLong(f"more than {SECONDS} seconds")


def table(counts: Counts) -> str:
    """The counts, a line for each target and one for all."""
    rows = [
        (name, counts.tried[name], counts.refused[name], counts.read[name])
        for name in sorted(counts.tried)
    ]
    rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2, 3))))
    lines = [f"{'target':24} {'tried':>8} {'refused':>8} {'read':>8} {'faults':>8}"]
    return "\n".join(
        lines
        + [
            f"{name:24} {tried:8} {refused:8} {read:8} {tried - refused - read:8}"
            for name, tried, refused, read in rows
        ]
    )
