"""The look of all pictures of results: colours, figures, bars, and how they are written."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hgrn.files import whole_file, writing

INK = "#1f3b57"
ACCENT = "#c8502d"
SHADE = "#9db4c8"
# One colour for each line of a plot of several models, ours first.
LINES = (ACCENT, INK, "#6a8caf", "#5b8c5a", "#b08d3c", "#7d5a8c")
_REMEDY = "give a folder that can be with --plots FOLDER"


def figure(width: float = 7, height: float = 4.2) -> Any:
    """An empty figure. It is made without pyplot, so no window system is asked for."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def lines(title: str, **axes: Any) -> tuple[Any, Any]:
    """A figure of one panel for lines, and the panel; `axes` are labels and scales."""
    drawn = figure()
    panel = drawn.add_subplot()
    panel.set(title=title, **axes)
    panel.grid(alpha=0.25)
    return drawn, panel


def legend(panel: Any) -> None:
    """A legend without a frame, if there is anything to name."""
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False)


def bars(
    panel: Any,
    labels: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    form: str,
    size: int = 8,
) -> None:
    """Horizontal bars from top to bottom, each with its value in the format `form`."""
    places = range(len(labels))[::-1]
    drawn = panel.barh(places, values, color=colours)
    panel.bar_label(drawn, [format(value, form) for value in values], padding=3, fontsize=size)
    panel.set_yticks(places, labels, fontsize=size)
    panel.margins(x=0.18, y=0.02)
    panel.grid(alpha=0.25, axis="x")


def colours_of(peers: Iterable[str]) -> list[str]:
    """The accent for what is ours, the shade for everybody else."""
    return [ACCENT if peer.lower().startswith("hgrn") else SHADE for peer in peers]


def save(drawn: Any, path: Path) -> Path:
    """Write a figure, whole or not at all; its path. Raises UserError if the folder refuses."""
    with writing(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, _REMEDY) as draft:
        drawn.savefig(draft, dpi=150)
    return path
