"""Where text comes from: what a recipe says about it, what is wrong with that, and the text itself.

Examples, as YAML under `data:` of a recipe:

    files: [corpus:shakespeare]
    splits: {train: {span: [0, 0.9]}, validation: {span: [0.9, 0.95]}, test: {span: [0.95, 1]}}

    files: [sotu.jsonl.gz]
    splits: {train: {select: {field: year, below: 1980}}, test: {select: {field: year, minimum: 2000}}}

    dataset: wikitext
    config: wikitext-103-raw-v1
    documents: line
    splits: {train: {}, validation: {}, test: {}}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hgrn.data.files import TextFile, expand
from hgrn.data.hub import load_split
from hgrn.data.tokenizer import BYTES, missing_local_tokenizer
from hgrn.errors import UserError, near

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Select:
    """Keeps the records with minimum <= record[field] < below.

    field: the field of a record that holds the number. minimum: the smallest number that is kept.
    below: numbers from this one on are left out.
    """

    __pydantic_config__ = {"extra": "forbid"}

    field: str
    minimum: float | None = None
    below: float | None = None


@dataclass(frozen=True)
class TextSplit:
    """Which part of the text a split is: all of it, or a `span`, or what `select` keeps.

    name: the split's name inside the dataset, None if it is called the same there.
    span: (start, end), a fraction of the text with 0 <= start < end <= 1.
    select: which records to keep, by a number in a field.
    files: files to read instead of the files or dataset of all splits.

    A span is measured over the bytes of all files together (over the records of JSON Lines and
    datasets), from int(start * n) to before int(end * n). Every tokenizer but the byte tokenizer
    needs whole UTF-8 characters, so a cut moves to the next one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str | None = None
    span: tuple[float, float] | None = None
    select: Select | None = None
    files: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Text, how it is cut into documents and splits, and its tokenizer.

    files: text files, files of records (JSON Lines, JSON, CSV, parquet), folders, globs, or
        `corpus:shakespeare`.
    dataset: a Hugging Face dataset, by its name or folder.
    config: the dataset's configuration.
    text_field: the field of a record or column that holds the text.
    documents: "file" takes each file or record as one document, "line" each of its lines.
    tokenizer: "bytes", or a name or path for `load_tokenizer`.
    splits: the parts of the text by their names.
    cache: the folder of tokenised text, None for the user's cache folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    files: list[str] | None = None
    dataset: str | None = None
    config: str | None = None
    text_field: str = "text"
    documents: Literal["file", "line"] = "file"
    tokenizer: str = BYTES
    splits: dict[str, TextSplit]
    cache: str | None = None


def problems(data: TextData, required: Sequence[str] = ("train",)) -> list[str]:
    """Everything that is wrong and can be told without reading text or asking a network; empty if nothing is.

    required: the splits that the caller is going to use.
    """
    found = _source_problems(data) + missing_splits(data, required)
    if data.files is not None:
        found += [f"files: {problem}" for problem in _expand_all(data.files)[1]]
    for name in data.splits:
        found += split_problems(data, name)
    return found


def missing_splits(data: TextData, required: Sequence[str]) -> list[str]:
    """What to say of each of these splits that the data does not have."""
    present = f"; there is {', '.join(data.splits) or 'none'}"
    return [
        f"splits: {name} is missing{near(name, data.splits) or present}"
        for name in required
        if name not in data.splits
    ]


def split_problems(data: TextData, split: str) -> list[str]:
    """What is wrong with one split apart from the files that it shares with others."""
    part = data.splits[split]
    found = []
    if part.files is not None:
        found += _expand_all(part.files)[1]
        if part.name is not None:
            found.append("name is for a dataset, and files are given; remove one of them")
    if part.span is not None and part.select is not None:
        found.append("span and select exclude each other; remove one of them")
    if part.span is not None and not 0 <= part.span[0] < part.span[1] <= 1:
        found.append(f"span must be [start, end] with 0 <= start < end <= 1; got {list(part.span)}")
    if part.select is not None:
        found += _select_problems(part.select)
    entries = part.files if part.files is not None else data.files
    kinds = {file.has_records for file in _expand_all(entries or [])[0]}
    if part.select is not None and False in kinds:
        found.append(
            "select works on records (.jsonl, .json, .csv, .parquet files, a dataset), and "
            "some files are plain text"
        )
    if part.span is not None and len(kinds) == 2:
        found.append(
            "span cannot be taken over plain text and .jsonl together; split them by files instead"
        )
    return [f"splits.{split}: {problem}" for problem in found]


@dataclass(frozen=True)
class Unit:
    """A file (or the part of it in a split) or a record, as blocks of bytes.

    where and offset say for a message where its first byte is.
    """

    where: str
    offset: int
    blocks: Iterable[bytes]


class SplitText:
    """The text of one split, found but not read. Raises UserError for whatever is wrong with it."""

    def __init__(self, data: TextData, split: str):
        if split not in data.splits:
            raise UserError(
                f"data has no split {split!r}; there is {', '.join(data.splits) or 'none'}"
            )
        self.data, self.split, self.part = data, split, data.splits[split]
        self.files: list[TextFile] = []
        self.dataset: Dataset | None = None
        entries = self.part.files if self.part.files is not None else data.files
        found = split_problems(data, split)
        if self.part.files is None:
            found += _source_problems(data)
        if entries is not None:
            self.files, missing = _expand_all(entries)
            found += missing if self.part.files is None else []
        if found:
            raise UserError("\n".join(f"data: {problem}" for problem in found))
        if entries is None:
            self.dataset = _load_dataset(data, self.part.name or split)

    @property
    def name(self) -> str:
        """What messages call the text."""
        names = [file.name for file in self.files] if self.dataset is None else [self.data.dataset]
        return f"split {self.split!r} of {', '.join(names[:3])}" + (
            ", ..." if len(names) > 3 else ""
        )

    @property
    def total_bytes(self) -> int | None:
        """Bytes of text if known without reading, for a progress bar; of records, None."""
        sizes = [None if file.has_records else file.size_on_disk for file in self.files]
        if not sizes or None in sizes:
            return None
        start, stop = self._cut(sum(sizes))
        return stop - start

    def signature(self) -> list:
        """Plain data that changes when the text does."""
        if self.dataset is not None:
            names = [entry["filename"] for entry in self.dataset.cache_files]
            arrow = [TextFile(name, Path(name)) for name in names]
            source = [
                self.data.dataset,
                self.data.config,
                self.part.name or self.split,
                len(self.dataset),
            ]
        else:
            arrow = []
            source = []
        signatures = [file.signature() for file in self.files + arrow]
        select = None if self.part.select is None else asdict(self.part.select)
        return [source, signatures, self.data.text_field, self.part.span, select]

    def check_content(self) -> None:
        """Raises UserError for a file that is no text."""
        for file in self.files:
            file.check_content()

    def units(self, whole_characters: bool) -> Iterator[Unit]:
        """The files and records in order, cut to the split."""
        if self.dataset is not None:
            yield from self._record_units(self._rows())
        elif self.part.span is None:
            for file in self.files:
                if file.has_records:
                    yield from self._record_units(self._records(file))
                else:
                    yield Unit(file.name, 0, file.blocks())
        elif self.files[0].has_records:
            first, last = self._cut(sum(file.count_records() for file in self.files))
            records = chain.from_iterable(map(self._records, self.files))
            yield from self._record_units(islice(records, first, last))
        else:
            yield from self._byte_span(whole_characters)

    def _byte_span(self, whole_characters: bool) -> Iterator[Unit]:
        sizes = [file.size() for file in self.files]
        first, last = self._cut(sum(sizes))
        begin = 0
        for file, size in zip(self.files, sizes):
            start = max(first - begin, 0)
            stop = min(last - begin, size)
            begin += size
            if whole_characters and 0 <= start < stop:
                start = file.character_border(start)
                stop = file.character_border(stop)
            if start < stop:
                yield Unit(file.name, start, file.blocks(start, stop))

    def _records(self, file: TextFile) -> Iterator[tuple[str, dict]]:
        number_field = None if self.part.select is None else self.part.select.field
        return file.records(self.data.text_field, number_field)

    def _record_units(self, records: Iterable[tuple[str, dict]]) -> Iterator[Unit]:
        for where, record in records:
            if self.part.select is None or _selected(record, self.part.select, where):
                yield Unit(where, 0, (_text_of(record, self.data.text_field, where),))

    def _rows(self) -> Iterator[tuple[str, dict]]:
        wanted = [self.data.text_field, *([self.part.select.field] if self.part.select else [])]
        present = self.dataset.column_names
        rows = self.dataset.select_columns([column for column in present if column in wanted])
        first, last = self._cut(len(rows))
        for number, row in enumerate(rows.select(range(first, last)), start=first):
            yield f"{self.data.dataset}, record {number}", row

    def _cut(self, length: int) -> tuple[int, int]:
        start, stop = self.part.span or (0.0, 1.0)
        return int(start * length), int(stop * length)


def _source_problems(data: TextData) -> list[str]:
    found = []
    if data.files is not None and data.dataset is not None:
        found.append("files and dataset exclude each other; remove one of them")
    if data.files is None and data.dataset is None:
        without = [name for name, part in data.splits.items() if part.files is None]
        if without or not data.splits:
            found.append(
                "give files, dataset, or files in every split"
                + (f" ({', '.join(without)} has none)" if without else "")
            )
    if data.files == []:
        found.append("files is empty; name at least one")
    if data.config is not None and data.dataset is None:
        found.append("config is for a dataset, and none is given")
    if data.documents not in ("file", "line"):
        found.append(f"documents must be 'file' or 'line'; got {data.documents!r}")
    if missing := missing_local_tokenizer(data.tokenizer):
        found.append(missing)
    return found


def _select_problems(select: Select) -> list[str]:
    if select.minimum is None and select.below is None:
        return ["select needs minimum, below or both"]
    if (
        select.minimum is not None
        and select.below is not None
        and not select.minimum < select.below
    ):
        return [
            f"select keeps nothing: minimum {select.minimum} is not less than below {select.below}"
        ]
    return []


def _expand_all(entries: list[str]) -> tuple[list[TextFile], list[str]]:
    expanded = [expand(entry) for entry in entries]
    files = [file for files, _ in expanded for file in files]
    return files, [problem for _, problem in expanded if problem]


def _load_dataset(data: TextData, name: str) -> Dataset:
    loaded = load_split(data.dataset, data.config, name)
    if data.text_field not in loaded.column_names:
        raise UserError(
            f"dataset {data.dataset!r} has no column {data.text_field!r}; set text_field to one "
            f"of {', '.join(loaded.column_names)}"
        )
    return loaded


def _text_of(record: dict[str, Any], field: str, where: str) -> bytes:
    if field not in record:
        raise UserError(
            f"{where}: the record has no field {field!r}; it has {', '.join(record) or 'none'}. "
            "Set text_field, or call a file .txt to read it as it is"
        )
    if not isinstance(record[field], str):
        raise UserError(
            f"{where}: field {field!r} must be a string; got {type(record[field]).__name__}"
        )
    try:
        return record[field].encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds half of a surrogate pair at character "
            f"{error.start}, which is no text"
        ) from None


def _selected(record: dict[str, Any], select: Select, where: str) -> bool:
    value = record.get(select.field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise UserError(f"{where}: select needs a number in field {select.field!r}; got {value!r}")
    return (select.minimum is None or value >= select.minimum) and (
        select.below is None or value < select.below
    )
