"""What was found: the table of targets, the CSV file and the plot."""

from pathlib import Path

from hgrn.bench.results import Row, environment, version, write_csv

from benchmarks.gpu.clock import OURS, Bench

_COLOURS = {"kernel": "#1f3b57", "op": "#9db4c8"}
_ACCENT = "#c8502d"


def table(bench: Bench) -> str:
    """Every target and whether it holds; "open" is one that nothing was measured for."""
    lines = [f"{'target':64} {'wanted':>7} {'found':>7}"]
    for name, (wanted, found) in bench.targets.items():
        verdict = (
            "open"
            if found is None
            else "rehearsed"
            if bench.rehearse
            else "holds"
            if found >= wanted
            else "MISSED"
        )
        lines.append(
            f"{name:64} {wanted:7.2f} {'' if found is None else f'{found:.2f}':>7} {verdict}"
        )
    lines += [f"WRONG: {failure}" for failure in bench.failures]
    return "\n".join(lines)


def save(bench: Bench, hardware: str, out: Path, plots: Path) -> list[Path]:
    """Writes gpu.csv and bench_gpu.png; returns the files."""
    where = (
        environment()
        | {package: version(package) for package in ("triton", "flash-linear-attention")}
        | {"gpu": hardware}
    )
    write_csv(out / "gpu.csv", [row.text | where for row in bench.rows])
    plots.mkdir(parents=True, exist_ok=True)
    draw(bench.rows, hardware).savefig(plots / "bench_gpu.png", dpi=150)
    return [out / "gpu.csv", plots / "bench_gpu.png"]


def draw(rows: list[Row], hardware: str):
    """Scans as a share of the copy, and tokens a second of the models."""
    from matplotlib.figure import Figure

    scans = [row for row in rows if row.ratio is not None]
    models = [row for row in rows if row.tokens_per_s is not None]
    figure = Figure(figsize=(15, 2 + 0.2 * max(len(scans), len(models), 10)), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [
        f"{row.name.removeprefix('hgru_scan ')} {row.shape} {row.dtype} {row.kind}" for row in scans
    ]
    bars(
        left, labels, [row.ratio for row in scans], [_COLOURS[row.kind] for row in scans], "{:.2f}"
    )
    left.axvline(1, color=_ACCENT, linestyle="--", linewidth=1)
    left.set(
        title="Scans: the time of a copy of as many bytes, over ours",
        xlabel="share of the copy (1 is the limit)",
    )
    labels = [f"{row.peer}: {row.name}, {row.shape}" for row in models]
    colours = [_ACCENT if row.peer == OURS else _COLOURS["op"] for row in models]
    bars(right, labels, [row.tokens_per_s for row in models], colours, "{:.3g}")
    right.set(title="Models", xlabel="tokens/s")
    if models:
        right.set_xscale("log")
    figure.suptitle(hardware)
    return figure


def bars(panel, labels: list[str], values: list[float], colours: list[str], text: str) -> None:
    places = range(len(labels))[::-1]
    drawn = panel.barh(places, values, color=colours)
    panel.bar_label(drawn, [text.format(value) for value in values], padding=3, fontsize=7)
    panel.set_yticks(places, labels, fontsize=7)
    panel.margins(x=0.18, y=0.02)
    panel.grid(alpha=0.25, axis="x")
