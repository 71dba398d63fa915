"""Do two documents belong together? The arena's Retrieval task (AAN), or your own pairs.

The release has `new_aan_pairs.{train,eval,test}.tsv` without a header. Each line has a label ("0.0"
or "1.0"), two ids and two texts, separated by tabs. Quotes are ordinary characters: a reader that
takes them for delimiters joins lines.

Your own pairs are a folder with `train.jsonl`, `test.jsonl` and perhaps `validation.jsonl`; each
line is an object with "text1", "text2" and "label".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
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
    """The section `data` of a recipe for the Retrieval task.

    path: a folder of either kind. level, max_length (of each document), min_count, cache: as in
    `TextClassificationData`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["retrieval"] = "retrieval"
    level: Level = "characters"
    max_length: int = 4000
    min_count: int = 1
    cache: str | None = None


def prepare(data: RetrievalData) -> LabelledData:
    """The three splits of pairs. Raises UserError for whatever is wrong with the files."""
    folder = expanded(data.path)
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if not missing:
        files = {
            split: TextFile(str(folder / name), folder / name) for split, name in FILES.items()
        }
        source = Source(
            {split: partial(_rows, file) for split, file in files.items()},
            CLASSES,
            ["aan", [file.signature() for file in files.values()]],
        )
    # Not the release: perhaps the user's own pairs.
    elif (own := json_files(folder))["train"] is not None:
        source = json_source(data.path, own, ("text1", "text2"))
    else:
        raise UserError(
            f"path {data.path} has no {', '.join(missing)}, and no train.jsonl either; name the "
            "folder tsv_data of the Long Range Arena, or one with pairs in JSON Lines"
        )
    return prepare_source(source, data.level, data.max_length, data.min_count, data.cache)


def _rows(file: TextFile) -> Iterator[Record]:
    """The records of a file of the release."""
    for number, line in file.lines():
        where = f"{file.name}:{number}"
        try:
            columns = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: byte {error.start} of the line is not valid UTF-8") from None
        if len(columns) != COLUMNS:
            raise UserError(
                f"{where}: a line must have {COLUMNS} columns between tabs, label, two ids and two "
                f"texts; got {len(columns)}"
            )
        try:
            label = float(columns[0])
        except ValueError:  # then it is none of the two either
            label = None
        if label not in (0.0, 1.0):
            raise UserError(f"{where}: the label must be 0.0 or 1.0; got {columns[0]!r}")
        yield Record(where, (columns[3], columns[4]), int(label))
