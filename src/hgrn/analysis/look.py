"""The one look of all pictures: their colours, and how a figure is begun, finished and saved.

Figures are made without pyplot, so no window system and no global state is touched.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hgrn.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f3b57"  # what is measured
ACCENT = "#c8502d"  # what the eye should find first
SHADE = "#9db4c8"  # what stands behind: ranges, limits, single batches
COLOURS = (ACCENT, INK, "#6a8caf", "#5b8c5a", "#b08d3c", "#7d5a8c")  # for lines of equal rank


def figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches; `add_subplot` or `subplots` gives it axes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: "Axes") -> None:
    """Give axes a faint grid, and a legend without a frame if anything in them has a label."""
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def save(figure: "Figure", path: Path, remedy: str = "") -> None:
    """Write a figure into `path`, whole or not at all.

    Raises UserError, with the remedy if one is given, if it cannot be written.
    """
    with whole_file(path, remedy) as draft:
        figure.savefig(draft, dpi=150)
