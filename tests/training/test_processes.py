"""Runs that are killed, and runs of two processes (see processes.py for how they are made)."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from hgrn.training.checkpointing import SavePoint
from hgrn.training.runlog import read_rows
from tests.conftest import ROOT


def results_of(task, folder):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.processes", task, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    return results_of("kills", tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("point", get_args(SavePoint))
@pytest.mark.parametrize("state", ["carry", "documents"])
def test_a_run_killed_in_a_save_ends_with_the_same_weights_when_resumed(kills, state, point):
    killed, weights = kills[f"{state}: {point}"]
    assert killed == -9
    assert weights == kills[f"{state}: whole"][1]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("state", ["carry", "documents"])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(kills, state, number):
    assert kills[f"{state}: random {number}"][1] == kills[f"{state}: whole"][1]


@pytest.mark.slow
def test_random_kills_hit_living_runs(kills):
    assert any(result[0] == -9 for name, result in kills.items() if "random" in name)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "runs"
    return results_of("ranks", folder) | {"folder": folder}


def test_two_ranks_take_the_steps_of_one_process(ranks):
    """The micro-batches of two ranks have unequal numbers of tokens that count."""
    assert ranks["world 1"] == [0] and ranks["world 2"] == [0, 0]
    one, two = (read_rows(ranks["folder"] / f"world {world}" / "log.jsonl") for world in (1, 2))
    assert len(one) == len(two) == 8  # six steps, two validations
    for row, other in zip(one, two, strict=True):
        assert (row["kind"], row["step"]) == (other["kind"], other["step"])
        for key in row.keys() & {"loss", "grad_norm", "bits_per_byte", "tokens"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5), (row["step"], key)


def test_two_ranks_stop_together_and_resume_exactly(ranks):
    assert ranks["whole"] == ranks["stopped"] == ranks["resumed"] == [0, 0]
    assert ranks["stopped at"] == "step-000007"
    whole, resumed = ranks["weights"]
    assert whole == resumed


def test_one_process_goes_on_for_two(ranks):
    """Dropout draws other numbers, so the weights are others."""
    assert ranks["alone"] == [0]
