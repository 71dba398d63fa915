"""Hostile arena files: content that costs more than it seems, and names that lead elsewhere."""

import gzip
import json

import numpy as np
import pytest

from hgrn.data import files
from hgrn.data.files import TextFile
from hgrn.data.lra import load
from hgrn.data.lra.npy import NUMPY_MAGIC, read_table
from hgrn.data.lra.pathfinder import HARD, PathfinderData
from hgrn.data.lra.retrieval import FILES, RetrievalData
from hgrn.data.lra.text import TextClassificationData
from hgrn.errors import UserError
from tests.training.tiny_arena import write_arena


def labelled(folder, labels):
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels)
        )
    return load.prepare(
        TextClassificationData(path=str(folder), cache=str(folder / "cache"), min_count=1)
    )


@pytest.mark.parametrize("label", [10_000, 30_000_000, 10**12, 10**40])
def test_one_large_label(tmp_path, label):
    with pytest.raises(
        UserError,
        match=f"label {label} is too large: there are 2 different labels, and numbers are read "
        "up to 9999",
    ):
        labelled(tmp_path, [0, label])


def test_many_labels(tmp_path):
    assert labelled(tmp_path, [0, 9_999]).num_classes == 10_000
    assert labelled(tmp_path, range(2_000)).num_classes == 2_000


@pytest.mark.parametrize("label", ["inf", "-inf", "nan", "1e999", "0.5", "2", "x", ""])
def test_labels_of_pairs(tmp_path, label):
    write_arena("retrieval", tmp_path / "pairs")
    (tmp_path / "pairs" / FILES["test"]).write_text(f"{label}\t1\t2\ta\tb\n")
    with pytest.raises(UserError, match=f"the label must be 0.0 or 1.0; got '{label}'"):
        load.prepare(RetrievalData(path=str(tmp_path / "pairs"), cache=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "\udce9".encode("utf-8", "surrogateescape").decode("latin-1") + "\x85",
    ],
)
@pytest.mark.parametrize("form", ["text", "numpy"])
def test_names_of_images_lead_nowhere_else(tmp_path, name, form):
    write_arena("pathfinder", tmp_path / "pathfinder")
    table = tmp_path / "pathfinder" / HARD / "metadata" / "0.npy"
    if form == "text":
        table.write_bytes(f"imgs/0 {name} 0 1\n".encode("latin-1"))
    else:
        np.save(table, np.array([["imgs/0", name, "0", "1"]]))
    with pytest.raises(
        UserError, match="is not a name inside of the folder|neither a table of text"
    ):
        load.prepare(
            PathfinderData(path=str(tmp_path / "pathfinder"), cache=str(tmp_path / "cache"))
        )


def saved(tmp_path, array) -> bytes:
    np.save(tmp_path / "array.npy", array)
    return (tmp_path / "array.npy").read_bytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "é"], ["", "long"]]),
        np.array([[b"a"], [b"bcd"]]),
        np.arange(6).reshape(3, 2),
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        np.array([["a", "b"]], dtype=">U3"),
        np.array([[True, False]]),
    ],
)
def test_tables_are_read_as_numpy_does(tmp_path, array):
    assert read_table(saved(tmp_path, array)) == array.tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.replace(b"(3, 2), }" + b" " * 10, b"(99999999999, 2), }"), "need .* bytes"),
        (lambda c: c.replace(b"(3, 2)", b"(3, -2)"), "its header"),
        (lambda c: c.replace(b"(3, 2)", b"(3,)  "), "its header"),
        (lambda c: c.replace(b"(3, 2)", b"(0, 2)"), "need 0 bytes"),
        (lambda c: c.replace(b"<U4", b"|O8"), "its header"),
        (lambda c: c.replace(b"<U4", b"<U0"), "need 0 bytes"),
        (lambda c: c.replace(b"'<U4'", b"[(1,)]"), "its header"),
        (lambda c: c[:8] + b"\xff\xff" + c[10:], "its header"),
        (lambda c: c.replace(NUMPY_MAGIC + b"\1", NUMPY_MAGIC + b"\7"), "its version"),
        (lambda c: c[:-4] + b"\xff\xff\xff\x7f", "characters that do not exist"),
        (lambda c: c[:-1], "need 96 bytes, and 95 are there"),
        (lambda c: c[:9], "its header"),
    ],
)
def test_tables_that_are_damaged(tmp_path, change, message):
    content = saved(tmp_path, np.array([["a", "b"], ["c", "d"], ["e", "long"]]))
    with pytest.raises(ValueError, match=message):
        read_table(change(content))


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 999 + b"\n" + b"\n" + b"y" * 5000))
    lines = TextFile("a", path).lines()
    assert next(lines) == (1, b"x" * 999 + b"\n")
    with pytest.raises(UserError, match="a:3: the line has more than 1,000 bytes"):
        next(lines)
