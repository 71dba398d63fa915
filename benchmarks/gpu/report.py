"""What a GPU run found: the table of targets and the picture."""

from pathlib import Path

from benchmarks import drawing
from benchmarks.gpu import scans, steps
from benchmarks.rows import Row
from hgrn.analysis import look


def table(rows: list[Row], failures: list[str], rehearse: bool) -> str:
    """Every target and whether it holds; "open" is one that nothing was measured for."""
    targets = scans.targets(rows, rehearse) | steps.targets(rows, rehearse)
    lines = [f"{'target':64} {'wanted':>7} {'found':>7}"]
    for name, (wanted, found) in targets.items():
        if found is None:
            verdict = "open"
        elif rehearse:
            verdict = "rehearsed"
        else:
            verdict = "holds" if found >= wanted else "MISSED"
        number = "" if found is None else f"{found:.2f}"
        lines.append(f"{name:64} {wanted:7.2f} {number:>7} {verdict}")
    return "\n".join([*lines, *(f"WRONG: {failure}" for failure in failures)])


def draw(rows: list[Row], hardware: str, path: Path) -> Path:
    """Scans as a share of the copy, and tokens a second of the models."""
    timed = [row for row in rows if row.ratio is not None]
    models = [row for row in rows if row.tokens_per_s is not None]
    figure = look.figure(15, 2 + 0.2 * max(len(timed), len(models), 10))
    left, right = figure.subplots(1, 2)

    labels = [
        f"{row.name.removeprefix('hgru_scan ')} {row.shape} {row.dtype} {row.kind}" for row in timed
    ]
    colours = [look.INK if row.kind == "kernel" else look.SHADE for row in timed]
    drawing.bars(left, labels, [row.ratio or 0 for row in timed], colours, ".2f", size=7)
    left.axvline(1, color=look.ACCENT, linestyle="--", linewidth=1)
    left.set(
        title="Scans: the time of a copy of as many bytes, over ours",
        xlabel="share of the copy (1 is the limit)",
    )

    labels = [f"{row.peer}: {row.name}, {row.shape}" for row in models]
    colours = drawing.colours_of(row.peer for row in models)
    drawing.bars(right, labels, [row.tokens_per_s or 0 for row in models], colours, ".3g", size=7)
    right.set(title="Models", xlabel="tokens/s")
    if models:
        right.set_xscale("log")
    figure.suptitle(hardware)
    return drawing.save(figure, path)
