"""Writes new Pathfinder images in the layout of the release, on all cores."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from hgrn.data.lra.parallel import ordered_map
from hgrn.data.lra.pathfinder_drawing import crossing, draw, label_by_flood
from hgrn.data.lra.pathfinder_settings import PathfinderSettings
from hgrn.errors import UserError
from hgrn.files import expanded, reading, whole_folder

TASK = 100  # images that a process draws at a time
REPORT = "report.json"


def generate(
    out: str | Path,
    settings: PathfinderSettings,
    seed: int = 0,
    number: int = 200_000,
    per_batch: int = 1000,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write images and metadata into the new folder `out/<difficulty>`, and return its report.

    number: images in all. per_batch: images of one folder. processes: None takes one for each core;
    image i depends on settings, seed and i alone. progress: called with the images done and in all.
    Every label is derived a second time, by a flood of the undashed drawing.

    Raises UserError for a folder that exists or cannot be written, numbers that make no sense, and
    contours that do not fit.
    """
    for name, value, least in (
        ("number", number, 1),
        ("per_batch", per_batch, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}; got {value}")
    folder = expanded(out) / settings.difficulty
    with reading(folder, "give another name"):
        if folder.exists():
            raise UserError(f"{folder} exists already; name another out")
    # Settings that cannot be drawn fail here, and the compiled code gets on disk for all processes.
    draw(settings, seed, 0)
    # Hundreds of thousands of files, which can be drawn again: we do not wait for the disk.
    with whole_folder(folder, durable=False) as draft:
        (draft / "metadata").mkdir()
        found = _write(draft, settings, seed, number, per_batch, processes, progress)
        report = {"seed": seed, "number": number, "settings": asdict(settings), **found}
        (draft / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return report


def contact_sheet(images: list[np.ndarray], columns: int, scale: int = 1) -> Image.Image:
    """Images of one size side by side, enlarged, with grey lines between them."""
    size = images[0].shape[0]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (size + 1) + 1, columns * (size + 1) + 1), 90, dtype=np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top = row * (size + 1) + 1
        left = column * (size + 1) + 1
        sheet[top : top + size, left : left + size] = image
    return Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1))


def _write(
    folder: Path,
    settings: PathfinderSettings,
    seed: int,
    number: int,
    per_batch: int,
    processes: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict:
    """Write all images and their metadata; return sums over the images."""
    totals = {"label_1": 0, "crossing": 0, "distractors": 0, "pairs": 0, "refused": 0}
    tasks = ((start, min(start + TASK, number)) for start in range(0, number, TASK))
    work = partial(_draw_some, settings=settings, seed=seed)
    with ordered_map(work, tasks, processes) as results:
        for index, (png, margin, label, counts) in enumerate(chain.from_iterable(results)):
            batch, place = divmod(index, per_batch)
            images = folder / "imgs" / str(batch)
            images.mkdir(parents=True, exist_ok=True)
            name = f"sample_{place}.png"
            (images / name).write_bytes(png)
            row = (
                *(f"imgs/{batch}", name, place, label),
                *(settings.continuity, settings.contour_length, settings.distractor_length),
                *(settings.paddle_length, settings.paddle_thickness, margin, 1),
            )
            table = folder / "metadata" / f"{batch}.npy"
            with open(table, "a", encoding="ascii", newline="") as metadata:
                metadata.write(" ".join(map(str, row)) + "\n")
            totals = {key: totals[key] + count for key, count in zip(totals, (label, *counts))}
            if progress is not None:
                progress(index + 1, number)
    return totals


def _draw_some(span: tuple[int, int], settings: PathfinderSettings, seed: int) -> list[tuple]:
    """PNG, margin, label and counts of each image from span[0] to before span[1]."""
    found = []
    for index in range(*span):
        drawing = draw(settings, seed, index)
        if label_by_flood(drawing) != drawing.label:
            raise RuntimeError(
                f"the flood of image {index} of seed {seed} does not give its label, "
                f"{drawing.label}"
            )
        file = io.BytesIO()
        Image.fromarray(drawing.image).save(file, "png")
        counts = (crossing(drawing), len(drawing.distractors), drawing.pairs, drawing.refused)
        found.append((file.getvalue(), drawing.margin, drawing.label, counts))
    return found
