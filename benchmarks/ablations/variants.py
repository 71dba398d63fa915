"""Which variants there are, and on what they are trained.

Every variant is a shipped recipe with the changes that stand beside it. `E` is exp(i theta); the
rest of the letters is in mixers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import benchmarks.ablations.mixers  # noqa: F401  registers the names below


@dataclass(frozen=True)
class Variant:
    """name: in rows and on the command line. label: in pictures. equation: what makes it another
    model than HGRN. changes: of the recipe."""

    name: str
    label: str
    equation: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """The data and the budget that variants share.

    recipe: a shipped one. changes: of it, for all variants. depth: its number of layers. data: a
    KEY of --data, or None where the recipe needs no file. seeds: of each variant. names: which
    variants. published: the paper's figures for WikiText-103, to stand beside ours.
    """

    name: str
    title: str
    recipe: str
    changes: Mapping[str, Any]
    depth: int
    data: str | None
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    published: Mapping[str, float] = field(default_factory=dict)


_FULL = "h_t = lambda_t E h_{t-1} + (1 - lambda_t) c_t"


def _mixer(name: str, **options: Any) -> dict[str, Any]:
    return {"model.mixer": f"ablation-{name}", "model.mixer_options": options}


def variants(depth: int) -> dict[str, Variant]:
    """All variants by name, for so many layers."""
    listed = (
        Variant("full", "HGRN", _FULL),
        Variant(
            "no-bound",
            "no lower bound",
            "lambda_t = sigmoid(W_f x_t)",
            {"model.use_lower_bound": False},
        ),
        Variant(
            "random-bound",
            "random lower bound",
            "gamma ~ U(0, 1) for each layer and channel, not learned",
            _mixer("random-bound"),
        ),
        Variant(
            "decreasing-bound",
            "decreasing lower bound",
            "gamma' = max(0, 1 - 1/L - gamma)",
            _mixer("decreasing-bound", depth=depth),
        ),
        Variant(
            "only-bound",
            "only the lower bound",
            "h_t = gamma E h_{t-1} + (1 - gamma) c_t",
            _mixer("only-bound"),
        ),
        Variant(
            "no-forget-gate",
            "no forget gate",
            "h_t = E h_{t-1} + c_t",
            _mixer("no-forget-gate"),
        ),
        Variant(
            "untied-input-gate",
            "input gate of its own",
            "h_t = lambda_t E h_{t-1} + sigmoid(W_i x_t) c_t",
            _mixer("untied-input-gate"),
        ),
        Variant(
            "no-output-gate",
            "no output gate",
            "y_t = W_o Norm(h_t)",
            _mixer("no-output-gate"),
        ),
        Variant(
            "real",
            "real state",
            "E = 1, and h has half the channels",
            {"model.complex_state": False},
        ),
        Variant(
            "fixed-theta",
            "theta not learned",
            "theta_j = 10000^(-2j / D)",
            _mixer("fixed-theta"),
        ),
        Variant(
            "gate-after-norm",
            "output gate after the norm",
            "y_t = W_o (Norm(h_t) * act(W_g x_t))",
            {"model.gate_position": "after_norm"},
        ),
    )
    return {variant.name: variant for variant in listed}


SETTINGS = (
    Setting(
        "shakespeare",
        "Shakespeare's works",
        "quickstart",
        {"training.steps": 500},
        4,
        None,
        (0, 1, 2),
        tuple(variants(4)),
    ),
    Setting(
        "sotu",
        "presidential addresses",
        "lm/sotu",
        {"training.steps": 250},
        6,
        "sotu",
        (0,),
        ("full", "no-bound", "random-bound", "decreasing-bound", "only-bound"),
        {
            "full": 24.14,
            "no-bound": 24.71,
            "random-bound": 24.60,
            "decreasing-bound": 24.63,
            "only-bound": 27.70,
        },
    ),
)
