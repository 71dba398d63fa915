"""Writes new ListOps files in the format of the release, with the grammar of the release.

A node above the greatest depth is one of four operators with probability 1/4, otherwise a uniform
digit. An operator has 2 to max_args arguments. Expressions of the wrong length and repeated ones
are dropped.

Most trees have the wrong length, so they must cost little. Trees grow breadth first, thousands at a
time, and at first only in shape; operators and digits are drawn for trees of the right length
alone. A root that is a digit is never long enough, so it is not even drawn.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hgrn.data.files import TextFile
from hgrn.data.lra.listops import DIGITS, FILES, HEADER, OPERATORS, evaluate, rows, tokenize
from hgrn.data.lra.parallel import ordered_map
from hgrn.errors import UserError
from hgrn.files import expanded, reading, whole_folder

OPERATOR_PROBABILITY = 0.25
ROOTS = 2048  # trees of a block, which are drawn together; each block has its own random numbers
PATIENCE = 100  # after so many blocks without a new expression we give up
WORDS = ("(", ")", "]", *OPERATORS, *DIGITS)
# Indices into `WORDS`.
OPEN = 0
SHUT = 1
END = 2
FIRST_OPERATOR = 3
FIRST_DIGIT = 7
REPORT = "report.json"


@dataclass(frozen=True)
class Grammar:
    """Which expressions are drawn; the defaults are those of the release.

    min_length < tokens < max_length, as `listops.tokenize` counts them. The root has depth 1.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


RELEASE = Grammar()


def generate(
    out: str | Path,
    seed: int = 0,
    train: int = 96_000,
    validation: int = 2_000,
    test: int = 2_000,
    grammar: Grammar = RELEASE,
    processes: int | None = None,
) -> dict:
    """Write the three files and their `report`, as `report.json`, into a new folder.

    train, validation, test: expressions of each file. processes: None takes one for each core; the
    files do not depend on it. The value of each expression is computed twice, in different ways.

    Raises UserError if the folder exists, for numbers that make no sense, and if there are not
    enough different expressions.
    """
    numbers = {"train": train, "validation": validation, "test": test}
    out = expanded(out)
    _check(numbers | {"seed": seed}, grammar)
    with reading(out, "give another name"):
        if out.exists():
            raise UserError(f"out {out} exists already; name a new folder")
    with whole_folder(out) as draft:
        with ordered_map(partial(_block, grammar=grammar, seed=seed), count(), processes) as blocks:
            lines = _distinct(blocks, grammar)
            for split, number in numbers.items():
                with open(draft / FILES[split], "x", encoding="ascii", newline="") as file:
                    file.write(HEADER + "\n")
                    for _ in range(number):
                        file.write(next(lines) + "\n")
        result = {"seed": seed, "grammar": asdict(grammar), **report(draft)}
        (draft / REPORT).write_text(json.dumps(result, indent=1) + "\n")
    return result


def report(folder: str | Path) -> dict:
    """Describe the expressions of each file: their number, quantiles of the lengths, and how often
    each depth, answer and operator occurs."""
    result = {}
    for split, name in FILES.items():
        file = TextFile(str(Path(folder) / name), expanded(folder) / name)
        lengths = []
        depths = []
        answers = dict.fromkeys(DIGITS, 0)
        operators = dict.fromkeys(OPERATORS, 0)
        for _, source, target in rows(file):
            # Arrays of bytes spare a Python loop over all characters.
            text = np.frombuffer(source.encode(), dtype=np.uint8)
            opens = text == ord("[")
            ends = text == ord("]")
            digits = (text >= ord("0")) & (text <= ord("9"))
            lengths.append(int(opens.sum() + ends.sum() + digits.sum()))
            depths.append(int(np.cumsum(opens.astype(np.int64) - ends).max()))
            answers[str(target)] += 1
            # The third letter tells operators apart; "[SM" has a blank there.
            letters = text[np.flatnonzero(opens) + 3]
            for operator in OPERATORS:
                operators[operator] += int((letters == ord((operator + " ")[3])).sum())
        found: dict[str, Any] = {"number": len(lengths)}
        if lengths:
            quantiles = np.quantile(lengths, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()
            names = ("min", "5%", "25%", "50%", "75%", "95%", "max")
            found["length"] = dict(zip(names, quantiles)) | {"mean": float(np.mean(lengths))}
            found["depth"] = {str(depth): depths.count(depth) for depth in sorted(set(depths))}
        result[split] = {**found, "answer": answers, "operator": operators}
    return result


def _check(numbers: dict[str, int], grammar: Grammar) -> None:
    problems = [
        f"{split} must not be negative; got {number}"
        for split, number in numbers.items()
        if number < 0
    ]
    if grammar.max_depth < 2:
        problems.append(
            f"max_depth must be at least 2, an operator and its digits; got {grammar.max_depth}"
        )
    if grammar.max_args < 2:
        problems.append(f"max_args must be at least 2; got {grammar.max_args}")
    if grammar.max_length - grammar.min_length < 2:
        problems.append(
            "lengths lie between min_length and max_length and are neither, so these must differ "
            f"by 2 or more; got {grammar.min_length} and {grammar.max_length}"
        )
    if problems:
        raise UserError("\n".join(problems))


def _distinct(blocks: Iterator[list[str]], grammar: Grammar) -> Iterator[str]:
    """The lines of the blocks, each once. Raises UserError when no new ones come."""
    seen: set[str] = set()
    fruitless = 0
    for block in blocks:
        before = len(seen)
        for line in block:
            if line not in seen:
                seen.add(line)
                yield line
        fruitless = fruitless + 1 if len(seen) == before else 0
        if fruitless == PATIENCE:
            raise UserError(
                f"no more than {len(seen)} expressions of {grammar} were found in "
                f"{PATIENCE * ROOTS} trees; ask for fewer, or for other lengths"
            )


@dataclass(eq=False)
class _Level:
    """The operators of one depth and their children, of all trees of a block.

    tree: the tree that each operator belongs to. arity: its number of children. nested: whether
    each child is an operator; these are the operators of the next level, in the same order. The
    children of an operator stand next to each other.
    """

    tree: np.ndarray
    arity: np.ndarray
    nested: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The first child of each operator, as an index into the children."""
        return np.cumsum(self.arity) - self.arity

    @property
    def parent(self) -> np.ndarray:
        """The operator that each child belongs to."""
        return np.repeat(np.arange(len(self.arity)), self.arity)


def _block(number: int, grammar: Grammar, seed: int) -> list[str]:
    """The lines, without line ends, of those of `ROOTS` trees that have the right length."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))
    levels = _accepted(_shapes(rng, grammar), grammar)
    if not levels:
        return []
    words, ends, values = _expressions(rng, levels)
    lines = []
    for start, end, value in zip([0, *ends], ends, values):
        source = " ".join([WORDS[word] for word in words[start:end]])
        if evaluate(tokenize(source)) != value:
            raise RuntimeError(f"two ways to compute its value disagree about {source}")
        lines.append(f"{source}\t{value}")
    return lines


def _shapes(rng: np.random.Generator, grammar: Grammar) -> list[_Level]:
    """The shapes of `ROOTS` trees, level by level."""
    levels = []
    tree = np.arange(ROOTS)
    depth = 1
    while len(tree):
        arity = rng.integers(2, grammar.max_args + 1, size=len(tree))
        depth += 1
        may_nest = depth < grammar.max_depth
        nested = rng.random(arity.sum()) < (OPERATOR_PROBABILITY if may_nest else 0)
        levels.append(_Level(tree, arity, nested))
        tree = np.repeat(tree, arity)[nested]
    return levels


def _accepted(levels: list[_Level], grammar: Grammar) -> list[_Level]:
    """The trees of the right length, numbered anew."""
    lengths = np.zeros(ROOTS, dtype=np.int64)
    for level in levels:
        # An operator has two tokens, itself and its end; the level below counts nested operators.
        leaves = level.arity - np.add.reduceat(level.nested.astype(np.int64), level.first)
        lengths += np.bincount(level.tree, weights=leaves + 2, minlength=ROOTS).astype(np.int64)
    good = (lengths > grammar.min_length) & (lengths < grammar.max_length)
    number = np.cumsum(good) - 1
    kept = []
    for level in levels:
        here = good[level.tree]
        if not here.any():
            break
        kept.append(
            _Level(
                number[level.tree[here]],
                level.arity[here],
                level.nested[np.repeat(here, level.arity)],
            )
        )
    return kept


def _expressions(
    rng: np.random.Generator, levels: list[_Level]
) -> tuple[list[int], list[int], list[int]]:
    """All trees end to end, as indices into `WORDS`; the end of each; the value of each.

    Values and sizes are computed from the deepest level up, places of words from the root down.
    """
    operators = []
    digits = []
    sizes = []
    for level in levels:
        operators.append(rng.integers(0, len(OPERATORS), size=len(level.arity)))
        digits.append(rng.integers(0, 10, size=len(level.nested)))
    values = np.empty(0, np.int64)
    size = np.empty(0, np.int64)
    for level, operator, children in zip(levels[::-1], operators[::-1], digits[::-1]):
        children[level.nested] = values
        values = _reduce(operator, children, level)
        child_size = np.ones(len(level.nested), dtype=np.int64)
        child_size[level.nested] = size
        # Words of an expression: arity + 1 opening parentheses, the operator, a closing
        # parenthesis after each child, "]" and ")", and the words of the children.
        size = 2 * level.arity + 4 + np.add.reduceat(child_size, level.first)
        sizes.append(child_size)
    ends = np.cumsum(size)
    words = np.full(ends[-1], OPEN, dtype=np.int64)
    position = ends - size  # of the first word of each operator of the level
    for level, operator, children, child_size in zip(levels, operators, digits, sizes[::-1]):
        words[position + level.arity + 1] = FIRST_OPERATOR + operator
        # Where each child begins: after the operator, after the children before it.
        within = np.cumsum(child_size + 1) - (child_size + 1)
        child = (position + level.arity + 2 - within[level.first])[level.parent] + within
        words[child[~level.nested]] = FIRST_DIGIT + children[~level.nested]
        words[child + child_size] = SHUT
        last = level.first + level.arity - 1
        end = child[last] + child_size[last] + 1
        words[end] = END
        words[end + 1] = SHUT
        position = child[level.nested]
    return words.tolist(), ends.tolist(), values.tolist()


def _reduce(operator: np.ndarray, children: np.ndarray, level: _Level) -> np.ndarray:
    """The value of each operator of a level, given the values of its children."""
    first = level.first
    ordered = children[np.lexsort((children, level.parent))]
    median = (ordered[first + (level.arity - 1) // 2] + ordered[first + level.arity // 2]) // 2
    total = np.add.reduceat(children, first) % 10
    by_operator = [
        np.minimum.reduceat(children, first),
        np.maximum.reduceat(children, first),
        median,
        total,
    ]
    return np.choose(operator, by_operator)
