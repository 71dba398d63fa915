"""The README keeps its word: its Python runs, and its test command is what `.ci/run` runs."""

import re

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python(number):
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {})


def test_there_are_two_commands_of_one_line():
    assert len(COMMANDS) == 2
    assert not any("\n" in command for command in COMMANDS)
    assert COMMANDS[0].endswith("&& hgrn quickstart") and "-c constraints.txt" in COMMANDS[0]


def test_continuous_integration_runs_the_second_command():
    """Each part of it is a line of `.ci/run`, in the same order; lint and types come between."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    places = [lines.index(part) for part in COMMANDS[1].split(" && ")]
    assert places == sorted(places)
    checks = ["ruff format --check .", "ruff check .", "basedpyright"]
    assert all(places[-2] < lines.index(check) < places[-1] for check in checks)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
