"""The threads of a run: as many as the recipe says, if the machine can run them."""

import threading

import pytest
import torch

from hgrn.errors import UserError
from hgrn.training import threads
from hgrn.training.threads import cpu_threads


def test_threads_are_set_meanwhile():
    before = torch.get_num_threads()
    for count, inside in ((None, before), (1, 1), (3, 3)):
        with cpu_threads(count):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [5_000, 1_000_000, 10**12, 10**30])
def test_too_many_threads_are_refused(count):
    before = torch.get_num_threads()
    message = (
        f"training.threads must be at most [0-9]+, got {count}; this machine has [0-9]+ processors"
    )
    with pytest.raises(UserError, match=message), cpu_threads(count):
        raise AssertionError("they were set")
    assert torch.get_num_threads() == before


def test_what_the_system_cannot_start_is_refused(monkeypatch):
    started = []

    class Thread(threading.Thread):
        def start(self):
            if len(started) == 7:
                raise RuntimeError("can't start new thread")
            started.append(self)
            super().start()

    monkeypatch.setattr(threads.threading, "Thread", Thread)
    with (
        pytest.raises(
            UserError,
            match="training.threads = 64, but the system lets this process start only 7 more",
        ),
        cpu_threads(64),
    ):
        raise AssertionError("they were set")
    assert not any(thread.is_alive() for thread in started)
