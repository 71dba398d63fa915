"""`hgrn quickstart`: a tiny one for its parts, and the real one for its figure."""

import os
import re
import subprocess
import sys

import pytest

from hgrn.cli import quickstart

TINY = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "batch.block_size": 32,
    "batch.batch_size": 4,
    "schedule.warmup_steps": 1,
    "training.steps": 4,
    "training.eval_every": 2,
    "training.eval_tokens": 100,
    "training.log_every": 1,
    "data.splits.test.span": [0.999, 1.0],
}


def test_a_tiny_quickstart_leaves_everything_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "runs" / "quickstart"
    result = quickstart.tour(out, TINY)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"test bits per byte: {result.bits_per_byte:.3f}"
    named = [word for word in re.findall(r"\S+", printed) if word.startswith(str(out))]
    assert len(named) >= 4
    for name in ("learning_curve.png", "forget_gates.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG") and (
            out / name
        ).stat().st_size > 10_000
    assert quickstart.PROMPT in printed


def test_the_next_free_folder(tmp_path):
    assert quickstart.free_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert quickstart.free_folder(tmp_path / "run") == tmp_path / "run-2"
    (tmp_path / "run-2").mkdir()
    assert quickstart.free_folder(tmp_path / "run") == tmp_path / "run-3"


@pytest.mark.slow
def test_the_quickstart_reaches_its_figure(tmp_path):
    """The real thing, as a user runs it; and its checkpoint in a program that imports no hgrn."""
    # One thread: two would wait for each other where other tests run beside this one.
    done = subprocess.run(
        [sys.executable, "-m", "hgrn", "quickstart"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"test bits per byte: \d\.\d{3}", last) and float(last.split()[-1]) <= 2.05
    (checkpoint,) = re.findall(
        r"^  (\S+)   a model that transformers loads$", done.stdout, re.MULTILINE
    )
    program = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({checkpoint!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({checkpoint!r})
ids = tokenizer("KING", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0]))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert loaded.returncode == 0 and loaded.stdout.startswith("KING"), loaded.stderr
