"""One Pathfinder image: two long dashed contours, short ones that distract, and a marker at two of the ends.

The label is 1 if both markers sit on one contour. After Linsley et al., "Learning long-range spatial
dependencies with horizontal gated-recurrent units" (2018), and Kim et al., "Disentangling neural mechanisms for
perceptual grouping" (2020), whose generator this follows rule by rule: a contour grows by paddles, each on a
circle around a pivot that lies a little beyond the one before, straight on preferred; every paddle claims a zone
around it, and a paddle that would enter a claimed zone is drawn again, or the contour begun anew.

What the rules look up is computed once for a margin (`_Tables`); growing contours (`pathfinder_growth`) works on
whole numbers alone, and ink is drawn only for what was kept. Contours do cross, through each other's gaps. One rule
is added, so that every label is right: if a long contour ends on the other one, both are drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from hgrn.data.lra.pathfinder_growth import Tables, growth
from hgrn.data.lra.pathfinder_settings import PathfinderSettings
from hgrn.data.shuffle import hashed
from hgrn.errors import UserError

DEGREES = 360
FINE = 4  # pixels of the undashed drawing along one of the image
MAX_PAIRS = 1_000_000  # pairs of long contours tried for one image


class Contour(NamedTuple):
    """paddles: int [P, 3], y, x and orientation (an index into the tables) of each dash, from that end on which it
    was drawn; turns: int [P + 1, 2], y and x of the start, of the pivots in the gaps, and of the end."""

    paddles: np.ndarray
    turns: np.ndarray


@dataclass(frozen=True, eq=False)
class Drawing:
    """image: uint8 [size, size]. markers: y, x of both. targets: the long contours; distractors: the short ones that
    found room. margin: of this image. pairs: how many pairs of long contours were begun; refused: how many complete
    ones were given up because of how they met."""

    image: np.ndarray
    label: int
    markers: tuple[tuple[int, int], tuple[int, int]]
    targets: tuple[Contour, Contour]
    distractors: list[Contour]
    margin: int
    pairs: int
    refused: int


def draw(settings: PathfinderSettings, seed: int, index: int) -> Drawing:
    """Image number index of a seed: a function of these three alone. Raises UserError if the contours do not fit."""
    margin = settings.margins[hashed(seed, index, 0) % len(settings.margins)]
    label = hashed(seed, index, 1) & 1
    first = hashed(seed, index, 2) & 1
    second = first if label else 1 - first
    state = np.array([hashed(seed, index, 3)], dtype=np.uint64)
    stamps, tables = _tables(settings, margin)
    grow_targets, grow_distractors = growth()
    limits = (settings.size, settings.padding, settings.seed_distance)
    pairs = refused = 0
    while True:
        zone, contours, begun = grow_targets(
            state, tables, *limits, settings.contour_length, MAX_PAIRS
        )
        pairs += begun
        if begun > MAX_PAIRS:
            raise UserError(
                f"two contours of {settings.contour_length} paddles do not fit into {settings.size} pixels; "
                "give a smaller contour_length or a larger size"
            )
        targets = tuple(_contour(each) for each in contours)
        if not _meet(targets, settings):
            break
        refused += 1
    short = grow_distractors(
        state, tables, zone, settings.num_distractors, settings.distractor_length
    )
    distractors = [_contour(each) for each in short]
    markers = (_corner(targets[first], 0), _corner(targets[second], -1))
    image = _ink(settings, stamps, targets, distractors, markers)
    return Drawing(image, label, markers, targets, distractors, margin, pairs, refused)


def undashed(drawing: Drawing) -> np.ndarray:
    """The two long contours without gaps, bool [2, FINE * size, FINE * size], as if each had a colour of its own."""
    return np.stack([outline(contour, len(drawing.image)) for contour in drawing.targets])


def crossing(drawing: Drawing) -> bool:
    """Whether the long contours would touch if their gaps were closed."""
    first, second = undashed(drawing)
    return bool((widened(first) & second).any())


def label_by_flood(drawing: Drawing) -> int:
    """The label as seen in the undashed drawing: whether a flood from one marker reaches the other.

    It stays in the colour of its contour; if the contours do not cross, one colour gives the same.
    """
    start, goal = (_fine(y, x) for y, x in drawing.markers)
    colours = undashed(drawing) if crossing(drawing) else undashed(drawing).any(axis=0)[None]
    return int(any(_floods(colour, start, goal) for colour in colours))


def _floods(dry: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> bool:
    """Whether a flood from start wets goal. It wets the array, which is False there afterwards."""
    waiting = [start] if dry[start] else []
    dry[start] = False
    while waiting:
        y, x = waiting.pop()
        if (y, x) == goal:
            return True
        for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            if 0 <= near[0] < len(dry) and 0 <= near[1] < len(dry) and dry[near]:
                dry[near] = False
                waiting.append(near)
    return False


def _fine(y: int, x: int) -> tuple[int, int]:
    """The middle of a pixel in the undashed drawing."""
    return y * FINE + FINE // 2, x * FINE + FINE // 2


def _contour(rows: np.ndarray) -> Contour:
    """rows: int [P + 1, 5] of growth: y, x, orientation of the paddles, and y, x of the turns."""
    return Contour(rows[:-1, :3], rows[:, 3:])


def _corner(contour: Contour, which: int) -> tuple[int, int]:
    y, x = contour.turns[which].tolist()
    return y, x


def outline(contour: Contour, size: int) -> np.ndarray:
    canvas = Image.new("1", (size * FINE, size * FINE))
    points = [_fine(y, x)[::-1] for y, x in contour.turns.tolist()]
    ImageDraw.Draw(canvas).line(points, fill=1)
    return np.array(canvas)


def _meet(targets: tuple[Contour, ...], settings: PathfinderSettings) -> bool:
    """Whether one contour ends on the other; where they may not cross, whether they touch at all."""
    lines = [outline(target, settings.size) for target in targets]
    if not settings.crossings:
        return bool((widened(lines[0]) & lines[1]).any())
    ends = [[_fine(*_corner(target, which)) for which in (0, -1)] for target in targets]
    return any(widened(line)[end] for line, others in zip(lines, ends[::-1]) for end in others)


def widened(line: np.ndarray) -> np.ndarray:
    """With the eight neighbours of each pixel: where a flood would reach it from."""
    around = np.pad(line, 1)
    rows = around[:-2] | around[1:-1] | around[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _ink(
    settings: PathfinderSettings,
    stamps: np.ndarray,
    targets: tuple[Contour, ...],
    distractors: list[Contour],
    markers: tuple[tuple[int, int], ...],
) -> np.ndarray:
    reach = stamps.shape[1] // 2
    canvas = np.zeros(
        (settings.size + 2 * reach,) * 2
    )  # float64: some grey levels lie exactly between two
    for contours, contrast in (
        (targets, settings.target_contrast),
        (distractors, settings.distractor_contrast),
    ):
        for contour in contours:
            for y, x, orientation in contour.paddles.tolist():
                place = canvas[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
                np.maximum(place, stamps[orientation] * np.float32(contrast), out=place)
    image = canvas[reach:-reach, reach:-reach]
    for marker in markers:
        image = np.maximum(image, _disc(settings, *marker))
    return (image * (255 / image.max()) + 0.5).astype(np.uint8)  # the background is 0


def _disc(settings: PathfinderSettings, y: int, x: int) -> np.ndarray:
    scale = settings.antialias
    size = settings.size
    rows = np.arange(size * scale)[:, None] - y * scale
    columns = np.arange(size * scale) - x * scale
    large = np.where(rows**2 + columns**2 <= (settings.marker_radius * scale) ** 2, 255, 0)
    return _reduced(large.astype(np.uint8), size)


def _reduced(large: np.ndarray, size: int) -> np.ndarray:
    """uint8 [S, S] -> float32 [size, size] in [0, 1]."""
    small = Image.fromarray(large).resize((size, size), resample=Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float32) / 255


@lru_cache(maxsize=8)
def _tables(settings: PathfinderSettings, margin: int) -> tuple[np.ndarray, Tables]:
    """The ink of a paddle in each orientation, float32 [O, S, S] with its near end in the middle, and what growing
    contours looks up. Orientations are those of first paddles, by degrees, then those towards each point of the
    circle that later ones end on."""
    length = settings.paddle_length
    first = np.arange(-DEGREES // 2, DEGREES // 2) * np.pi / 180
    circle = _circle(length + margin)
    towards = np.arctan2(circle[:, 0], circle[:, 1])
    angles = np.concatenate([first, towards])
    # First paddles are drawn from their start onwards, later ones from their end back.
    drawn = np.concatenate([first, _opposite(towards)])
    ink, zones = zip(*(_stamp(settings, margin, angle) for angle in drawn))
    turned = abs(angles[:, None] - towards)
    turned = np.minimum(np.minimum(turned, 2 * np.pi - turned) * settings.continuity, np.pi / 2)
    keep_out = [_keep_out(zone, length + margin) for zone in zones[:DEGREES]]
    around = np.arange(-margin, margin + 1)
    disc = np.argwhere(around[:, None] ** 2 + around**2 <= margin**2) - margin
    return np.stack(ink), Tables(
        circle=circle,
        weights=np.cos(turned) ** 2,
        zones=np.stack(zones).astype(np.float64),
        disc=disc,
        ahead=_step(angles, length + 2 * margin),
        head=_step(first, length),
        back=_step(_opposite(first), length + margin),
        keep_out=np.concatenate(keep_out),
        keep_out_ends=np.cumsum([len(each) for each in keep_out]),
        usable=np.array([_reaches_all_corners(each) for each in keep_out]),
    )


def _opposite(angles: np.ndarray) -> np.ndarray:
    return np.where(angles < 0, angles + np.pi, angles - np.pi)


def _step(angles: np.ndarray, distance: float) -> np.ndarray:
    """Steps of a distance in some directions, float64 [..., 2]. Where one leads is rounded up, in float64: at angles
    such as 180 degrees, the side on which that falls depends on the place, and in the original it does as well."""
    return distance * np.stack([np.sin(angles), np.cos(angles)], axis=-1)


def _circle(radius: int) -> np.ndarray:
    """The pixels in which points of a circle fall, a pixel's length apart, int64 [K, 2]."""
    angles = np.arange(0, 2 * np.pi, 1 / radius)
    return np.unique(np.floor(_step(angles, radius) + 1e-9).astype(np.int64), axis=0)


def _stamp(
    settings: PathfinderSettings, margin: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ink and zone of a paddle from the middle towards angle, float32 [S, S] each."""
    scale = settings.antialias
    reach = settings.paddle_length + int(np.ceil(settings.paddle_thickness)) + margin
    middle = reach * scale
    large = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    y, x = np.ceil(middle + _step(np.array(angle), settings.paddle_length * scale)).tolist()
    ImageDraw.Draw(large).line(
        [(middle, middle), (x, y)], fill=255, width=round(settings.paddle_thickness * scale)
    )
    line = np.array(large)
    wide = np.zeros_like(line)
    radius = margin * scale
    padded = np.pad(line, radius)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                shifted = padded[
                    radius + dy : radius + dy + len(line), radius + dx : radius + dx + len(line)
                ]
                np.maximum(wide, shifted, out=wide)
    return _reduced(line, 2 * reach + 1), _reduced(wide, 2 * reach + 1)


def _keep_out(zone: np.ndarray, reach: int) -> np.ndarray:
    """Where, from the start of a first paddle, nothing may be claimed yet: its own zone as far as wholly covered, one
    pixel down and right (the original puts it there), int64 [K, 2]."""
    offsets = np.argwhere(zone == 1) - len(zone) // 2 + 1
    return offsets[(abs(offsets) <= reach).all(axis=1)]


def _reaches_all_corners(offsets: np.ndarray) -> bool:
    """Whether from every corner of an image, and so from everywhere in it, some of the offsets stay inside.

    The original finds no place at all for a first paddle in an orientation for which this does not hold: its
    dilation of the claimed zone has no value at such a corner. Small images begin at few angles for this reason.
    """
    y, x = offsets.T
    return all(((y * down >= 0) & (x * right >= 0)).any() for down in (-1, 1) for right in (-1, 1))
