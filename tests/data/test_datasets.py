"""Text from Hugging Face datasets: local folders here, and what the hub's errors become."""

import pytest

from hgrn.data.text import Select, SplitText, TextSplit
from hgrn.data.tokens import prepare
from hgrn.errors import UserError

LINES = ["", " = Title = \n", "", " one two \n", " three \n"]


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


@pytest.fixture
def folder(datasets, tmp_path):
    """A data set with splits train and test, as `save_to_disk` writes it."""
    train = datasets.Dataset.from_dict({"text": LINES, "year": [1, 2, 3, 4, 5]})
    test = datasets.Dataset.from_dict({"text": ["later"], "year": [6]})
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def read(data, split):
    return [
        b"".join(unit.blocks).decode()
        for unit in SplitText(data, split).units(whole_characters=False)
    ]


def test_saved_splits(folder, make_data):
    splits = {
        "train": TextSplit(),
        "valid": TextSplit(name="test"),
        "half": TextSplit(name="train", span=(0.5, 1)),
        "early": TextSplit(name="train", select=Select("year", below=3)),
    }
    data = make_data(dataset=str(folder), splits=splits)
    assert read(data, "train") == LINES
    assert read(data, "valid") == ["later"]
    assert read(data, "half") == LINES[2:]
    assert read(data, "early") == LINES[:2]


def test_saved_without_splits(datasets, tmp_path, make_data):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "flat"))
    splits = {"train": TextSplit(span=(0, 0.5)), "test": TextSplit(span=(0.5, 1))}
    data = make_data(dataset=str(tmp_path / "flat"), splits=splits)
    assert read(data, "train") == ["a"] and read(data, "test") == ["b"]


def test_folder_of_files(tmp_path, datasets, make_data):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    data = make_data(dataset=str(tmp_path / "raw"), text_field="body")
    assert read(data, "train") == ["a", "b"]


def test_lines_of_wikitext_are_documents(folder, make_data):
    tokens = prepare(make_data(dataset=str(folder), documents="line"), "train")
    text = "".join(chr(token) if token < 256 else "|" for token in tokens.read(0, len(tokens)))
    assert text == "| = Title = || one two | three "
    assert tokens.num_documents == 5
    assert tokens.num_bytes == len(text)


def test_cache_follows_the_content(datasets, tmp_path, make_data):
    def save(text):
        datasets.Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / "flat"))
        return prepare(make_data(dataset=str(tmp_path / "flat")), "train").fingerprint

    first = save("one")
    assert save("two") != first
    assert save("one") == first


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"splits": {"train": TextSplit(name="nope")}},
            "split 'nope' cannot be loaded: it has no split 'nope'; there is train, test",
        ),
        ({"text_field": "body"}, "no column 'body'; set text_field to one of text, year"),
    ],
)
def test_wrong_names(folder, make_data, settings, message):
    with pytest.raises(UserError, match=message):
        SplitText(make_data(dataset=str(folder), **settings), "train")


def test_what_datasets_raises_becomes_one_message(datasets, make_data, monkeypatch):
    errors = [
        ConnectionError("Couldn't reach 'wikitext' on the Hub\nmore"),
        ValueError("Unknown split"),
        datasets.exceptions.DatasetGenerationError("An error occurred"),
        OSError(),
    ]
    for error in errors:

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        data = make_data(dataset="wikitext", config="wikitext-103-raw-v1")
        with pytest.raises(
            UserError,
            match="^dataset 'wikitext', config 'wikitext-103-raw-v1', split "
            "'train' cannot be loaded: .*network connection",
        ) as caught:
            SplitText(data, "train")
        assert "\n" not in str(caught.value)
