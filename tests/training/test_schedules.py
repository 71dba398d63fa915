import pytest

from hgrn.training.recipe import load_recipe
from hgrn.training.schedules import constant, cosine, inverse_sqrt, learning_rate


# 5e-4 at the top, 1e-7 at the bottom, 8000 steps of warm-up: 4.999e-4 / 8000 = 6.24875e-8 a step.
# Then 5e-4 * sqrt(8000 / step): 2/3 at 18000, 1/2 at 32000, 1/3 at 72000, sqrt(0.08) at 100000.
@pytest.mark.parametrize(
    "step, lr",
    [
        (0, 1e-7),
        (1, 1.624875e-7),
        (2000, 1.25075e-4),
        (4000, 2.5005e-4),
        (7999, 4.999375125e-4),
        (8000, 5e-4),
        (18000, 3.3333333333e-4),
        (32000, 2.5e-4),
        (72000, 1.6666666667e-4),
        (100000, 1.4142135624e-4),
    ],
)
def test_the_wikitext_recipe_has_the_published_schedule(step, lr):
    recipe = load_recipe("lm/wikitext103")
    schedule = recipe.schedule
    rate = learning_rate(
        schedule.name,
        recipe.optimizer.lr,
        recipe.training.steps,
        schedule.warmup_steps,
        schedule.warmup_init_lr,
        schedule.min_lr,
    )
    assert rate(step) == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize(
    "step, lr",
    [
        (0, 0.0),
        (5, 0.5),
        (9, 0.9),
        (10, 1.0),
        (35, 0.1 + 0.9 * 0.8535533906),
        (60, 0.55),
        (85, 0.1 + 0.9 * 0.1464466094),
        (109, 0.1 + 0.9 * 0.0002467198),
        (110, 0.1),
        (160, 0.55),
        (210, 1.0),
    ],
)
def test_cosine_from_the_peak_to_its_floor_and_up_again(step, lr):
    assert cosine(step, 1.0, steps=110, warmup_steps=10, min_lr=0.1) == pytest.approx(lr, rel=1e-8)


@pytest.mark.parametrize("step, lr", [(0, 0.2), (2, 0.6), (4, 1.0), (5, 1.0), (10**6, 1.0)])
def test_constant_after_the_warmup(step, lr):
    assert constant(step, 1.0, warmup_steps=4, warmup_init_lr=0.2) == pytest.approx(lr)


def test_no_warmup_starts_at_the_peak():
    assert constant(0, 0.5) == cosine(0, 0.5, steps=10) == 0.5


def test_warmup_meets_the_decay():
    assert inverse_sqrt(7, 1.0, warmup_steps=7) == pytest.approx(1.0)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="'linear'.*inverse_sqrt, cosine or constant"):
        learning_rate("linear", 1.0, 10, 0, 0.0, 0.0)
