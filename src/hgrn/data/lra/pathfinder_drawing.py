"""Draws one Pathfinder image: two long dashed contours, short distractors, and two markers at ends.

The label is 1 if both markers are on one contour. After Linsley et al., "Learning long-range
spatial dependencies with horizontal gated-recurrent units" (2018), and Kim et al., "Disentangling
neural mechanisms for perceptual grouping" (2020), whose generator this follows rule by rule. A
contour grows by paddles (dashes). Each ends on a circle around a pivot, which lies a little beyond
the paddle before; straight on is likely. Every paddle claims a zone around it. A paddle that would
enter a claimed zone is drawn again, or the contour is begun anew.

`_tables` computes once what the rules look up for a margin. `pathfinder_growth` grows contours on
whole numbers alone, and only those that are kept get ink. Contours do cross, through each other's
gaps. One rule is added, so that every label is right: if a long contour ends on the other, both are
drawn anew.
"""

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
    """A contour of P paddles.

    paddles: int [P, 3], y, x and orientation (an index into the tables) of each; (y, x) is the end
    from which it is drawn. turns: int [P + 1, 2], y and x of the start, of the pivots in the gaps,
    and of the end.
    """

    paddles: np.ndarray
    turns: np.ndarray


@dataclass(frozen=True, eq=False)
class Drawing:
    """An image and how it came about.

    image: uint8 [size, size]. markers: y, x of both. targets: the long contours. distractors: the
    short ones that found room. margin: the free space around dashes of this image. pairs: how many
    pairs of long contours were begun. refused: how many complete pairs were given up because of how
    they met.
    """

    image: np.ndarray
    label: int
    markers: tuple[tuple[int, int], tuple[int, int]]
    targets: tuple[Contour, Contour]
    distractors: list[Contour]
    margin: int
    pairs: int
    refused: int


def draw(settings: PathfinderSettings, seed: int, index: int) -> Drawing:
    """Draw image number `index` of a seed; the result depends on the three arguments alone.

    Raises UserError if the contours do not fit.
    """
    # Independent random numbers for margin, label, which ends get markers, and growing.
    margin = settings.margins[hashed(seed, index, 0) % len(settings.margins)]
    label = hashed(seed, index, 1) & 1
    first = hashed(seed, index, 2) & 1
    second = first if label else 1 - first
    state = np.array([hashed(seed, index, 3)], dtype=np.uint64)
    stamps, tables = _tables(settings, margin)
    grow_targets, grow_distractors = growth()
    limits = (settings.size, settings.padding, settings.seed_distance)
    pairs = 0
    refused = 0
    while True:
        zone, contours, begun = grow_targets(
            state, tables, *limits, settings.contour_length, MAX_PAIRS
        )
        pairs += begun
        if begun > MAX_PAIRS:
            raise UserError(
                f"two contours of {settings.contour_length} paddles do not fit into "
                f"{settings.size} pixels; give a smaller contour_length or a larger size"
            )
        targets = (_contour(contours[0]), _contour(contours[1]))
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
    """The two long contours without gaps, each apart, bool [2, FINE * size, FINE * size]."""
    return np.stack([outline(contour, len(drawing.image)) for contour in drawing.targets])


def crossing(drawing: Drawing) -> bool:
    """Whether the long contours would touch if their gaps were closed."""
    first, second = undashed(drawing)
    return bool((widened(first) & second).any())


def label_by_flood(drawing: Drawing) -> int:
    """The label by the undashed drawing: whether a flood from one marker reaches the other."""
    start, goal = (_fine(y, x) for y, x in drawing.markers)
    lines = undashed(drawing)
    # Where contours cross, a flood must stay on its own; otherwise both may be one drawing.
    drawings = lines if crossing(drawing) else lines[:1] | lines[1:]
    return int(any(_floods(each, start, goal) for each in drawings))


def _floods(dry: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> bool:
    """Whether a flood of True pixels from start reaches goal. Sets what it reaches to False."""
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
    """The middle of a pixel, in the undashed drawing."""
    return y * FINE + FINE // 2, x * FINE + FINE // 2


def _contour(rows: np.ndarray) -> Contour:
    """The contour of int [P + 1, 5], which `pathfinder_growth` describes."""
    return Contour(rows[:-1, :3], rows[:, 3:])


def _corner(contour: Contour, which: int) -> tuple[int, int]:
    """y, x of a turn; 0 is the start, -1 the end."""
    y, x = contour.turns[which].tolist()
    return y, x


def outline(contour: Contour, size: int) -> np.ndarray:
    """A contour without gaps, bool [FINE * size, FINE * size]."""
    canvas = Image.new("1", (size * FINE, size * FINE))
    points = [_fine(y, x)[::-1] for y, x in contour.turns.tolist()]
    ImageDraw.Draw(canvas).line(points, fill=1)
    return np.array(canvas)


def _meet(targets: tuple[Contour, ...], settings: PathfinderSettings) -> bool:
    """Whether one contour ends on the other, or touches it where crossings are not allowed."""
    lines = [outline(target, settings.size) for target in targets]
    if not settings.crossings:
        return bool((widened(lines[0]) & lines[1]).any())
    ends = [[_fine(*_corner(target, which)) for which in (0, -1)] for target in targets]
    others = ends[::-1]
    return any(widened(line)[end] for line, near in zip(lines, others) for end in near)


def widened(line: np.ndarray) -> np.ndarray:
    """A drawing with the eight neighbours of each pixel, from which a flood would reach it."""
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
    """The image, uint8 [size, size]: dashes, then markers, scaled to fill 0 to 255."""
    reach = stamps.shape[1] // 2
    # float64, because some grey levels lie exactly between two whole numbers.
    canvas = np.zeros((settings.size + 2 * reach,) * 2)
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
    """The ink of a marker, float32 [size, size]."""
    scale = settings.antialias
    size = settings.size
    rows = np.arange(size * scale)[:, None] - y * scale
    columns = np.arange(size * scale) - x * scale
    large = np.where(rows**2 + columns**2 <= (settings.marker_radius * scale) ** 2, 255, 0)
    return _reduced(large.astype(np.uint8), size)


def _reduced(large: np.ndarray, size: int) -> np.ndarray:
    """A smaller copy, uint8 [S, S] -> float32 [size, size] in [0, 1]."""
    small = Image.fromarray(large).resize((size, size), resample=Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float32) / 255


@lru_cache(maxsize=8)
def _tables(settings: PathfinderSettings, margin: int) -> tuple[np.ndarray, Tables]:
    """The ink of a paddle in each orientation, and the tables for growing, of one margin.

    Ink is float32 [O, S, S], with the near end of the paddle in the middle. Orientations are those
    of first paddles, by degrees, then those towards each point of the circle on which later paddles
    end.
    """
    length = settings.paddle_length
    first = np.arange(-DEGREES // 2, DEGREES // 2) * np.pi / 180
    circle = _circle(length + margin)
    towards = np.arctan2(circle[:, 0], circle[:, 1])
    angles = np.concatenate([first, towards])
    # First paddles are drawn from their start onwards, later ones from their end back.
    drawn = np.concatenate([first, _opposite(towards)])
    ink, zones = zip(*(_stamp(settings, margin, angle) for angle in drawn))
    # How far each later paddle turns from the one before: straight on is likely, back impossible.
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
    """Steps of a distance in some directions, y and x, float64 [..., 2].

    Places that a step leads to are rounded up. At angles such as 180 degrees, rounding errors of
    float64 decide to which side; the original has the same errors.
    """
    return distance * np.stack([np.sin(angles), np.cos(angles)], axis=-1)


def _circle(radius: int) -> np.ndarray:
    """The pixels of a circle's points, which are a pixel's length apart, int64 [K, 2]."""
    angles = np.arange(0, 2 * np.pi, 1 / radius)
    return np.unique(np.floor(_step(angles, radius) + 1e-9).astype(np.int64), axis=0)


def _stamp(
    settings: PathfinderSettings, margin: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ink and zone of a paddle from the middle towards an angle, float32 [S, S] each."""
    scale = settings.antialias
    reach = settings.paddle_length + int(np.ceil(settings.paddle_thickness)) + margin
    middle = reach * scale
    large = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    y, x = np.ceil(middle + _step(np.array(angle), settings.paddle_length * scale)).tolist()
    ImageDraw.Draw(large).line(
        [(middle, middle), (x, y)], fill=255, width=round(settings.paddle_thickness * scale)
    )
    line = np.array(large)
    # The zone is the ink widened by the margin: the greatest ink within a disc around each pixel.
    wide = np.zeros_like(line)
    radius = margin * scale
    padded = np.pad(line, radius)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                top = radius + dy
                left = radius + dx
                shifted = padded[top : top + len(line), left : left + len(line)]
                np.maximum(wide, shifted, out=wide)
    return _reduced(line, 2 * reach + 1), _reduced(wide, 2 * reach + 1)


def _keep_out(zone: np.ndarray, reach: int) -> np.ndarray:
    """What must be free around the start of a first paddle, int64 [K, 2].

    That is the part of its own zone that is wholly covered, moved by one pixel down and right, as
    in the original.
    """
    offsets = np.argwhere(zone == 1) - len(zone) // 2 + 1
    return offsets[(abs(offsets) <= reach).all(axis=1)]


def _reaches_all_corners(offsets: np.ndarray) -> bool:
    """Whether some of the offsets stay inside the image from each of its corners.

    The original never begins in an orientation where this does not hold, because its dilation of
    the claimed zone has no value at such a corner. So small images begin at few angles.
    """
    y, x = offsets.T
    return all(((y * down >= 0) & (x * right >= 0)).any() for down in (-1, 1) for right in (-1, 1))
