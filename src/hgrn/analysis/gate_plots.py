"""Pictures of forget gates: how far each layer remembers, and where in a text it forgets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgrn.analysis.gates import LayerGates
from hgrn.analysis.look import ACCENT, INK, SHADE, figure, save

# A bound of 1 would remember for ever; no picture needs more.
_LONGEST = 1e6
_BINS = 41


def horizons(lower_bound: Tensor) -> Tensor:
    """How many tokens a layer remembers at least: `1 / (1 - lower_bound)`, of the same shape."""
    return 1 / (1 - lower_bound.double()).clamp(min=1 / _LONGEST)


def memory_of_layers(
    before: Sequence[LayerGates],
    after: Sequence[LayerGates],
    gates: tuple[Tensor, Tensor],
    path: Path,
) -> None:
    """Draw horizons and the distribution of gates of each layer, before and after training.

    Args:
        before, after: statistics of the untrained and the trained model.
        gates: all gates of both, `[L, T, D]` each.
        path: of the picture. Raises UserError if it cannot be written.
    """
    picture = figure(10, 0.55 * len(after) + 2.6)
    bounded, spread = picture.subplots(1, 2, sharey=True)
    _draw_horizons(bounded, before, after)
    _draw_distributions(spread, *gates)
    numbers = range(1, len(after) + 1)
    bounded.set_yticks(numbers, [f"layer {number}" for number in numbers])
    save(picture, path)


def _draw_horizons(axes: Any, before: Sequence[LayerGates], after: Sequence[LayerGates]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set(
        xscale="log",
        xlabel="tokens that a channel keeps at least, 1 / (1 - bound)",
        title="What the learned bounds guarantee",
    )
    # Tokens are counted: 1, 2, 5, 10 ... read better than powers.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    generator = torch.Generator().manual_seed(0)
    for number, (start, end) in enumerate(zip(before, after, strict=True), 1):
        if start.lower_bound is None or end.lower_bound is None:
            axes.text(1, number, " no bounds", va="center")
            continue
        found = horizons(end.lower_bound)
        # Channels of one layer would lie upon each other on a line.
        heights = number + 0.5 * (torch.rand(len(found), generator=generator) - 0.5)
        axes.plot(found, heights, ".", markersize=3, color=SHADE)
        middle = found.median().item()
        axes.plot([middle] * 2, [number - 0.35, number + 0.35], color=ACCENT, linewidth=2)
        first = horizons(start.lower_bound).median().item()
        axes.plot([first] * 2, [number - 0.35, number + 0.35], color=INK, linewidth=2)
        if number == len(after):
            axes.plot([], [], color=INK, linewidth=2, label="before training")
            axes.plot([], [], color=ACCENT, linewidth=2, label="after, half of the channels")
            axes.plot([], [], ".", color=SHADE, label="after, each channel")
            axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_distributions(axes: Any, before: Tensor, after: Tensor) -> None:
    axes.set(
        xlim=(0, 1),
        xlabel="forget gate: 0 forgets everything, 1 keeps everything",
        title="What the gates do, over positions and channels",
    )
    axes.grid(alpha=0.25)
    edges = torch.linspace(0, 1, _BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    for number, (start, end) in enumerate(zip(before, after, strict=True), 1):
        shares = [
            torch.histogram(part.flatten().float().cpu(), edges).hist for part in (start, end)
        ]
        tallest = max(part.max().item() for part in shares)
        heights = [number - 0.35 + 0.75 * part / tallest for part in shares]
        axes.fill_between(centres, number - 0.35, heights[1], color=ACCENT, alpha=0.5, linewidth=0)
        axes.plot(centres, heights[0], color=INK, linewidth=1)
    axes.plot([], [], color=INK, linewidth=1, label="before training")
    axes.fill_between([], [], color=ACCENT, alpha=0.5, label="after")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def gates_over_text(gates: Tensor, tokens: Sequence[str], path: Path) -> None:
    """Draw the mean gate of each layer at each token: a dark field is where a layer forgets.

    Args:
        gates: `[L, T, D]`.
        tokens: T texts.
        path: of the picture. Raises UserError if it cannot be written.
    """
    means = gates.mean(-1).cpu()
    layers, length = means.shape
    picture = figure(max(5, 0.16 * length + 1.8), 0.42 * layers + 1.9)
    axes = picture.add_subplot()
    image = axes.imshow(means.numpy(), aspect="auto", cmap="magma", vmin=0, vmax=1, origin="lower")
    axes.set_xticks(range(length), [_visible(token) for token in tokens], family="monospace")
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.set_yticks(range(layers), [f"layer {number}" for number in range(1, layers + 1)])
    axes.set(
        title="The forget gate of each layer at each token, mean over channels",
        xlabel="the text, one token a column (␣ space, ↵ line end)",
    )
    picture.colorbar(image, ax=axes, label="0 forgets, 1 keeps", fraction=0.03, pad=0.01)
    save(picture, path)


def _visible(token: str) -> str:
    """A token with marks for spaces and ends of lines, and without what would be markup."""
    shown = token.replace(" ", "␣").replace("\n", "↵").replace("\t", "→")
    # matplotlib reads what stands between dollars as a formula.
    return shown.replace("$", r"\$")
