"""New ListOps files in the format of the release, by the grammar of the release.

A node is an operator with probability 1/4 as long as its depth is below the greatest, and a uniform digit
otherwise; an operator, one of four, has 2 to max_args arguments. Expressions of the wrong length and repeated
ones are dropped. Trees grow breadth first, thousands at a time: only the shapes are drawn before the lengths
are known, so that the many trees of the wrong length cost little. A root that is a digit is never long enough;
such trees are not even drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from hgrn.data.files import TextFile
from hgrn.data.lra.listops import DIGITS, FILES, HEADER, OPERATORS, evaluate, rows, tokenize
from hgrn.data.lra.parallel import ordered_map
from hgrn.errors import UserError
from hgrn.files import expanded, reading, whole_folder

OPERATOR_PROBABILITY = 0.25
ROOTS = 2048  # trees drawn at a time: a block, with random numbers of its own
PATIENCE = 100  # blocks in a row without a new expression, after which there are none
WORDS = ("(", ")", "]", *OPERATORS, *DIGITS)
OPEN = 0
SHUT = 1
END = 2
FIRST_OPERATOR = 3
FIRST_DIGIT = 7
REPORT = "report.json"


@dataclass(frozen=True)
class Grammar:
    """Which expressions there are; the values of the release. min_length < tokens < max_length, as counted by
    `listops.tokenize`; the root has depth 1."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


def generate(
    out: str | Path,
    seed: int = 0,
    train: int = 96_000,
    validation: int = 2_000,
    test: int = 2_000,
    grammar: Grammar = Grammar(),
    processes: int | None = None,
) -> dict:
    """Write the three files and `report.json`, what `report` says of them, into a new folder.

    The files depend on seed, the numbers and the grammar, and not on processes (None: one a core). The value
    of each expression is computed twice, by different means. Raises UserError if the folder is there already,
    for numbers that make no sense, and if there are not so many different expressions.
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
    """What the expressions of each file are like: how many; quantiles of lengths; counts of depths, of answers
    and of operators."""
    result = {}
    for split, name in FILES.items():
        file = TextFile(str(Path(folder) / name), expanded(folder) / name)
        lengths = []
        depths = []
        answers = dict.fromkeys(DIGITS, 0)
        operators = dict.fromkeys(OPERATORS, 0)
        for _, source, target in rows(file):
            text = np.frombuffer(source.encode(), dtype=np.uint8)
            opens = text == ord("[")
            ends = text == ord("]")
            lengths.append(
                int(opens.sum() + ends.sum() + ((text >= ord("0")) & (text <= ord("9"))).sum())
            )
            depths.append(int(np.cumsum(opens.astype(np.int64) - ends).max()))
            answers[str(target)] += 1
            letters = text[np.flatnonzero(opens) + 3]
            for operator in OPERATORS:  # the third letter tells them apart; "[SM" has a blank there
                operators[operator] += int((letters == ord((operator + " ")[3])).sum())
        found = {"number": len(lengths)}
        if lengths:
            quantiles = np.quantile(lengths, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()
            found["length"] = dict(zip(("min", "5%", "25%", "50%", "75%", "95%", "max"), quantiles))
            found["length"]["mean"] = float(np.mean(lengths))
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
            "lengths lie between min_length and max_length and are neither, so these must differ by 2 or "
            f"more; got {grammar.min_length} and {grammar.max_length}"
        )
    if problems:
        raise UserError("\n".join(problems))


def _distinct(blocks: Iterator[list[str]], grammar: Grammar) -> Iterator[str]:
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
                f"no more than {len(seen)} expressions of {grammar} were found in {PATIENCE * ROOTS} trees; "
                "ask for fewer, or for other lengths"
            )


@dataclass(eq=False)
class _Level:
    """The operators of one depth, in order, and their children, those of an operator next to each other.

    tree: which tree an operator belongs to. arity: its number of children. nested: which children are
    operators, that is, those of the next level in order.
    """

    tree: np.ndarray
    arity: np.ndarray
    nested: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Where the children of each operator start."""
        return np.cumsum(self.arity) - self.arity

    @property
    def parent(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.arity)), self.arity)


def _block(number: int, grammar: Grammar, seed: int) -> list[str]:
    """The lines, without their ends, of the acceptable ones among `ROOTS` trees."""
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
    """The trees whose length is right, numbered anew."""
    lengths = np.zeros(ROOTS, dtype=np.int64)
    for level in (
        levels
    ):  # an operator and its end are two tokens, and so is one that the parent counts as a child
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
    """All trees as indices into `WORDS`, end to end; where each ends; the value of each."""
    operators = []
    digits = []
    sizes = []
    for level in levels:
        operators.append(rng.integers(0, len(OPERATORS), size=len(level.arity)))
        digits.append(rng.integers(0, 10, size=len(level.nested)))
    values = size = np.empty(0, np.int64)
    for level, operator, children in zip(levels[::-1], operators[::-1], digits[::-1]):
        children[level.nested] = values
        values = _reduce(operator, children, level)
        child_size = np.ones(len(level.nested), dtype=np.int64)
        child_size[level.nested] = size
        # (arity + 1) opening parentheses, the operator, a parenthesis behind each child, "]" and ")"
        size = 2 * level.arity + 4 + np.add.reduceat(child_size, level.first)
        sizes.append(child_size)
    ends = np.cumsum(size)
    words = np.full(ends[-1], OPEN, dtype=np.int64)
    position = ends - size
    for level, operator, children, child_size in zip(levels, operators, digits, sizes[::-1]):
        words[position + level.arity + 1] = FIRST_OPERATOR + operator
        within = np.cumsum(child_size + 1) - (child_size + 1)
        child = (position + level.arity + 2 - within[level.first])[level.parent] + within
        words[child[~level.nested]] = FIRST_DIGIT + children[~level.nested]
        words[child + child_size] = SHUT
        last = level.first + level.arity - 1
        end = child[last] + child_size[last] + 1
        words[end], words[end + 1] = END, SHUT
        position = child[level.nested]
    return words.tolist(), ends.tolist(), values.tolist()


def _reduce(operator: np.ndarray, children: np.ndarray, level: _Level) -> np.ndarray:
    """The value of each operator of a level."""
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
