"""What the pictures of results share beyond the package's look: lines, bars, and their place."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hgrn.analysis import look
from hgrn.files import writing

_REMEDY = "give a folder that can be with --plots FOLDER"


def lines(title: str, **axes: Any) -> tuple[Any, Any]:
    """A figure of one panel for lines, and the panel; `axes` are labels and scales."""
    figure = look.figure(7, 4.2)
    panel = figure.add_subplot()
    panel.set(title=title, **axes)
    return figure, panel


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
    return [look.ACCENT if peer.lower().startswith("hgrn") else look.SHADE for peer in peers]


def save(figure: Any, path: Path) -> Path:
    """Write a figure and make its folder if need be; its path. Raises UserError if it cannot."""
    with writing(path, _REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
    look.save(figure, path, _REMEDY)
    return path
