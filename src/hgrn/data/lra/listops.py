"""ListOps: which digit do nested operations on lists of digits give?

The release has `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`: a header
`Source<TAB>Target`, then lines with an expression in explicit parentheses and its value, as in

    ( ( ( [MAX 2 ) 9 ) ] )<TAB>9

Parentheses are no tokens, and the closing bracket is called X. The task is of Nangia and Bowman,
"ListOps: A Diagnostic Dataset for Latent Tree Learning" (2018), with the lengths of Tay et al.,
"Long Range Arena" (2021).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from hgrn.data.cache import EntryWriter, cache_folder, cached
from hgrn.data.files import TextFile
from hgrn.data.lra.splits import LabelledData, sequence_data, write_sequences
from hgrn.data.lra.vocabulary import build
from hgrn.errors import UserError
from hgrn.files import expanded

FORMAT = 1  # raise it when the same files give other arrays
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = "Source\tTarget"
CLOSE = "X"
DIGITS = tuple("0123456789")
VALUE_OF = {digit: value for value, digit in enumerate(DIGITS)}


@dataclass(frozen=True)
class ListOpsData:
    """The section `data` of a recipe for ListOps.

    path: the folder with the three files. max_length: the longest sequence with its <eos>; longer
    ones are cut. cache: the folder of encoded data, None for the user's cache folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    path: str
    task: Literal["listops"] = "listops"
    max_length: int = 2048
    cache: str | None = None


def prepare(data: ListOpsData) -> LabelledData:
    """The three splits.

    Raises UserError for files that are missing or not in the format of the release.
    """
    if data.max_length < 2:
        raise UserError(f"max_length must be at least 2, a token and <eos>; got {data.max_length}")
    folder = expanded(data.path)
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"path {data.path} has no {', '.join(missing)}; name the folder of the ListOps files "
            "of the Long Range Arena (listops-1000), or make them with `hgrn data listops`"
        )
    files = {split: TextFile(str(folder / name), folder / name) for split, name in FILES.items()}
    source = ["listops", FORMAT, data.max_length, *(file.signature() for file in files.values())]

    def write(writer: EntryWriter) -> dict:
        return _write(writer, files, data.max_length)

    return sequence_data(cached(cache_folder("lra", data.cache), source, write))


def tokenize(source: str) -> list[str]:
    """The tokens of an expression, without parentheses and with X for the closing bracket."""
    return source.replace("(", "").replace(")", "").replace("]", CLOSE).split()


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression. Raises ValueError if the tokens are not an expression."""
    # Not recursive: files of other people may be nested to any depth.
    # Values so far of the innermost open list; outside all lists, of the expression itself.
    values: list[int] = []
    # The operator of each open list, and the values of the list around it.
    outer: list[tuple[str, list[int]]] = []
    for position, token in enumerate(tokens):
        # A digit; an operator, which opens a list; or the end of the innermost list.
        if (value := VALUE_OF.get(token)) is not None:
            values.append(value)
        elif token in APPLY and (outer or not values):
            outer.append((token, values))
            values = []
        elif token == CLOSE and outer and values:
            operator, around = outer.pop()
            around.append(APPLY[operator](values))
            values = around
        else:
            raise ValueError(f"token {position}, {token!r}, cannot stand there")
    if outer or len(values) != 1:
        raise ValueError(
            f"{len(outer)} lists are not closed and {len(values)} values are left; there must be "
            "one value"
        )
    return values[0]


def rows(file: TextFile) -> Iterator[tuple[str, str, int]]:
    """Place, expression and value of each line after the header.

    Raises UserError for a file of any other form.
    """
    for number, line in file.lines():
        where = f"{file.name}:{number}"
        text = line.decode("ascii", "replace").rstrip("\r\n")
        if number == 1:
            if text != HEADER:
                raise UserError(
                    f"{where}: the first line must be the header Source<TAB>Target; got "
                    f"{text[:40]!r}"
                )
            continue
        source, tab, target = text.partition("\t")
        if not tab or target not in DIGITS:
            raise UserError(
                f"{where}: a line must be an expression, a tab and a digit; got {text[-40:]!r} at "
                "its end"
            )
        yield where, source, int(target)


def _median(values: list[int]) -> int:
    """Rounded down."""
    ordered = sorted(values)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2


def _sum(values: list[int]) -> int:
    return sum(values) % 10


APPLY: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": _sum,
}
OPERATORS = tuple(APPLY)


def _write(writer: EntryWriter, files: dict[str, TextFile], max_length: int) -> dict:
    """Write all splits, with the vocabulary of the training split; return the facts."""
    counts: Counter[str] = Counter()
    for _, source, _ in rows(files["train"]):
        counts.update(islice(tokenize(source), max_length - 1))
    vocabulary = build(counts)

    def sequences(file: TextFile, labels: list[int]) -> Iterator[np.ndarray]:
        for where, source, target in rows(file):
            tokens = tokenize(source)
            if not tokens:
                raise UserError(f"{where}: the expression is empty")
            labels.append(target)
            yield vocabulary.encode(tokens[: max_length - 1])

    for split, file in files.items():
        labels: list[int] = []
        if not write_sequences(writer, split, sequences(file, labels), vocabulary.dtype):
            raise UserError(f"{file.name} has no expressions")
        writer.append(f"{split}/labels", np.array(labels, dtype=np.int64))
    return {
        "vocabulary": list(vocabulary.tokens),
        "classes": list(DIGITS),
        "max_length": max_length,
        "stored": {split: split for split in files},
    }
