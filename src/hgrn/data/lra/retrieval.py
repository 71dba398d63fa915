"""Two documents and whether they belong together: the arena's Retrieval task (AAN), or pairs of one's own.

The release has `new_aan_pairs.{train,eval,test}.tsv` without a header: label ("0.0" or "1.0"), two ids and two texts
a line, between tabs. Quotes are characters like others; a reader that takes them for delimiters joins lines. Pairs
of one's own are a folder with `train.jsonl`, `test.jsonl` and perhaps `validation.jsonl`, an object with "text1",
"text2" and "label" a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hgrn.data.files import TextFile
from hgrn.data.lra.splits import LabelledData
from hgrn.data.lra.text import Level, Record, Source, json_files, json_source, prepare_source
from hgrn.errors import UserError
from hgrn.files import expanded

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
CLASSES = ("0", "1")
COLUMNS = 5


@dataclass(frozen=True)
class RetrievalData:
    """path: a folder of either kind. level, max_length (of each document), min_count as of `TextClassificationData`."""

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["retrieval"] = "retrieval"
    level: Level = "characters"
    max_length: int = 4000
    min_count: int = 1
    cache: str | None = None


def prepare(data: RetrievalData) -> LabelledData:
    """The three splits, of pairs. Raises UserError for whatever is wrong with the files."""
    folder = expanded(data.path)
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if not missing:
        files = {
            split: TextFile(str(folder / name), folder / name) for split, name in FILES.items()
        }
        source = Source(
            {split: (lambda file=file: _rows(file)) for split, file in files.items()},
            CLASSES,
            ["aan", [file.signature() for file in files.values()]],
        )
    elif (own := json_files(folder))["train"] is not None:
        source = json_source(data.path, own, ("text1", "text2"))
    else:
        raise UserError(
            f"path {data.path} has no {', '.join(missing)}, and no train.jsonl either; name the folder "
            "tsv_data of the Long Range Arena, or one with pairs in JSON Lines"
        )
    return prepare_source(source, data.level, data.max_length, data.min_count, data.cache)


def _rows(file: TextFile) -> Iterator[Record]:
    for number, line in file.lines():
        where = f"{file.name}:{number}"
        try:
            columns = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: byte {error.start} of the line is not valid UTF-8") from None
        if len(columns) != COLUMNS:
            raise UserError(
                f"{where}: a line must have {COLUMNS} columns between tabs, label, two ids and two texts; "
                f"got {len(columns)}"
            )
        try:
            label = float(columns[0])
        except ValueError:
            label = -1.0
        if label not in (0.0, 1.0):
            raise UserError(f"{where}: the label must be 0.0 or 1.0; got {columns[0]!r}")
        yield Record(where, (columns[3], columns[4]), int(label))
