"""Pictures of runs and models: learning curve, forget gates, confusion matrix."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hgrn.analysis.gates import LayerGates
from hgrn.analysis.look import ACCENT, INK, SHADE, figure, finish, save

_MOST_NAMED = 20  # classes; of more, neither names nor numbers could be read


def learning_curve(
    rows: list[dict[str, Any]], path: Path, test: float | None = None, part: str | None = None
) -> None:
    """Draw bits per byte over the steps of training.

    rows: those of a run's log.jsonl. test: the figure of the test split, drawn as a line. part: of
    the validation split that was read, in words.
    Raises UserError if `path` cannot be written.
    """
    picture = figure(7, 4.2)
    axes = picture.add_subplot()
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    axes.plot(
        [row["step"] for row in train],
        [row["bits_per_byte"] for row in train],
        color=SHADE,
        label="training batches",
    )
    axes.plot(
        [row["step"] for row in validation],
        [row["bits_per_byte"] for row in validation],
        "o-",
        color=INK,
        label="validation" + (f", {part}" if part else ""),
    )
    if test is not None:
        axes.axhline(test, color=ACCENT, linestyle="--", label=f"test: {test:.3f}")

    # The first steps are far above all others; cut off there, the rest of the curve shows.
    lowest = min(row["bits_per_byte"] for row in [*train, *validation])
    axes.set_ylim(0.95 * lowest, max(1.6 * lowest, 1.02 * (test or 0)))
    axes.set(xlabel="step", ylabel="bits per byte", title="Learning curve")

    minutes_per_step = train[-1]["elapsed"] / 60 / train[-1]["step"]
    to_minutes = (lambda step: step * minutes_per_step, lambda minutes: minutes / minutes_per_step)
    axes.secondary_xaxis("top", functions=to_minutes).set_xlabel("minutes of training")
    finish(axes)
    save(picture, path)


def gates_of_layers(layers: list[LayerGates], path: Path) -> None:
    """Draw the forget gates of each layer beside its lower bounds, if it has learned any.

    The channels of a layer are sorted by their mean gate. Raises UserError if `path` cannot be
    written.
    """
    picture = figure(2.6 * len(layers) + 0.6, 3.8)
    panels = picture.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for number, (axes, layer) in enumerate(zip(panels, layers), 1):
        order = layer.mean.argsort()
        channels = range(1, len(order) + 1)
        axes.fill_between(
            channels,
            layer.low[order],
            layer.high[order],
            color=SHADE,
            alpha=0.5,
            linewidth=0,
            label="forget gate, 5 % to 95 % of positions",
        )
        axes.plot(channels, layer.mean[order], color=INK, label="forget gate, mean over positions")
        if layer.lower_bound is not None:
            axes.plot(
                channels,
                layer.lower_bound[order],
                ".",
                markersize=2.5,
                color=ACCENT,
                label="learned lower bound",
            )
        axes.set(
            title=f"layer {number}\nmean gate {layer.mean.mean():.2f}",
            xlabel="channels, sorted",
            ylim=(-0.02, 1.02),
        )
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("1 keeps everything, 0 forgets everything")
    picture.suptitle("Forget gates, layer by layer")

    # One legend serves all panels.
    picture.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        markerscale=4,
    )
    save(picture, path)


def confusion_matrix(confusion: Tensor, classes: list[str], path: Path) -> None:
    """Draw the share of each class's examples (a row) that got each answer (a column).

    confusion: counts, int64 `[K, K]`. Raises UserError if `path` cannot be written.
    """
    count = len(classes)
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    side = 2.6 + 0.42 * min(count, _MOST_NAMED)
    picture = figure(side + 0.8, side)
    axes = picture.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(
        xlabel="answer",
        ylabel="class",
        title=f"{confusion.trace() / confusion.sum():.2%} of {confusion.sum():,} right",
    )
    if count <= _MOST_NAMED:
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
                color="white" if share > 0.5 else INK,
                fontsize=8,
            )
    picture.colorbar(image, ax=axes, fraction=0.046, label="share of the class")
    save(picture, path)
