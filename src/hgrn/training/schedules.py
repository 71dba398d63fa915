"""Learning rates as pure functions of the number of optimizer steps already taken.

`step` is 0 before the first update, so the first update uses the rate at 0, as in fairseq. All
three schedules have a linear warm-up from `warmup_init_lr` to the peak, and differ in what follows.
"""

import math
from collections.abc import Callable
from functools import partial


def warmup(step: int, peak: float, warmup_steps: int, warmup_init_lr: float) -> float:
    """The rate while step < warmup_steps: a straight line that reaches `peak` at warmup_steps."""
    return warmup_init_lr + (peak - warmup_init_lr) * step / warmup_steps


def constant(step: int, peak: float, warmup_steps: int = 0, warmup_init_lr: float = 0.0) -> float:
    """Warm-up, then the peak."""
    return warmup(step, peak, warmup_steps, warmup_init_lr) if step < warmup_steps else peak


def inverse_sqrt(step: int, peak: float, warmup_steps: int, warmup_init_lr: float = 0.0) -> float:
    """Warm-up, then peak * sqrt(warmup_steps / step), as for the authors' language model (their
    script_alm.sh)."""
    if step < warmup_steps:
        return warmup(step, peak, warmup_steps, warmup_init_lr)
    return peak * math.sqrt(warmup_steps) / math.sqrt(step)


def cosine(
    step: int,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    warmup_init_lr: float = 0.0,
    min_lr: float = 0.0,
) -> float:
    """Warm-up, then half a cosine from the peak to `min_lr` at `steps`.

    After `steps` the cosine goes on, so the rate rises again. The authors' runs of Long Range Arena
    do that (get_cosine_schedule_with_warmup of transformers).
    """
    if step < warmup_steps:
        return warmup(step, peak, warmup_steps, warmup_init_lr)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(
    name: str, peak: float, steps: int, warmup_steps: int, warmup_init_lr: float, min_lr: float
) -> Callable[[int], float]:
    """The schedule of a name ("inverse_sqrt", "cosine", "constant") as a function of the step."""
    # What all three have in common.
    ramp = {"peak": peak, "warmup_steps": warmup_steps, "warmup_init_lr": warmup_init_lr}
    # Only the cosine needs to know where the run ends.
    match name:
        case "inverse_sqrt":
            return partial(inverse_sqrt, **ramp)
        case "constant":
            return partial(constant, **ramp)
        case "cosine":
            return partial(cosine, **ramp, steps=steps, min_lr=min_lr)
    raise ValueError(f"no schedule is called {name!r}: choose inverse_sqrt, cosine or constant")
