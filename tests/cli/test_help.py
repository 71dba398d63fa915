"""What the command line says of itself: its help, the recipes, names that are nearly right."""

import subprocess
import sys

import pytest

from hgrn.cli import main
from hgrn.cli.main import COMMANDS
from hgrn.recipes import shipped, summaries


def test_without_a_command_there_is_help(capsys):
    printed = []
    for words in ([], ["--help"], ["data"], ["data", "--help"], ["tokenizer"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[2] == printed[3]
    assert all(name.split()[0] in printed[0] for name in COMMANDS)
    assert "listops" in printed[2] and "train" in printed[4]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0 and f"\n  hgrn {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, hint",
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["data", "listop"], "unknown command 'data listop'; did you mean data listops?"),
        (["listops"], "did you mean data listops?"),
        (["--verison"], "did you mean --version?"),
        (["data", "--hepl"], "did you mean --help?"),
        (["eval", "run", "--splitt", "test"], "did you mean --split?"),
        # A required option that is misspelt is not told as one that is missing.
        (["generate", "run", "--promt", "A"], "did you mean --prompt? (see hgrn generate --help)"),
        (["generate", "run", "--prompt", "A", "--int8", "--tokeniser", "x"], "mean --tokenizer?"),
        (["train", "quickstart", "--data.files", "a.txt", "--resum"], "did you mean --resume?"),
        (["train", "quickstart", "--lr", "1"], "such as --optimizer.lr 1e-3: `hgrn recipes NAME`"),
        (["train", "quickstart", "--optimizer.learning_rate", "1"], "did you mean lr?"),
        (["recipes", "quikstart"], "did you mean quickstart or quickstart-hgrn2?"),
        (["eval", "run", "more"], "unknown argument 'more' (see hgrn eval --help)"),
    ],
)
def test_a_name_that_is_nearly_right(fails, words, hint):
    assert hint in fails(*words)


def test_commands_that_are_gone(fails):
    assert "unknown command 'bench' (see hgrn --help)" in fails("bench")
    assert "no checkpoint folder lra" in fails("eval", "lra")


def test_recipes_are_listed_with_a_line_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(shipped())]] == list(shipped())
    assert all(about and about in line for line, about in zip(lines, summaries().values()))


@pytest.mark.parametrize("name", ["lm/text", "image/cifar10", "lra/listops"])
def test_a_recipe_is_shown_field_by_field_though_its_data_is_not_here(name, capsys):
    assert main(["recipes", name, "--optimizer.lr", "0.125", "--schedule.warmup_steps", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}: {summaries()[name]}"
    rows = [line.split(maxsplit=1) for line in lines[1:] if line]
    shown = {field: " ".join(rest.split()) for field, rest in rows}
    assert shown["optimizer.lr"] == "0.125 peak learning rate; must be given"
    assert (
        shown["schedule.warmup_steps"].startswith("0 ")
        and "(" not in shown["schedule.warmup_steps"]
    )
    assert "(default: " in shown["optimizer.weight_decay"]


def test_help_does_not_wait_for_heavy_packages():
    program = """
import sys
from hgrn.cli import main
for words in (["--help"], ["train", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit:
        pass
heavy = {"torch", "numpy", "numba", "transformers", "pydantic", "yaml", "rich", "inspect"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
