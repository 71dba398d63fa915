"""Which processes are alive: the holder of a lock, and the other ranks of a run.

A process is known by its number and by when it started, in ticks of the kernel's clock. `psutil`
gives the start in seconds of the wall clock, which moves when the clock is set; a live holder of a
lock would then look like another process.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hgrn.errors import UserError
from hgrn.files import is_running

_POLL = 0.25  # seconds between two looks at the other ranks
_GRACE = 3.0  # seconds in which a rank may still say why it ends
# What gloo says of a connection that is lost.
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "Timed out",
    "timed out",
)


@dataclass(frozen=True)
class Process:
    """A process; `born` tells it from a later one with the same number."""

    host: str
    pid: int
    born: str | None

    @classmethod
    def this(cls) -> "Process":
        """The process that asks."""
        return cls(socket.gethostname(), os.getpid(), _stat(os.getpid())[1])

    @classmethod
    def read(cls, text: str) -> "Process":
        """The process that `json.dumps(asdict(process))` wrote; ValueError for other text."""
        try:
            content = json.loads(text)
            process = cls(**content)
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        is_number = isinstance(process.pid, int) and not isinstance(process.pid, bool)
        is_text = isinstance(process.host, str) and isinstance(process.born, str | None)
        if not (is_text and is_number and 0 < process.pid < 1 << 31):
            raise ValueError(f"{content} is no process")
        return process

    @property
    def is_gone(self) -> bool:
        """Whether it was on this host and has ended; False for another host."""
        if self.host != socket.gethostname():
            return False
        if not is_running(self.pid):
            return True
        state, born = _stat(self.pid)
        return state == "Z" or born not in (None, self.born)


def _stat(pid: int) -> tuple[str | None, str | None]:
    """The state of a process, and its start in the kernel's clock ticks; None without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, None
    # The name in parentheses may hold spaces and parentheses itself, so fields count from its end.
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]


def outlive_torchrun() -> None:
    """Ignore SIGTERM from now on, so that this rank can still print its error.

    torchrun sends it to the ranks that survive another one.
    """
    # Python lets only the main thread set handlers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Peers:
    """The ranks of a process group, watched by each of them."""

    def __init__(self):
        """Exchange with every rank of the group which process it is; collective."""
        self.rank = dist.get_rank()
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, Process.this())
        self._all: list[Process] = gathered

    def gone(self, within: float = 0.0) -> list[int]:
        """The ranks that have ended; waits for the first of them for at most `within` seconds."""
        until = time.monotonic() + within
        while (
            not (found := [rank for rank, process in enumerate(self._all) if process.is_gone])
            and time.monotonic() < until
        ):
            time.sleep(_POLL)
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, this process ends itself when it waits in vain for a rank that has ended.

        gloo raises an error as soon as a connection breaks (see `explained`). NCCL may wait inside
        the driver, where neither an exception nor a signal handler of Python gets a turn; then a
        thread says what has happened and ends the process.
        """
        left = threading.Event()
        threading.Thread(target=self._watch, args=(left,), name="hgrn peers", daemon=True).start()
        try:
            yield
            # A rank that is done must not look like one that has died.
            dist.barrier()
        finally:
            left.set()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the error of a rank that has lost another one into a UserError.

        SIGTERM is ignored from then on.
        """
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(
                sign in str(error) for sign in _LOST
            ):
                raise
            outlive_torchrun()
            raise UserError(self._message(self.gone(within=_GRACE))) from error

    def _watch(self, left: threading.Event) -> None:
        while not left.wait(_POLL):
            if (gone := self.gone()) and not left.wait(_GRACE):
                print(f"hgrn: error: {self._message(gone)}", file=sys.stderr, flush=True)
                os._exit(2)

    def _message(self, gone: list[int]) -> str:
        if gone:
            which = " and ".join(f"rank {rank} (process {self._all[rank].pid})" for rank in gone)
            what = f"{which} {'has' if len(gone) == 1 else 'have'} ended"
        else:
            what = "the connection to another rank is broken"
        return (
            f"{what}, as rank {self.rank} noticed, so all ranks stop: look above for the reason. "
            "Start the run again with --resume, on as many processes or on others: it goes on from "
            "its last complete checkpoint."
        )
