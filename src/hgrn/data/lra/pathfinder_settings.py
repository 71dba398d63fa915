"""How Pathfinder images are drawn: the numbers of the Long Range Arena for each size."""

from __future__ import annotations

from dataclasses import dataclass

from hgrn.errors import UserError

BASELINE = "curv_baseline"
DIFFICULTY_PREFIX = "curv_contour_length_"
BASELINE_LENGTH = 6


@dataclass(frozen=True)
class PathfinderSettings:
    """Lengths in pixels unless said otherwise.

    size: of the square image. padding: the border that contours keep out of. paddle_length, paddle_thickness: of
    a dash. margins: the free space around a dash, one of them drawn for each image. marker_radius: of the discs
    at the ends. contour_length: dashes of either long contour. distractor_length, num_distractors: dashes of a
    short one, and how many are tried. continuity: the higher, the straighter. seed_distance: between the starts
    of the two long contours. target_contrast, distractor_contrast: brightness of the dashes where a marker has 1;
    an image is scaled to fill 0 to 255. antialias: the factor by which dashes are drawn larger, then reduced.
    crossings: whether the two long contours may cross.
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
        """The name of the release for the folder of such images."""
        length = self.contour_length
        return BASELINE if length == BASELINE_LENGTH else f"{DIFFICULTY_PREFIX}{length}"


# What the arena's description of its data says, of each size; "distractors" is divided by their length. Its
# integer divisions round down, as in the Python of the time.
ARENA = {
    32: dict(
        padding=1,
        paddle_length=2,
        paddle_thickness=0.5,
        margins=(1,),
        marker_radius=1.5,
        continuity=1.0,
        seed_distance=7,
        target_contrast=1.5,
        distractor_contrast=2.0,
        distractors=20,
    ),
    64: dict(
        padding=1,
        paddle_length=5,
        paddle_thickness=1.0,
        margins=(1,),
        marker_radius=2.5,
        continuity=1.8,
        seed_distance=12,
        target_contrast=0.8,
        distractor_contrast=0.8,
        distractors=22,
    ),
    128: dict(
        padding=1,
        paddle_length=5,
        paddle_thickness=1.5,
        margins=(2, 3),
        marker_radius=3.0,
        continuity=1.8,
        seed_distance=20,
        target_contrast=0.9,
        distractor_contrast=0.9,
        distractors=35,
    ),
    256: dict(
        padding=22,
        paddle_length=5,
        paddle_thickness=2.0,
        margins=(3,),
        marker_radius=5.0,
        continuity=1.8,
        seed_distance=27,
        target_contrast=1.0,
        distractor_contrast=1.0,
        distractors=30,
    ),
}


def arena_settings(
    size: int, contour_length: int = 14, num_distractors: int | None = None, crossings: bool = True
) -> PathfinderSettings:
    """The arena's settings for a size; contour_length 14 is its hard set, 9 and 6 are easier, as are fewer
    distractors (None: as many as the arena has) and no crossings. Raises UserError for what cannot be drawn."""
    if size not in ARENA:
        raise UserError(f"size must be one of {', '.join(map(str, ARENA))}; got {size}")
    if not 3 <= contour_length <= 20:
        raise UserError(f"contour_length must be from 3 to 20; got {contour_length}")
    if num_distractors is not None and num_distractors < 0:
        raise UserError(f"num_distractors must not be negative; got {num_distractors}")
    values = dict(ARENA[size])
    total = values.pop("distractors")
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
