"""docs/cookbook.md keeps its word: every block of Python on it runs."""

import re

import pytest

from tests.conftest import ROOT

SNIPPETS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text(), re.DOTALL
)


# peft asks transformers under a name that this release calls outdated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python(number, tmp_path, monkeypatch):
    for package in ("peft", "accelerate"):
        if f"from {package}" in SNIPPETS[number] or "TrainingArguments" in SNIPPETS[number]:
            pytest.importorskip(
                package, reason=f"{package} is not installed (pip install {package})"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exec(compile(SNIPPETS[number], f"docs/cookbook.md, block {number + 1}", "exec"), {})


def test_every_question_has_an_answer():
    page = (ROOT / "docs" / "cookbook.md").read_text()
    for title in (
        "nn.LSTM",
        "Single steps",
        "`Trainer`",
        "LoRA",
        "task of your own",
        "activation of your own",
    ):
        (section,) = [part for part in page.split("\n## ")[1:] if title in part.partition("\n")[0]]
        assert "```python" in section
