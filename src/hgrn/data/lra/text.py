"""Text with a class: the arena's Text task (IMDB reviews, as characters), or any text of one's own.

IMDB as its authors publish it is a folder with `{train,test}/{neg,pos}/*.txt`; as a data set of `datasets` it has
columns text and label. Text of one's own is a folder with `train.jsonl`, `test.jsonl` and perhaps
`validation.jsonl`, also compressed: an object with "text" and "label", a name or a number, a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.files import OPENERS, TextFile
from hgrn.data.hub import load_split
from hgrn.data.lra.splits import LabelledData, sequence_data, write_sequences
from hgrn.data.lra.vocabulary import BYTES, Vocabulary, build_characters, encode_bytes
from hgrn.errors import UserError
from hgrn.files import expanded

FORMAT = 1  # raise it when the same text gives other arrays
IMDB_CLASSES = ("neg", "pos")
MOST_WITHOUT_EXAMPLES = 10_000  # classes that numbers may stand for, however few of them there are
Level = Literal["characters", "bytes"]


@dataclass(frozen=True)
class TextClassificationData:
    """path: a folder of one of the three kinds, or the name of a data set. level: what a token is. max_length: longest
    sequence with its <eos>; longer texts are cut. min_count: how often a character must occur in the training split
    to have an id of its own. Where there is no validation split, the test split serves, as in the arena.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["text"] = "text"
    level: Level = "characters"
    max_length: int = 4096
    min_count: int = 15
    cache: str | None = None


class Record(NamedTuple):
    """Texts (one, or two to be compared) and what the file says of their class."""

    where: str
    texts: tuple[str, ...]
    label: str | int


Reader = Callable[[], Iterator[Record]]


@dataclass(frozen=True)
class Source:
    """readers: by split, train and test at least; each call reads anew. classes: None if the training split says.
    signature: plain data that changes when the text does."""

    readers: dict[str, Reader]
    classes: tuple[str, ...] | None
    signature: list


def prepare(data: TextClassificationData) -> LabelledData:
    """The three splits. Raises UserError for whatever is wrong with the files."""
    folder = expanded(data.path)
    if (folder / "train" / IMDB_CLASSES[0]).is_dir():
        source = _imdb(folder)
    elif (files := json_files(folder))["train"] is not None:
        source = json_source(data.path, files, ("text",))
    else:
        source = _dataset(data.path)
    return prepare_source(source, data.level, data.max_length, data.min_count, data.cache)


def prepare_source(
    source: Source, level: Level, max_length: int, min_count: int, cache: str | None
) -> LabelledData:
    """Encode what a source reads; of records with two texts, as pairs."""
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, a token and <eos>; got {max_length}")
    if level not in ("characters", "bytes"):
        raise UserError(f"level must be 'characters' or 'bytes'; got {level!r}")
    key = ["text", FORMAT, level, max_length, min_count, source.signature]
    return sequence_data(
        cached(
            cache_folder("lra", cache),
            key,
            lambda writer: _write(writer, source, level, max_length, min_count),
        )
    )


def json_files(folder: Path) -> dict[str, TextFile | None]:
    """`<split>.jsonl` in a folder, plain or compressed, by split."""

    def find(split: str) -> TextFile | None:
        names = [f"{split}.jsonl{suffix}" for suffix in ("", *OPENERS)]
        paths = [folder / name for name in names if (folder / name).is_file()]
        return TextFile(str(paths[0]), paths[0]) if paths else None

    return {split: find(split) for split in ("train", "validation", "test")}


def json_source(path: str, files: dict[str, TextFile | None], fields: tuple[str, ...]) -> Source:
    """Records of JSON Lines with texts in some fields and the class in "label"."""
    if files["test"] is None:
        raise UserError(f"path {path} has train.jsonl and no test.jsonl; give both")

    def read(file: TextFile) -> Iterator[Record]:
        for where, record in file.records():
            for field in (*fields, "label"):
                if field not in record:
                    raise UserError(
                        f"{where}: the record has no field {field!r}; it has {', '.join(record) or 'none'}"
                    )
            texts = tuple(record[field] for field in fields)
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"{where}: {' and '.join(map(repr, fields))} must be strings")
            label = record["label"]
            if not isinstance(label, (str, int)):
                raise UserError(f"{where}: label must be a name or a whole number; got {label!r}")
            yield Record(where, texts, label)

    present = {split: file for split, file in files.items() if file is not None}
    return Source(
        {split: (lambda file=file: read(file)) for split, file in present.items()},
        None,
        [fields, {split: file.signature() for split, file in present.items()}],
    )


def _imdb(folder: Path) -> Source:
    paths = {
        split: [
            path for name in IMDB_CLASSES for path in sorted((folder / split / name).glob("*.txt"))
        ]
        for split in ("train", "test")
    }
    for split, found in paths.items():
        if {path.parent.name for path in found} != set(IMDB_CLASSES):
            raise UserError(
                f"{folder / split} must have the folders {' and '.join(IMDB_CLASSES)} with .txt files in them"
            )

    def read(found: list[Path]) -> Iterator[Record]:
        for path in found:
            try:
                text = path.read_bytes().decode()  # as it is: no line ends are translated
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: byte {error.start} is not valid UTF-8") from None
            yield Record(str(path), (text,), path.parent.name)

    stats = [
        [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
        for found in paths.values()
        for path in found
    ]
    return Source(
        {split: (lambda found=found: read(found)) for split, found in paths.items()},
        IMDB_CLASSES,
        stats,
    )


def _dataset(name: str) -> Source:
    loaded = {split: load_split(name, None, split) for split in ("train", "test")}
    for split, column in product(loaded, ("text", "label")):
        if column not in loaded[split].column_names:
            raise UserError(
                f"dataset {name!r} has no column {column!r}; it has {', '.join(loaded[split].column_names)}"
            )
    classes = getattr(loaded["train"].features["label"], "names", None)

    def read(split: str) -> Iterator[Record]:
        for number, row in enumerate(loaded[split].select_columns(["text", "label"])):
            label = row["label"] if classes is None else classes[row["label"]]
            yield Record(f"{name}, {split}, record {number}", (row["text"],), label)

    files = [
        TextFile(entry["filename"], Path(entry["filename"])).signature()
        for each in loaded.values()
        for entry in each.cache_files
    ]
    signature = [name, [len(each) for each in loaded.values()], files]
    return Source(
        {split: (lambda split=split: read(split)) for split in loaded},
        None if classes is None else tuple(classes),
        signature,
    )


def _write(
    writer: EntryWriter, source: Source, level: Level, max_length: int, min_count: int
) -> dict:
    train = source.readers["train"]
    classes = source.classes or _classes(train())
    if level == "bytes":
        vocabulary = BYTES
    else:
        vocabulary = build_characters(
            (text[: max_length - 1] for record in train() for text in record.texts), min_count
        )
    for split, reader in source.readers.items():
        _write_split(writer, split, reader, classes, vocabulary, level, max_length)
    stored = {
        split: split if split in source.readers else "test"
        for split in ("train", "validation", "test")
    }
    return {
        "vocabulary": list(vocabulary.tokens),
        "classes": list(classes),
        "max_length": max_length,
        "stored": stored,
    }


def _classes(records: Iterable[Record]) -> tuple[str, ...]:
    """Names in order; numbers are labels already, and every one up to the largest is a class.

    Raises UserError for a number so large that it is no label: nearly all classes would have no example.
    """
    found = {record.label for record in records}
    if not found:
        raise UserError("the training split has no records")
    if all(isinstance(label, str) for label in found):
        return tuple(sorted(found))
    if any(isinstance(label, str) or label < 0 for label in found):
        raise UserError(
            f"labels must be all names, or all whole numbers from 0; got {sorted(map(str, found))[:6]}"
        )
    most = max(MOST_WITHOUT_EXAMPLES, 10 * len(found))
    if max(found) >= most:
        raise UserError(
            f"label {max(found)} is too large: there are {len(found)} different labels, and numbers are read up to {most - 1}; "
            "number the classes 0, 1, 2, ..., or name them"
        )
    return tuple(map(str, range(max(found) + 1)))


def _write_split(
    writer: EntryWriter,
    split: str,
    reader: Reader,
    classes: tuple[str, ...],
    vocabulary: Vocabulary,
    level: Level,
    max_length: int,
) -> None:
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    halves = len(next(reader(), Record("", ("",), "")).texts)
    for half in range(halves):  # one after the other, as each is a stream on disk

        def sequences() -> Iterator[np.ndarray]:
            for record in reader():
                if half == 0:
                    if str(record.label) not in numbers:
                        raise UserError(
                            f"{record.where}: label {record.label!r} is none of the training split, "
                            f"{', '.join(classes[:8])}"
                        )
                    labels.append(numbers[str(record.label)])
                yield _encode(record.texts[half], vocabulary, level, max_length, record.where)

        name = split if halves == 1 else f"{split}/{('first', 'second')[half]}"
        if not write_sequences(writer, name, sequences(), vocabulary.dtype):
            raise UserError(f"split {split} has no records")
    writer.append(f"{split}/labels", np.array(labels, dtype=np.int64))


def _encode(
    text: str, vocabulary: Vocabulary, level: Level, max_length: int, where: str
) -> np.ndarray:
    if level == "characters":
        return vocabulary.encode_characters(text[: max_length - 1])
    try:
        return encode_bytes(text[: max_length - 1].encode()[: max_length - 1])
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: the text holds half of a surrogate pair at character {error.start}"
        ) from None
