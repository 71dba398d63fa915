"""A rank that is killed: the real command under the real torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hgrn.training.manifests import latest_valid
from hgrn.training.recipe import recipe_to_yaml
from tests.conftest import ROOT
from tests.tolerances import assert_close
from tests.training.tiny_runs import tiny_recipe

pytestmark = pytest.mark.slow
STEPS = 20


def command(folder, out, ranks, *more):
    """What a person types; the recipe is in `folder`."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [
        sys.executable,
        *start,
        "-m",
        "hgrn",
        "train",
        str(folder / "made.yaml"),
        "--out",
        str(folder / out),
        *more,
    ]


def started(arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(arguments):
    process = started(arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def process_of_rank(torchrun, rank):
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"rank {rank} is not there")


def weights(folder, run):
    checkpoint, _ = latest_valid(folder / run)
    assert checkpoint.name == f"step-{STEPS:06d}"
    return load_file(checkpoint / "model.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_rank_ends_the_job_in_seconds_and_it_resumes(tmp_path):
    recipe = tiny_recipe(
        tmp_path,
        model__dropout=0,
        batch__state="carry",
        training__steps=STEPS,
        training__save_every=5,
        training__log_every=1,
        training__eval_every="null",
        parallel__mode="fsdp",
    )
    (tmp_path / "made.yaml").write_text(recipe_to_yaml(recipe))
    finished(command(tmp_path, "whole", 2))

    torchrun = started(command(tmp_path, "killed", 2))
    for line in torchrun.stdout:
        if line.startswith("step 8:"):
            os.kill(process_of_rank(torchrun, 1), signal.SIGKILL)
            break
    began = time.monotonic()
    output, _ = torchrun.communicate(timeout=60)
    assert time.monotonic() - began < 30 and torchrun.returncode != 0
    (message,) = [line for line in output.splitlines() if line.startswith("hgrn: error:")]
    assert "rank 1 (process" in message and "as rank 0 noticed" in message and "--resume" in message
    checkpoint, passed_over = latest_valid(tmp_path / "killed")
    assert checkpoint.name in ("step-000005", "step-000010") and not passed_over

    for ranks in (1, 2):
        run = f"resumed by {ranks}"
        shutil.copytree(tmp_path / "killed", tmp_path / run)
        assert f"resumed at step {int(checkpoint.name[-2:])}" in finished(
            command(tmp_path, run, ranks, "--resume")
        )
        for name, value in weights(tmp_path, "whole").items():
            assert_close(weights(tmp_path, run)[name], value, name=name)
