"""The runs whose accuracies are published: recipes with a few changes, and peers beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.trained import image_peers
from hgrn.data.lra.pathfinder_settings import arena_settings
from hgrn.training.tasks import build_task


@dataclass(frozen=True)
class Run:
    """A recipe with some values changed, or a peer: a task of another model on the same data.

    group: the picture that shows it. data: a KEY of --data or of `GENERATED`, or KEY/FOLDER for a
    folder in it. start: the name of the run whose weights it starts from, so that easier data comes
    first (a curriculum).
    """

    group: str
    model: str
    recipe: str
    data: str
    changes: dict[str, Any] = field(default_factory=dict)
    make_task: Callable = build_task
    start: str | None = None

    @property
    def name(self) -> str:
        """What it is called on the command line and in its row."""
        return f"{self.group}/{self.model}"

    @property
    def data_key(self) -> str:
        """The KEY of its data."""
        return self.data.split("/")[0]


# What `hgrn data` is asked for where no folder is given for a data set.
GENERATED = {
    "listops": "listops",
    "listops-5-100": "listops --min-length 5 --max-length 100 --seed 1",
    "listops-50-250": "listops --min-length 50 --max-length 250 --seed 2",
    "listops-200-600": "listops --min-length 200 --max-length 600 --seed 3",
    "pathfinder-3": "pathfinder --number 30000 --contour-length 3 --distractors 0 --seed 3",
    "pathfinder-4": "pathfinder --number 30000 --contour-length 4 --distractors 0 --seed 4",
    "pathfinder-5": "pathfinder --number 30000 --contour-length 5 --distractors 0 --seed 5",
    "pathfinder-6": "pathfinder --number 30000 --contour-length 6 --distractors 0 --seed 1",
    "pathfinder-9": "pathfinder --number 60000 --contour-length 9 --distractors 0 --seed 2",
    "pathfinder-14": "pathfinder --number 60000",
}


def _adamw(lr: float, steps: int) -> dict[str, Any]:
    """What peers train with; so many steps take a peer the time that the recipe takes ours."""
    return {
        "optimizer.name": "adamw",
        "optimizer.no_decay": "none",
        "optimizer.lr": lr,
        "schedule.min_lr": lr / 100,
        "training.steps": steps,
        "training.eval_every": steps // 10,
        "training.save_every": steps // 10,
    }


def _shortened(kind: str, seed: int, changes: dict[str, Any]) -> list[Run]:
    """ListOps of 200 to 600 tokens in about eight minutes, beginning with shorter expressions."""
    group = "listops-200-600"
    recipe = "lra/listops-cpu"
    changes = {"training.seed": seed} | changes
    own = changes | {"batch.batch_size": 64, "training.steps": 1000}
    short = Run(group, f"{kind}-{seed}-short", recipe, "listops-5-100", own)
    middle = Run(
        group,
        f"{kind}-{seed}-middle",
        recipe,
        "listops-50-250",
        changes | {"training.steps": 900},
        start=short.name,
    )
    last = Run(
        group,
        f"{kind}-{seed}",
        recipe,
        "listops-200-600",
        changes | {"training.steps": 1400},
        start=middle.name,
    )
    return [short, middle, last]


def _contours(kind: str, changes: dict[str, Any]) -> list[Run]:
    """Pathfinder in about 25 minutes, from contours of 3 dashes to the arena's own.

    The arena's have 14 dashes and distractors beside them.
    """
    runs: list[Run] = []
    for length, steps in {3: 3500, 4: 1000, 5: 1000, 6: 3000, 9: 4500, 14: 7000}.items():
        own = changes | {
            "data.difficulty": arena_settings(32, length).difficulty,
            "training.steps": steps,
        }
        if length < 6:
            # The rate stays at its peak: what is learned is learned late, and the next run goes on.
            own["schedule.min_lr"] = 1e-3
        start = runs[-1].name if runs else None
        runs.append(
            Run(
                "pathfinder",
                f"{kind}-{length}",
                "lra/pathfinder-cpu",
                f"pathfinder-{length}",
                own,
                start=start,
            )
        )
    return runs


# With and without lower bounds of the forget gates.
ARMS = {"bounded": {}, "free": {"model.use_lower_bound": False}}
# Faster than bf16 if products are small.
FP32 = {"training.precision": "fp32"}
RUNS = [
    Run("fashion-mnist", "hgrn", "image/fashion-mnist", "fashion-mnist"),
    Run(
        "fashion-mnist",
        "vit",
        "image/fashion-mnist",
        "fashion-mnist",
        _adamw(1e-3, 5500) | FP32,
        image_peers.ViTTask,
    ),
    Run(
        "fashion-mnist",
        "cnn",
        "image/fashion-mnist",
        "fashion-mnist",
        _adamw(3e-3, 5400),
        image_peers.CNNTask,
    ),
    Run("fashion-mnist-pixels", "hgrn", "image/fashion-mnist-pixels", "fashion-mnist"),
    Run(
        "fashion-mnist-pixels",
        "lstm",
        "image/fashion-mnist-pixels",
        "fashion-mnist",
        _adamw(1e-2, 4000),
        image_peers.LSTMTask,
    ),
    Run(
        "listops",
        "short",
        "lra/listops-cpu",
        "listops-5-100",
        {"batch.batch_size": 64, "training.steps": 1500},
    ),
    Run("listops", "middle", "lra/listops-cpu", "listops-50-250", start="listops/short"),
    Run("listops", "full", "lra/listops-cpu", "listops", start="listops/middle"),
    *(
        run
        for seed in (1, 2, 3)
        for kind, changes in ARMS.items()
        for run in _shortened(kind, seed, changes)
    ),
    *_contours("bounded", ARMS["bounded"]),
    # Without the arena's own, which takes as long as all others together.
    *_contours("free", ARMS["free"])[:-1],
    Run("image", "hgrn", "lra/image-cpu", "fashion-mnist"),
    Run("text", "hgrn", "lra/text-cpu", "newsgroups/text"),
    Run("retrieval", "hgrn", "lra/retrieval-cpu", "newsgroups/retrieval"),
]
