"""The one progress bar of the package, and the one type of function that hears of progress."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

OnProgress = Callable[[int, int | None], None]
"""Is called with (done, total) as work goes on; total is None while it is not known."""


class Bar:
    """A progress bar on a terminal, and nothing elsewhere. A context manager, called with
    (done, total).

    title: the words in front of the bar. stream: where it is drawn, standard error by default.
    keep: whether the finished bar stays on the screen. shown: None draws it if `stream` is a
    terminal.
    """

    def __init__(
        self,
        title: str,
        stream: TextIO | None = None,
        *,
        keep: bool = False,
        shown: bool | None = None,
    ):
        # rich takes a moment to import, so `import hgrn.progress` must not pay for it.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        # A process may be started without standard error.
        out: TextIO = stream or sys.stderr or io.StringIO()
        self.is_shown = out.isatty() if shown is None else shown
        self._progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(file=out, highlight=False),
            transient=not keep,
            disable=not self.is_shown,
            refresh_per_second=4,
        )
        self._title = title
        self._task = None

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` steps are done; `note` stands behind the bar."""
        # The bar appears at the first call, so a command that fails early leaves no empty one.
        if self._task is None:
            self._task = self._progress.add_task(
                self._title, total=total, completed=done, note=note
            )
        else:
            self._progress.update(self._task, completed=done, total=total, note=note)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own across ours."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
