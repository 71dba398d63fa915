"""Pictures of runs and models. Figures are made without pyplot, so no window system and no global state is touched."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hgrn.analysis.gates import LayerGates
from hgrn.files import whole_file

_INK = "#1f3b57"
_ACCENT = "#c8502d"
_SHADE = "#9db4c8"


def learning_curve(rows: list[dict[str, Any]], path: Path, test: float | None = None) -> None:
    """Bits per byte over training: the rows of a run's log.jsonl, and the test split's figure as a line if given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    axes.plot(
        [r["step"] for r in train],
        [r["bits_per_byte"] for r in train],
        color=_SHADE,
        label="training batches",
    )
    axes.plot(
        [r["step"] for r in validation],
        [r["bits_per_byte"] for r in validation],
        "o-",
        color=_INK,
        label="validation",
    )
    if test is not None:
        axes.axhline(test, color=_ACCENT, linestyle="--", label=f"test: {test:.3f}")
    lowest = min(r["bits_per_byte"] for r in [*train, *validation])
    axes.set_ylim(0.95 * lowest, max(1.6 * lowest, 1.02 * (test or 0)))
    axes.set(xlabel="step", ylabel="bits per byte", title="Learning curve")
    minutes = axes.secondary_xaxis(
        "top",
        functions=(
            lambda step: step * _minutes_per_step(train),
            lambda m: m / _minutes_per_step(train),
        ),
    )
    minutes.set_xlabel("minutes of training")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Write a figure. Raises UserError if that cannot be."""
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=150)


def _minutes_per_step(train: list[dict[str, Any]]) -> float:
    return train[-1]["elapsed"] / 60 / train[-1]["step"]


def forget_gates(layers: list[LayerGates], path: Path) -> None:
    """The forget gates of each layer, its channels sorted by their mean, beside the lower bounds it has learned, if it has any."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(layers) + 0.6, 3.8), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for number, (axes, layer) in enumerate(zip(panels, layers), 1):
        order = layer.mean.argsort()
        channels = range(1, len(order) + 1)
        axes.fill_between(
            channels,
            layer.low[order],
            layer.high[order],
            color=_SHADE,
            alpha=0.5,
            linewidth=0,
            label="forget gate, 5 % to 95 % of positions",
        )
        axes.plot(channels, layer.mean[order], color=_INK, label="forget gate, mean over positions")
        if layer.lower_bound is not None:
            axes.plot(
                channels,
                layer.lower_bound[order],
                ".",
                markersize=2.5,
                color=_ACCENT,
                label="learned lower bound",
            )
        axes.set(
            title=f"layer {number}\nmean gate {layer.mean.mean():.2f}",
            xlabel="channels, sorted",
            ylim=(-0.02, 1.02),
        )
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("1 keeps everything, 0 forgets everything")
    figure.suptitle("Forget gates, layer by layer")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        markerscale=4,
    )
    _save(figure, path)


def confusion_matrix(confusion: Tensor, classes: list[str], path: Path) -> None:
    """Of the examples of each class (a row), the share that got each answer (a column); confusion is int64 `[K, K]`."""
    from matplotlib.figure import Figure

    count = len(classes)
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    side = 2.6 + 0.42 * min(count, 20)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(
        xlabel="answer",
        ylabel="class",
        title=f"{confusion.trace() / confusion.sum():.2%} of {confusion.sum():,} right",
    )
    if count <= 20:
        axes.set_xticks(range(count), classes, rotation=45, ha="right")
        axes.set_yticks(range(count), classes)
        for row, column in confusion.nonzero().tolist():
            share = shares[row, column].item()
            axes.text(
                column,
                row,
                f"{100 * share:.0f}" if share >= 0.005 else "·",
                ha="center",
                va="center",
                color="white" if share > 0.5 else _INK,
                fontsize=8,
            )
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the class")
    _save(figure, path)
