"""The pictures of the CPU's results, drawn from the rows in the CSV files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import drawing
from benchmarks.rows import Cells, Row
from hgrn.analysis import look

Rows = list[Row]


def draw(name: str, cells: list[Cells], folder: Path) -> list[Path]:
    """Draw what there is to draw of a benchmark's rows; the files. Raises UserError."""
    if name == "quality":
        return [drawing.save(_quality(cells), folder / "bench_quality.png")]
    made = []
    for part, picture in _PICTURES.get(name, {}).items():
        drawn = picture([Row.read(row) for row in cells])
        made.append(drawing.save(drawn, folder / f"bench_{part}.png"))
    return made


def _scan_limits(rows: Rows) -> Any:
    """The share of the limit that every scan reaches: a panel a scan, a pair of bars a shape."""
    rows = [row for row in rows if row.ratio]
    names = list(dict.fromkeys(row.name for row in rows))
    groups = list(dict.fromkeys((row.shape, row.dtype) for row in rows))
    figure = look.figure(13, 6)
    panels = figure.subplots(2, -(-len(names) // 2), sharex=True, sharey=True, squeeze=False).T.flat
    for panel, name in zip(panels, names):
        for offset, kind, colour in ((-0.2, "kernel", look.INK), (0.2, "op", look.SHADE)):
            ratios = {
                (row.shape, row.dtype): row.ratio
                for row in rows
                if (row.name, row.kind) == (name, kind)
            }
            places = [place + offset for place in range(len(groups))]
            heights = [ratios.get(group, 0) for group in groups]
            bars = panel.bar(places, heights, 0.4, color=colour, label=kind)
            panel.bar_label(bars, fmt="{:.2f}", fontsize=6, padding=1)
        panel.axhline(1, color=look.ACCENT, linestyle="--", linewidth=1)
        panel.set_title(name, fontsize=9)
        labels = [f"{shape}\n{dtype}" for shape, dtype in groups]
        panel.set_xticks(range(len(groups)), labels, rotation=60, ha="right", fontsize=7)
        panel.grid(alpha=0.25, axis="y")
    # One legend for all panels, whose bars have the same colours.
    figure.suptitle("Scans: the time of as many bytes by torch.add, over ours (1 is the limit)")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _peers(
    labels: Sequence[str], rows: Rows, values: Sequence[float], form: str, **axes: Any
) -> Any:
    """A bar for each row."""
    figure = look.figure(8, 0.32 * len(rows) + 1.2)
    panel = figure.add_subplot()
    drawing.bars(panel, labels, values, drawing.colours_of(row.peer for row in rows), form)
    panel.set(**axes)
    return figure


def _scan_peers(rows: Rows) -> Any:
    rows = [row for row in rows if row.shape.startswith("peers") and row.median_ms]
    shape = rows[0].shape.removeprefix("peers ") if rows else ""
    return _peers(
        [row.peer for row in rows],
        rows,
        [row.median_ms or 0 for row in rows],
        ".3g",
        title=f"Gated recurrence, forward and backward, {shape}",
        xlabel="milliseconds",
        xscale="log",
    )


def _train_peers(rows: Rows) -> Any:
    rows = [row for row in rows if row.name == "training step, equal size"]
    labels = [
        f"{row.peer}, {(row.parameters or 0) / 1e6:.1f} M, {row.shape.partition(',')[2].strip()}"
        for row in rows
    ]
    return _peers(
        labels,
        rows,
        [row.tokens_per_s or 0 for row in rows],
        ",.0f",
        title="Training at equal size",
        xlabel="tokens a second",
    )


def _decode(rows: Rows) -> Any:
    """A decoding step against the context."""
    figure, panel = drawing.lines(
        "Decoding, batch 1", xlabel="context, tokens", ylabel="milliseconds a token"
    )
    steps = [row for row in rows if row.name == "decode step"]
    other = [row for row in steps if row.peer == "Transformer"]
    contexts = [int(row.shape.rpartition(" ")[2]) for row in other]
    times = [row.median_ms for row in other]
    panel.plot(contexts, times, "o-", color=look.INK, label="Transformer, with its cache")
    for row in (row for row in steps if row.peer == "HGRN"):
        panel.axhline(row.median_ms, color=look.ACCENT, label=f"HGRN, {row.dtype}")
        limit = f"reading its weights once, {row.dtype}"
        panel.axhline(row.limit_ms, color=look.SHADE, linestyle="--", label=limit)
    panel.set_xscale("log", base=2)
    panel.set_ylim(0, None)
    look.finish(panel)
    return figure


def _length_of(row: Row) -> int:
    """The tokens of a row of `length`, whose shape begins with "T=4096" or "context 4096"."""
    return int(row.shape.partition(",")[0].removeprefix("T=").removeprefix("context "))


def _length(name: str, cell: str, ylabel: str, title: str) -> Callable[[Rows], Any]:
    def picture(rows: Rows) -> Any:
        figure, panel = drawing.lines(title, xlabel="tokens", ylabel=ylabel)
        points = [
            (_length_of(row), getattr(row, cell))
            for row in rows
            if row.name == name and getattr(row, cell)
        ]
        if points:
            lengths, values = zip(*points)
            panel.plot(lengths, values, "o-", color=look.ACCENT, label="HGRN")
            if name == "training step":
                # Through the longest length, where what does not grow with T counts least.
                line = [values[-1] * length / lengths[-1] for length in lengths]
                panel.plot(lengths, line, "--", color=look.SHADE, label="in proportion to T")
            else:
                # That the line is flat shows only on a scale that could show more.
                panel.set_ylim(min(values) / 3, max(values) * 3)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
        look.finish(panel)
        return figure

    return picture


def _quality(rows: list[Cells]) -> Any:
    figure, panel = drawing.lines(
        "Quality for time",
        xscale="log",
        xlabel="seconds of training",
        ylabel="bits per byte of the test split",
    )
    finals = [row for row in rows if row["run"] == "final"]
    for colour, model in zip(look.COLOURS, dict.fromkeys(row["model"] for row in finals)):
        points = [
            (float(row["seconds"]), float(row["bits_per_byte"]))
            for row in finals
            if row["model"] == model
        ]
        panel.plot(*zip(*points), "o-", color=colour, label=f"{model}: {points[-1][1]:.3f}")
    look.finish(panel)
    return figure


_PICTURES: dict[str, dict[str, Callable[[Rows], Any]]] = {
    "scan": {"scan_limits": _scan_limits, "scan_peers": _scan_peers},
    "train": {"train_peers": _train_peers},
    "decode": {"decode": _decode},
    "length": {
        "length_time": _length("training step", "median_ms", "milliseconds", "Training step, B=1"),
        "length_memory": _length(
            "training step", "memory_mb", "megabytes", "Peak memory of a training step, B=1"
        ),
        "length_decode": _length(
            "decode step", "median_ms", "milliseconds", "Decoding step behind a context"
        ),
    },
}
