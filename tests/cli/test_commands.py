"""The commands end to end on a tiny run: what they print, and what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hgrn.cli import main
from tests.cli.conftest import TINY


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_train_leaves_a_log_checkpoints_and_tensorboard(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [2, 4]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    assert list((trained / "tensorboard").glob("events*"))


def test_eval_of_the_recipes_split_and_of_other_text(trained, text, capsys):
    assert main(["eval", str(trained)]) == 0
    own = capsys.readouterr().out.splitlines()
    assert own[-1].startswith("test bits per byte: ") and "239 bytes" in own[0]
    assert main(["eval", str(trained), "--data", str(text)]) == 0
    other = capsys.readouterr().out.splitlines()
    assert "4,799 bytes" in other[0] and other[-1].startswith(f"{text} bits per byte: ")
    assert main(["eval", str(trained), "--data", str(text), str(text)]) == 0
    assert f"\n{text}, {text} bits per byte: " in capsys.readouterr().out


def test_data_that_cannot_be_evaluated(trained, tmp_path, fails):
    assert "the name '' is empty" in fails("eval", trained, "--data", "")
    (tmp_path / "empty.txt").write_bytes(b"")
    assert "empty.txt holds no text" in fails("eval", trained, "--data", tmp_path / "empty.txt")
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.4")
    assert "book.pdf is a PDF" in fails("eval", trained, "--data", tmp_path / "book.pdf")


def test_generate_repeats_with_a_seed_and_streams_the_prompt_first(trained, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert (
            main(
                [
                    "generate",
                    str(trained),
                    "--prompt",
                    "Once",
                    "--max-new-tokens",
                    "30",
                    "--seed",
                    seed,
                ]
            )
            == 0
        )
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert all(out.startswith("Once") and len(out) > 10 for out in outputs)


def test_temperature_zero_takes_the_likeliest(trained, capsys):
    for _ in range(2):
        assert (
            main(
                [
                    "generate",
                    str(trained),
                    "--prompt",
                    "A",
                    "--max-new-tokens",
                    "8",
                    "--temperature",
                    "0",
                ]
            )
            == 0
        )
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == second


def test_eight_bit_weights_cost_little(trained, capsys):
    costs = []
    for options in ([], ["--int8"]):
        assert main(["eval", str(trained), *options]) == 0
        costs.append(float(capsys.readouterr().out.split()[-1]))
    assert costs[1] == pytest.approx(costs[0], abs=0.05)
    assert (
        main(
            [
                "generate",
                str(trained),
                "--prompt",
                "A",
                "--max-new-tokens",
                "8",
                "--temperature",
                "0",
                "--int8",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("A")


def test_tokenizer_train_and_a_run_with_it(text, tmp_path, capsys):
    assert (
        main(
            ["tokenizer", "train", str(text), "--vocab-size", "300", "--out", str(tmp_path / "bpe")]
        )
        == 0
    )
    assert str(tmp_path / "bpe") in capsys.readouterr().out
    arguments = [
        "--data.files",
        str(text),
        "--data.tokenizer",
        str(tmp_path / "bpe"),
        "--out",
        str(tmp_path / "run"),
    ]
    small = [
        "--batch.block_size",
        "8",
        "--batch.batch_size",
        "2",
        "--data.splits.validation.span",
        "0",
        "1",
    ]
    assert main(["train", "lm/text", *TINY, *arguments, *small]) == 0


def test_synthetic_tasks_are_made_and_read_back(tmp_path, fails, capsys):
    from hgrn.data.lra.listops import ListOpsData
    from hgrn.data.lra.load import prepare
    from hgrn.data.lra.pathfinder import PathfinderData
    from hgrn.data.lra.pathfinder_generator import generate
    from hgrn.data.lra.pathfinder_settings import arena_settings

    listops = tmp_path / "listops"
    paths = tmp_path / "paths"
    short = ["--min-length", "5", "--max-length", "40", "--processes", "1"]
    assert (
        main(
            [
                "data",
                "listops",
                str(listops),
                "--train",
                "30",
                "--validation",
                "5",
                "--test",
                "5",
                *short,
            ]
        )
        == 0
    )
    assert "train: 30 expressions" in capsys.readouterr().out
    data = prepare(ListOpsData(str(listops), cache=str(tmp_path / "cache")))
    assert [len(split) for split in data.splits.values()] == [30, 5, 5]
    assert (
        main(
            [
                "data",
                "pathfinder",
                str(paths),
                "--number",
                "20",
                "--contour-length",
                "9",
                "--processes",
                "1",
            ]
        )
        == 0
    )
    assert "20 images" in capsys.readouterr().out
    data = prepare(
        PathfinderData(
            str(paths), difficulty="curv_contour_length_9", cache=str(tmp_path / "cache")
        )
    )
    assert [len(split) for split in data.splits.values()] == [16, 2, 2]
    options = [
        "--size",
        "64",
        "--distractors",
        "2",
        "--no-crossings",
        "--seed",
        "5",
        "--number",
        "10",
        "--processes",
        "1",
    ]
    assert main(["data", "pathfinder", str(tmp_path / "larger"), *options]) == 0
    data = prepare(PathfinderData(str(tmp_path / "larger"), cache=str(tmp_path / "cache")))
    assert data.splits["train"].images.shape == (8, 1, 64, 64)
    made = tmp_path / "made"
    generate(made, arena_settings(64, 14, 2, crossings=False), 5, 10, processes=1)
    for image in sorted(made.rglob("*.png")):
        assert image.read_bytes() == (tmp_path / "larger" / image.relative_to(made)).read_bytes()
    assert "exists already" in fails("data", "listops", listops)
    assert "size must be one of 32, 64, 128, 256; got 33" in fails(
        "data", "pathfinder", paths, "--size", "33"
    )


def test_resume_goes_on_and_a_second_run_is_refused(text, tmp_path, fails, capsys):
    base = ["train", "lm/text", "--data.files", str(text), "--out", str(tmp_path / "run"), *TINY]
    assert main(base) == 0
    before = snapshot(tmp_path / "run")
    assert "already holds a run" in fails(*base)
    assert snapshot(tmp_path / "run") == before
    assert main([*base, "--resume"]) == 0
    assert "resumed at step 4" in capsys.readouterr().out


def test_doctor(capsys):
    status = main(["doctor", "--no-speed"])
    out = capsys.readouterr().out
    assert status == 0 and "engine numba (cpu)" in out and "from the float64 reference" in out


def test_train_help_lists_every_recipe(capsys):
    from hgrn.recipes import shipped

    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in out for name in shipped())


def test_output_that_nobody_reads_any_more(trained):
    """`hgrn generate ... | head -c 1` ends without a traceback."""
    command = [
        sys.executable,
        "-m",
        "hgrn",
        "generate",
        str(trained),
        "--prompt",
        "A",
        "--max-new-tokens",
        "200",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0


def test_a_table_of_the_arena(tmp_path, fails, capsys):
    from hgrn.training.loop import train
    from tests.training.tiny_arena import tiny_arena_recipe

    assert "holds no run of task long-range-arena" in fails("arena", "--runs", tmp_path)
    train(tiny_arena_recipe("listops", tmp_path / "data", training__steps=2), tmp_path / "run")
    assert main(["arena", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "majority" in printed[0] and printed[-1] == f"wrote {tmp_path / 'arena.md'}"
    assert "| task | data | paper | ours |" in (tmp_path / "arena.md").read_text()
