"""docs/hugging_face.md keeps its word: its Python runs, and the tests that it names exist."""

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "hugging_face.md").read_text()
SNIPPETS = [
    code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "FOLDER" not in code
]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"docs/hugging_face.md, snippet {number + 1}", "exec"), {})


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 20
    for file, name in NAMED:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), (
            f"{file} has no {name}"
        )
