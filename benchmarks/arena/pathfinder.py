"""Compares our Pathfinder images with those of the original generator: statistics, and tests.

REFERENCE is a folder of images that github.com/drewlinsley/pathfinder made at the settings of Long
Range Arena (`imgs/<batch>/sample_<n>.png`). If it holds `geometry.jsonl`, what cannot be seen in
pixels is compared too. Each line of that describes an image: {"targets": [points, points],
"distractors": [points, ...]}, where points are [y, x] of the ends of successive paddles, the first
being the start of the contour.

Each p-value belongs to the largest distance between the two cumulative distributions (Kolmogorov
and Smirnov). It comes from 2,000 permutations of the pooled images, which is right for counts and
grey levels too. The values of one image stand together, so an image counts once.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hgrn.data.lra.pathfinder_drawing import FINE, Contour, Drawing, draw, outline, widened
from hgrn.data.lra.pathfinder_generator import contact_sheet
from hgrn.data.lra.pathfinder_settings import ARENA, PathfinderSettings, arena_settings

INK = 20  # grey level from which a pixel counts as ink
PERMUTATIONS = 2000

# Images or geometries, and the settings they were made with -> one value an image.
Statistic = Callable[[list[Any], PathfinderSettings], np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("reference", type=Path, help="the folder of the original's images")
    parser.add_argument("--size", type=int, choices=sorted(ARENA), required=True)
    parser.add_argument("--images", type=int, default=500, help="how many of each (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of our images (default: 0)")
    parser.add_argument("--sheets", type=Path, help="a folder for two contact sheets")


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the table of docs/lra_data.md, and write contact sheets if they are asked for."""
    settings = arena_settings(given.size)
    files = sorted(
        given.reference.glob("imgs/*/*.png"), key=lambda path: int(path.stem.split("_")[1])
    )[: given.images]
    theirs = [np.array(Image.open(file).convert("L")) for file in files]
    drawings = [draw(settings, given.seed, index) for index in range(len(theirs))]
    ours = [drawing.image for drawing in drawings]
    rows = [_row(name, function, theirs, ours, settings) for name, function in SEEN.items()]
    geometry = given.reference / "geometry.jsonl"
    if geometry.is_file():
        known = [json.loads(line) for line in geometry.read_text().splitlines()[: len(theirs)]]
        mine = [_geometry(drawing) for drawing in drawings]
        rows += [_row(name, function, known, mine, settings) for name, function in KNOWN.items()]
    print(f"{len(theirs)} images each, {settings.size} pixels\n")
    print("\n".join(["| statistic | original | ours | p |", "|---|---|---|---|", *rows]))

    # That the statistic of the markers finds them is checked where the truth is known.
    found = [marker_distance([image], settings)[0] for image in ours]
    true = [np.hypot(*np.subtract(*drawing.markers)) for drawing in drawings]
    near = np.mean(abs(np.subtract(found, true)) < 1.5)
    print(f"\nmarkers found within 1.5 pixels of where they are: {near:.1%} of ours")
    if given.sheets:
        given.sheets.mkdir(parents=True, exist_ok=True)
        for name, images in (("original", theirs), ("ours", ours)):
            sheet = contact_sheet(images[:40], columns=10, scale=max(1, 64 // settings.size))
            sheet.save(given.sheets / f"pathfinder{settings.size}_{name}.png", optimize=True)
    return 0


def _row(
    name: str,
    statistic: Statistic,
    theirs: list[Any],
    ours: list[Any],
    settings: PathfinderSettings,
) -> str:
    first = statistic(theirs, settings)
    second = statistic(ours, settings)
    return f"| {name} | {_summary(first)} | {_summary(second)} | {p_value(first, second):.3f} |"


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """How likely so large a distance of two samples is if one distribution made both."""
    pooled = np.concatenate([first, second])
    order = np.argsort(pooled, kind="stable")
    # Ties end where the value changes, and only there the distributions are compared.
    last = np.append(np.diff(pooled[order]) > 0, True)
    shares = (np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second)))
    member = np.concatenate(shares)
    rng = np.random.default_rng(0)

    def distance(member: np.ndarray) -> float:
        return abs(np.cumsum(member[order])[last]).max()

    seen = distance(member)
    beyond = sum(distance(rng.permutation(member)) >= seen - 1e-12 for _ in range(PERMUTATIONS))
    return (beyond + 1) / (PERMUTATIONS + 1)


def ink_fraction(images: list[np.ndarray], settings: PathfinderSettings) -> np.ndarray:
    """The share of pixels that are ink."""
    return np.array([(image >= INK).mean() for image in images])


def mean_ink(images: list[np.ndarray], settings: PathfinderSettings) -> np.ndarray:
    """The mean grey level of the ink."""
    return np.array([image[image >= INK].mean() for image in images])


def ink_quantile(share: float) -> Statistic:
    """A quantile of the grey levels of the ink."""
    return lambda images, settings: np.array(
        [np.quantile(image[image >= INK], share) for image in images]
    )


def centre_of_ink(images: list[np.ndarray], settings: PathfinderSettings) -> np.ndarray:
    """How far the centre of the ink is from the middle of the image, in pixels."""
    middle = (settings.size - 1) / 2
    return np.array(
        [np.hypot(*(np.argwhere(image >= INK).mean(axis=0) - middle)) for image in images]
    )


def marker_distance(images: list[np.ndarray], settings: PathfinderSettings) -> np.ndarray:
    """Pixels between the two places where a disc of a marker's size is brightest throughout."""
    radius = settings.marker_radius
    reach = int(radius)
    offsets = [
        (dy, dx)
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if dy * dy + dx * dx <= (radius - 0.5) ** 2
    ]
    found = []
    for image in images:
        padded = np.pad(image.astype(np.float64), reach)
        # The darkest pixel of the disc around each place, and a little of the mean against ties.
        views = [
            padded[reach + dy : reach + dy + len(image), reach + dx : reach + dx + len(image)]
            for dy, dx in offsets
        ]
        score = np.minimum.reduce(views) + 0.01 * np.mean(views, axis=0)
        places = []
        for _ in range(2):
            y, x = np.unravel_index(np.argmax(score), score.shape)
            places.append((y, x))
            # The second marker is not a neighbour of the first.
            rows, columns = np.ogrid[: len(image), : len(image)]
            score[(rows - y) ** 2 + (columns - x) ** 2 <= (1.5 * radius) ** 2] = -1
        found.append(np.hypot(*np.subtract(*places)))
    return np.array(found)


def contour_length(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """The mean length of the two long contours, in pixels."""
    return np.array([np.mean([_path(points) for points in each["targets"]]) for each in known])


def contour_span(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """How far a long contour's start is from its end, in pixels."""
    return np.array(
        [
            np.mean([np.hypot(*np.subtract(points[0], points[-1])) for points in each["targets"]])
            for each in known
        ]
    )


def start_to_other_end(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """How far a long contour's start is from the other's end."""
    found = []
    for each in known:
        pairs = (each["targets"], each["targets"][::-1])
        distances = [np.hypot(*np.subtract(one[0], other[-1])) for one, other in pairs]
        found.append(np.mean(distances))
    return np.array(found)


def distractor_number(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """How many distractors there are."""
    return np.array([len(each["distractors"]) for each in known])


def distractor_length(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """The mean length of the distractors, in pixels.

    The first paddle is left out, because the original may know another point of it.
    """
    return np.array(
        [
            np.mean([_path(points[1:]) for points in each["distractors"]])
            for each in known
            if each["distractors"]
        ]
    )


def crosses(known: list[dict], settings: PathfinderSettings) -> np.ndarray:
    """Whether the lines through the ends of the paddles touch, at a fine resolution."""
    found = []
    for each in known:
        first, second = (
            outline(Contour(np.empty((0, 3)), np.array(points, dtype=np.int64)), settings.size)
            for points in each["targets"]
        )
        assert first.shape == (settings.size * FINE,) * 2
        found.append(float((widened(first) & second).any()))
    return np.array(found)


SEEN: dict[str, Statistic] = {
    "ink fraction": ink_fraction,
    "mean grey level of ink": mean_ink,
    "lower quartile of ink": ink_quantile(0.25),
    "median of ink": ink_quantile(0.5),
    "upper quartile of ink": ink_quantile(0.75),
    "centre of ink from the middle, pixels": centre_of_ink,
    "distance of markers, pixels": marker_distance,
}
KNOWN: dict[str, Statistic] = {
    "length of a long contour, pixels": contour_length,
    "its start to its end, pixels": contour_span,
    "its start to the other's end, pixels": start_to_other_end,
    "distractors": distractor_number,
    "length of a distractor, pixels": distractor_length,
    "long contours cross": crosses,
}


def _geometry(drawing: Drawing) -> dict:
    def points(contour: Contour) -> list:
        return [contour.turns[0].tolist(), *contour.paddles[1:, :2].tolist()]

    return {
        "targets": [points(contour) for contour in drawing.targets],
        "distractors": [points(contour) for contour in drawing.distractors],
    }


def _path(points: list) -> float:
    return float(np.hypot(*np.diff(np.array(points), axis=0).T).sum())


def _summary(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}"
