"""Settings of Pathfinder drawings: the numbers of the Long Range Arena for each size."""

from dataclasses import dataclass
from typing import Any

from hgrn.errors import UserError

BASELINE = "curv_baseline"
DIFFICULTY_PREFIX = "curv_contour_length_"
BASELINE_LENGTH = 6


@dataclass(frozen=True)
class PathfinderSettings:
    """How an image is drawn; lengths are in pixels unless said otherwise.

    size: of the square image. padding: the border that contours keep out of. paddle_length,
    paddle_thickness: of a dash, which is called a paddle. margins: the free space around a dash;
    one of them is drawn for each image. marker_radius: of the discs at two ends. contour_length:
    dashes of each long contour. distractor_length: dashes of a short contour. num_distractors: how
    many short ones are tried. continuity: the higher, the straighter contours are. seed_distance:
    between the starts of the two long contours. target_contrast, distractor_contrast: brightness of
    the dashes, where a marker has 1; an image is scaled to fill 0 to 255. antialias: dashes are
    drawn larger by this factor, then reduced. crossings: whether the two long contours may cross.
    """

    size: int
    padding: int
    paddle_length: int
    paddle_thickness: float
    margins: tuple[int, ...]
    marker_radius: float
    contour_length: int
    distractor_length: int
    num_distractors: int
    continuity: float
    seed_distance: int
    target_contrast: float
    distractor_contrast: float
    antialias: int = 2
    crossings: bool = True

    @property
    def difficulty(self) -> str:
        """The name that the release gives to the folder of such images."""
        length = self.contour_length
        return BASELINE if length == BASELINE_LENGTH else f"{DIFFICULTY_PREFIX}{length}"


# From the arena's description of its data, one column for each size. "distractors" is a number of
# dashes, to be divided by the length of a distractor.
SIZES = (32, 64, 128, 256)
NUMBERS: dict[str, tuple] = {
    "padding": (1, 1, 1, 22),
    "paddle_length": (2, 5, 5, 5),
    "paddle_thickness": (0.5, 1.0, 1.5, 2.0),
    "margins": ((1,), (1,), (2, 3), (3,)),
    "marker_radius": (1.5, 2.5, 3.0, 5.0),
    "continuity": (1.0, 1.8, 1.8, 1.8),
    "seed_distance": (7, 12, 20, 27),
    "target_contrast": (1.5, 0.8, 0.9, 1.0),
    "distractor_contrast": (2.0, 0.8, 0.9, 1.0),
    "distractors": (20, 22, 35, 30),
}
ARENA: dict[int, dict[str, Any]] = {
    size: {name: values[column] for name, values in NUMBERS.items()}
    for column, size in enumerate(SIZES)
}


def arena_settings(
    size: int, contour_length: int = 14, num_distractors: int | None = None, crossings: bool = True
) -> PathfinderSettings:
    """The arena's settings for a size.

    contour_length: 14 is the hard set; 9 and 6 are easier. num_distractors: None takes as many as
    the arena; fewer are easier. crossings: False is easier. Raises UserError for numbers that
    cannot be drawn.
    """
    if size not in ARENA:
        raise UserError(f"size must be one of {', '.join(map(str, ARENA))}; got {size}")
    if not 3 <= contour_length <= 20:
        raise UserError(f"contour_length must be from 3 to 20; got {contour_length}")
    if num_distractors is not None and num_distractors < 0:
        raise UserError(f"num_distractors must not be negative; got {num_distractors}")
    values = dict(ARENA[size])
    total = values.pop("distractors")
    # These divisions round down, as those of the original generator did under Python 2.
    distractor_length = contour_length // 3
    number = total // distractor_length if num_distractors is None else num_distractors
    return PathfinderSettings(
        size=size,
        contour_length=contour_length,
        distractor_length=distractor_length,
        num_distractors=number,
        crossings=crossings,
        **values,
    )
