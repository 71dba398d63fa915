"""Signals that ask a run to stop, heard between its steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(*, second_aborts: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come. They do nothing else inside.

    second_aborts: a second SIGINT raises KeyboardInterrupt. Under torchrun it must not, because the
    terminal's Ctrl-C may come twice.
    """
    received = []

    def handle(number: int, frame: object) -> None:
        if second_aborts and number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
