"""Two thousand mutants of every kind of file are read or refused, and the fuzzer sees faults."""

import random
import time

import pytest

from hgrn.errors import UserError
from tests.fuzz import run
from tests.fuzz.mutations import mutate
from tests.fuzz.run import Target, fuzz, table
from tests.fuzz.targets import make_targets


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("fuzz") / "whole")


@pytest.mark.slow
def test_two_thousand_mutants(targets, tmp_path):
    counts = fuzz(targets, 2000, seed=0, work=tmp_path, keep=tmp_path / "faults")
    print(table(counts))
    assert not counts.faults, "\n".join(
        f"{tmp_path / 'faults' / name}: {fault}" for name, fault in counts.faults.items()
    )
    assert sum(counts.tried.values()) == 2000 and counts.tried.keys() == {
        target.name for target in targets
    }
    assert sum(counts.refused.values()) > 800


def test_whole_files_are_read(targets, tmp_path):
    """A reader that refused everything would pass the test above."""
    for target in targets:
        if target.name not in (
            "session",
            "run lock",
        ):  # which must refuse, or belong to another host
            target.read(run.shutil.copytree(target.folder, tmp_path / target.name))


def test_the_same_seed_makes_the_same_mutants():
    content = b'{"a": 1, "b": [2, 3]}' * 9
    mutants = [
        [mutate(content, random.Random(f"{seed} {number}")) for number in range(200)]
        for seed in (0, 0, 1)
    ]
    assert mutants[0] == mutants[1] != mutants[2] and content not in mutants[0]
    assert len(set(mutants[0])) > 150


def refuse(folder):
    raise UserError("no")


def fail(folder):
    raise KeyError("unexpected")


def die(folder):
    run.os.kill(run.os.getpid(), run.signal.SIGSEGV)


def wait(folder):
    while True:
        pass


def sleep_through_the_alarm(folder):
    run.signal.signal(run.signal.SIGALRM, run.signal.SIG_IGN)
    time.sleep(1000)


def fill(folder):
    return bytearray(b"x") * (3 << 30)


@pytest.mark.parametrize(
    "read, fault",
    [
        (fail, "KeyError: 'unexpected'"),
        (die, "the process died"),
        (wait, "TookTooLong"),
        (sleep_through_the_alarm, "no answer"),
        (fill, "MemoryError"),
    ],
)
def test_whatever_is_no_refusal_is_a_fault(tmp_path, monkeypatch, read, fault):
    monkeypatch.setattr(run, "SECONDS", 1)
    monkeypatch.setattr(run, "GRACE", 1)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "file").write_bytes(b"content")
    bad = Target("bad", tmp_path / "whole", ["file"], read)
    counts = fuzz(
        [bad, Target("good", tmp_path / "whole", ["file"], refuse)],
        4,
        1,
        tmp_path,
        tmp_path / "faults",
    )
    assert (
        counts.tried["bad"] == len(counts.faults) > 0
        and counts.refused["good"] == counts.tried["good"] > 0
    )
    assert all(fault in found for found in counts.faults.values())
    assert all(
        (tmp_path / "faults" / name / "file").read_bytes() != b"content" for name in counts.faults
    )
