"""The pages of examples keep their word: every block of Python on them runs."""

import re

import pytest

from tests.conftest import ROOT

SNIPPETS = {
    f"{page}, block {number + 1}": code
    for page in ("cookbook.md", "tasks.md")
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    )
}


# peft asks transformers under a name that this release calls outdated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("place", SNIPPETS)
def test_python(place, tmp_path, monkeypatch):
    for package in ("peft", "accelerate"):
        if f"from {package}" in SNIPPETS[place] or "TrainingArguments" in SNIPPETS[place]:
            pytest.importorskip(
                package, reason=f"{package} is not installed (pip install {package})"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exec(compile(SNIPPETS[place], f"docs/{place}", "exec"), {})


def test_every_question_has_an_answer():
    page = (ROOT / "docs" / "cookbook.md").read_text()
    for title in (
        "nn.LSTM",
        "Single steps",
        "`Trainer`",
        "LoRA",
        "activation of your own",
    ):
        (section,) = [part for part in page.split("\n## ")[1:] if title in part.partition("\n")[0]]
        assert "```python" in section
