"""Pictures of the results, drawn from the rows as they stand in the CSV files."""

from collections.abc import Callable
from pathlib import Path

from hgrn.files import whole_file, writing

_REMEDY = "give a folder that can be with --plots FOLDER"
_INK = "#1f3b57"
_ACCENT = "#c8502d"
_SHADE = "#9db4c8"
_COLOURS = ("#c8502d", "#1f3b57", "#6a8caf", "#5b8c5a", "#b08d3c", "#7d5a8c")

Rows = list[dict[str, str]]


def draw(name: str, rows: Rows, folder: Path) -> list[Path]:
    """Draws what there is to draw of a benchmark; returns the files. Raises UserError if they cannot be written."""
    made = []
    for picture, drawing in _PICTURES.get(name, {}).items():
        figure = drawing(rows)
        path = folder / f"bench_{picture}.png"
        with writing(path, _REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path, _REMEDY) as draft:
            figure.savefig(draft, dpi=150)
        made.append(path)
    return made


def _figure(width: float, height: float):
    """Without pyplot, so that no window system and no global state is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _bars(labels: list[str], values: list[float], colours: list[str], texts: list[str], **axes):
    """Horizontal bars from top to bottom, each with its text."""
    figure, panel = _figure(8, 0.32 * len(labels) + 1.2)
    places = range(len(labels))[::-1]
    bars = panel.barh(places, values, color=colours)
    panel.bar_label(bars, texts, padding=3, fontsize=8)
    panel.set_yticks(places, labels, fontsize=8)
    panel.margins(x=0.15, y=0.02)
    panel.set(**axes)
    panel.grid(alpha=0.25, axis="x")
    return figure


def _scan_limits(rows: Rows):
    """The share of the limit that every scan reaches: a panel a scan, a pair of bars a shape."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["ratio"]]
    names = list(dict.fromkeys(row["name"] for row in rows))
    groups = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows))
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(2, -(-len(names) // 2), sharex=True, sharey=True, squeeze=False).T.flat
    for panel, name in zip(panels, names):
        for offset, kind, colour in ((-0.2, "kernel", _INK), (0.2, "op", _SHADE)):
            ratios = {
                (row["shape"], row["dtype"]): float(row["ratio"])
                for row in rows
                if (row["name"], row["kind"]) == (name, kind)
            }
            places = [place + offset for place in range(len(groups))]
            bars = panel.bar(
                places, [ratios.get(group, 0) for group in groups], 0.4, color=colour, label=kind
            )
            panel.bar_label(bars, fmt="{:.2f}", fontsize=6, padding=1)
        panel.axhline(1, color=_ACCENT, linestyle="--", linewidth=1)
        panel.set_title(name, fontsize=9)
        panel.set_xticks(
            range(len(groups)),
            [f"{shape}\n{dtype}" for shape, dtype in groups],
            rotation=60,
            ha="right",
            fontsize=7,
        )
        panel.grid(alpha=0.25, axis="y")
    figure.suptitle("Scans: the time of as many bytes by torch.add, over ours (1 is the limit)")
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    return figure


def _peers(rows: Rows, title: str, cell: str, xlabel: str, text: str, **axes):
    rows = [row for row in rows if row[cell]]
    return _bars(
        [row["peer"] for row in rows],
        [float(row[cell]) for row in rows],
        [_ACCENT if row["peer"].lower().startswith("hgrn") else _SHADE for row in rows],
        [format(float(row[cell]), text) for row in rows],
        title=title,
        xlabel=xlabel,
        **axes,
    )


def _scan_peers(rows: Rows):
    rows = [row for row in rows if row["shape"].startswith("peers")]
    title = f"Gated recurrence, forward and backward, {rows[0]['shape'].removeprefix('peers ')}"
    return _peers(rows, title, "median_ms", "milliseconds", ".3g", xscale="log")


def _train_peers(rows: Rows):
    rows = [
        row
        | {
            "peer": f"{row['peer']}, {int(row['parameters']) / 1e6:.1f} M, {row['shape'].partition(',')[2].strip()}"
        }
        for row in rows
        if row["name"] == "training step, equal size"
    ]
    return _peers(rows, "Training at equal size", "tokens_per_s", "tokens a second", ",.0f")


def _decode(rows: Rows):
    """A decoding step against the context."""
    figure, panel = _figure(7, 4.2)
    steps = [row for row in rows if row["name"] == "decode step"]
    other = [
        (int(row["shape"].rpartition(" ")[2]), row) for row in steps if row["peer"] == "Transformer"
    ]
    contexts = [context for context, _ in other]
    panel.plot(
        contexts,
        [float(row["median_ms"]) for _, row in other],
        "o-",
        color=_INK,
        label="Transformer, with its cache",
    )
    for row in (row for row in steps if row["peer"] == "HGRN"):
        panel.axhline(float(row["median_ms"]), color=_ACCENT, label=f"HGRN, {row['dtype']}")
        panel.axhline(
            float(row["limit_ms"]),
            color=_SHADE,
            linestyle="--",
            label=f"reading its weights once, {row['dtype']}",
        )
    panel.set_xscale("log", base=2)
    panel.set(
        xlabel="context, tokens",
        ylabel="milliseconds a token",
        title="Decoding, batch 1",
        ylim=(0, None),
    )
    return _finished(figure, panel)


def _length(name: str, cell: str, ylabel: str, title: str) -> Callable[[Rows], object]:
    def drawing(rows: Rows):
        figure, panel = _figure(7, 4.2)
        points = [
            (int(row["shape"].partition(",")[0].strip("context T=")), float(row[cell]))
            for row in rows
            if row["name"] == name and row[cell]
        ]
        if points:
            lengths, values = zip(*points)
            panel.plot(lengths, values, "o-", color=_ACCENT, label="HGRN")
            if name == "training step":
                line = [values[-1] * length / lengths[-1] for length in lengths]
                panel.plot(lengths, line, "--", color=_SHADE, label="in proportion to T")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
        panel.set(xlabel="tokens", ylabel=ylabel, title=title)
        if name == "decode step" and points:
            panel.set_ylim(
                min(values) / 3, max(values) * 3
            )  # that it is flat shows only on a scale that could show more
        return _finished(figure, panel)

    return drawing


def _quality(rows: Rows):
    figure, panel = _figure(7.5, 4.8)
    finals = [row for row in rows if row["run"] == "final"]
    for colour, model in zip(_COLOURS, dict.fromkeys(row["model"] for row in finals)):
        points = [
            (float(row["seconds"]), float(row["bits_per_byte"]))
            for row in finals
            if row["model"] == model
        ]
        panel.plot(*zip(*points), "o-", color=colour, label=f"{model}: {points[-1][1]:.3f}")
    panel.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="bits per byte of the test split",
        title="Quality for time",
    )
    return _finished(figure, panel)


def _finished(figure, panel):
    panel.grid(alpha=0.25)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False)
    return figure


_PICTURES: dict[str, dict[str, Callable[[Rows], object]]] = {
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
    "quality": {"quality": _quality},
}
