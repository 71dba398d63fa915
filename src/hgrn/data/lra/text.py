"""Texts with classes: the arena's Text task (IMDB reviews, as characters), or your own texts.

IMDB as its authors publish it is a folder with `{train,test}/{neg,pos}/*.txt`; as a data set of
`datasets` it has columns text and label. Your own texts are a folder with `train.jsonl`,
`test.jsonl` and perhaps `validation.jsonl`, also compressed; each line is an object with "text" and
"label", a name or a number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.files import OPENERS, TextFile
from hgrn.data.hub import load_split
from hgrn.data.lra.splits import (
    HALVES,
    SPLITS,
    LabelledData,
    sequence_data,
    write_sequences,
)
from hgrn.data.lra.vocabulary import BYTES, Vocabulary, build_characters, encode_bytes
from hgrn.errors import UserError
from hgrn.files import expanded

FORMAT = 1  # raise it when the same text gives other arrays
IMDB_CLASSES = ("neg", "pos")
MOST_WITHOUT_EXAMPLES = 10_000  # classes that numbers may stand for, however few of them there are
Level = Literal["characters", "bytes"]


@dataclass(frozen=True)
class TextClassificationData:
    """The section `data` of a recipe for the Text task.

    path: a folder of one of the three kinds, or the name of a data set. level: what a token is.
    max_length: the longest sequence with its <eos>; longer texts are cut. min_count: how often a
    character must occur in the training split to get its own id. cache: the folder of encoded data,
    None for the user's cache folder.

    Without a validation split, the test split takes its place, as in the arena.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["text"] = "text"
    level: Level = "characters"
    max_length: int = 4096
    min_count: int = 15
    cache: str | None = None


class Record(NamedTuple):
    """One text, or two to be compared, and the label as the file has it.

    where: file and line, for messages.
    """

    where: str
    texts: tuple[str, ...]
    label: str | int


Reader = Callable[[], Iterator[Record]]


@dataclass(frozen=True)
class Source:
    """Where records come from.

    readers: by split, at least train and test; each call reads from the start. classes: None if the
    labels of the training split decide. signature: plain data that changes when the text does.
    """

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
    """Encode the records of a source; those with two texts become pairs."""
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, a token and <eos>; got {max_length}")
    if level not in ("characters", "bytes"):
        raise UserError(f"level must be 'characters' or 'bytes'; got {level!r}")
    key = ["text", FORMAT, level, max_length, min_count, source.signature]

    def write(writer: EntryWriter) -> dict:
        return _write(writer, source, level, max_length, min_count)

    return sequence_data(cached(cache_folder("lra", cache), key, write))


def json_files(folder: Path) -> dict[str, TextFile | None]:
    """The file `<split>.jsonl` of each split, plain or compressed, or None."""

    def find(split: str) -> TextFile | None:
        names = [f"{split}.jsonl{suffix}" for suffix in ("", *OPENERS)]
        paths = [folder / name for name in names if (folder / name).is_file()]
        return TextFile(str(paths[0]), paths[0]) if paths else None

    return {split: find(split) for split in SPLITS}


def json_source(path: str, files: dict[str, TextFile | None], fields: tuple[str, ...]) -> Source:
    """The records of JSON Lines files: texts in the given fields, and the label in "label"."""
    if files["test"] is None:
        raise UserError(f"path {path} has train.jsonl and no test.jsonl; give both")

    def read(file: TextFile) -> Iterator[Record]:
        for where, record in file.records():
            for field in (*fields, "label"):
                if field not in record:
                    raise UserError(
                        f"{where}: the record has no field {field!r}; it has "
                        f"{', '.join(record) or 'none'}"
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
        {split: partial(read, file) for split, file in present.items()},
        None,
        [fields, {split: file.signature() for split, file in present.items()}],
    )


def _imdb(folder: Path) -> Source:
    """The reviews in the folders of the authors."""
    paths = {
        split: [
            path for name in IMDB_CLASSES for path in sorted((folder / split / name).glob("*.txt"))
        ]
        for split in ("train", "test")
    }
    for split, found in paths.items():
        if {path.parent.name for path in found} != set(IMDB_CLASSES):
            raise UserError(
                f"{folder / split} must have the folders {' and '.join(IMDB_CLASSES)} with .txt "
                "files in them"
            )

    def read(found: list[Path]) -> Iterator[Record]:
        for path in found:
            try:
                text = path.read_bytes().decode()  # `read_text` would translate line ends
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: byte {error.start} is not valid UTF-8") from None
            yield Record(str(path), (text,), path.parent.name)

    stats = [
        [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
        for found in paths.values()
        for path in found
    ]
    return Source(
        {split: partial(read, found) for split, found in paths.items()},
        IMDB_CLASSES,
        stats,
    )


def _dataset(name: str) -> Source:
    """The records of a data set of `datasets`."""
    loaded = {split: load_split(name, None, split) for split in ("train", "test")}
    for split, column in product(loaded, ("text", "label")):
        if column not in loaded[split].column_names:
            raise UserError(
                f"dataset {name!r} has no column {column!r}; it has "
                f"{', '.join(loaded[split].column_names)}"
            )
    classes = getattr(loaded["train"].features["label"], "names", None)

    def read(split: str) -> Iterator[Record]:
        for number, row in enumerate(loaded[split].select_columns(["text", "label"])):
            row = cast(dict[str, Any], row)  # `datasets` says that a row may also be a list
            label = row["label"] if classes is None else classes[row["label"]]
            yield Record(f"{name}, {split}, record {number}", (row["text"],), label)

    files = [
        TextFile(entry["filename"], Path(entry["filename"])).signature()
        for each in loaded.values()
        for entry in each.cache_files
    ]
    signature = [name, [len(each) for each in loaded.values()], files]
    return Source(
        {split: partial(read, split) for split in loaded},
        None if classes is None else tuple(classes),
        signature,
    )


def _write(
    writer: EntryWriter, source: Source, level: Level, max_length: int, min_count: int
) -> dict:
    """Write all splits, with the vocabulary of the training split; return the facts."""
    train = source.readers["train"]
    classes = source.classes or _classes(train())
    if level == "bytes":
        vocabulary = BYTES
    else:
        # Of the parts of texts that are kept; what is cut off needs no ids.
        vocabulary = build_characters(
            (text[: max_length - 1] for record in train() for text in record.texts), min_count
        )
    for split, reader in source.readers.items():
        _write_split(writer, split, reader, classes, vocabulary, level, max_length)
    stored = {split: split if split in source.readers else "test" for split in SPLITS}
    return {
        "vocabulary": list(vocabulary.tokens),
        "classes": list(classes),
        "max_length": max_length,
        "stored": stored,
    }


def _classes(records: Iterable[Record]) -> tuple[str, ...]:
    """The classes of some records: names, sorted, or all whole numbers up to the largest label.

    Raises UserError for names among numbers, and for a number so large that nearly all classes
    would have no example.
    """
    found = {record.label for record in records}
    if not found:
        raise UserError("the training split has no records")
    names = [label for label in found if isinstance(label, str)]
    numbers = [label for label in found if not isinstance(label, str)]
    if not numbers:
        return tuple(sorted(names))
    if names or min(numbers) < 0:
        raise UserError(
            "labels must be all names, or all whole numbers from 0; got "
            f"{sorted(map(str, found))[:6]}"
        )
    most = max(MOST_WITHOUT_EXAMPLES, 10 * len(numbers))
    if max(numbers) >= most:
        raise UserError(
            f"label {max(numbers)} is too large: there are {len(numbers)} different labels, and "
            f"numbers are read up to {most - 1}; number the classes 0, 1, 2, ..., or name them"
        )
    return tuple(map(str, range(max(numbers) + 1)))


def _write_split(
    writer: EntryWriter,
    split: str,
    reader: Reader,
    classes: tuple[str, ...],
    vocabulary: Vocabulary,
    level: Level,
    max_length: int,
) -> None:
    """Write sequences and labels of one split."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    first = next(reader(), None)
    if first is None:
        raise UserError(f"split {split} has no records")

    def sequences(half: int) -> Iterator[np.ndarray]:
        for record in reader():
            if half == 0:
                if str(record.label) not in numbers:
                    raise UserError(
                        f"{record.where}: label {record.label!r} is none of the training split, "
                        f"{', '.join(classes[:8])}"
                    )
                labels.append(numbers[str(record.label)])
            yield _encode(record.texts[half], vocabulary, level, max_length, record.where)

    # The halves of pairs are written one after the other, since each is a stream on disk.
    names = [split] if len(first.texts) == 1 else [f"{split}/{half}" for half in HALVES]
    for half, name in enumerate(names):
        write_sequences(writer, name, sequences(half), vocabulary.dtype)
    writer.append(f"{split}/labels", np.array(labels, dtype=np.int64))


def _encode(
    text: str, vocabulary: Vocabulary, level: Level, max_length: int, where: str
) -> np.ndarray:
    """The ids of a text, cut so that <eos> still fits."""
    if level == "characters":
        return vocabulary.encode_characters(text[: max_length - 1])
    try:
        # Cut twice: a character has at least one byte, so the rest need not even be encoded.
        return encode_bytes(text[: max_length - 1].encode()[: max_length - 1])
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: the text holds half of a surrogate pair at character {error.start}"
        ) from None
