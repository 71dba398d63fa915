"""What the data tests share: text in a temporary folder, with a token cache beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hgrn.data.text import TextData, TextSplit
from hgrn.data.tokens import TokenFile, prepare


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., TextData]:
    """Make TextData, by default with one split `train` of all text and with a new cache."""

    def make(files: list[Path] | None = None, **settings) -> TextData:
        settings.setdefault("splits", {"train": TextSplit()})
        settings.setdefault("cache", str(tmp_path / "cache"))
        return TextData(files=None if files is None else [str(file) for file in files], **settings)

    return make


@pytest.fixture
def make_tokens(tmp_path: Path, make_data) -> Callable[..., TokenFile]:
    """Byte tokens of the given documents, each a file."""

    def make(*documents: bytes) -> TokenFile:
        files = []
        for number, content in enumerate(documents):
            files.append(tmp_path / f"{number:04}.txt")
            files[-1].write_bytes(content)
        return prepare(make_data(files), "train")

    return make
