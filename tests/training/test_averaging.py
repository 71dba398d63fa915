"""The moving average of weights: its definition in float64, and how a run saves and resumes it."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hgrn.training.averaging import WeightAverage
from hgrn.training.checkpointing import load_state
from hgrn.training.loop import train
from tests.training.tiny_runs import tiny_image_recipe


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(model, steps, average):
    """Random weights and statistics after each step; the history of each tensor."""
    history = {name: [tensor.double().clone()] for name, tensor in model.state_dict().items()}
    for step in range(1, steps + 1):
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(
                    torch.randn_like(tensor) if tensor.is_floating_point() else torch.tensor(step)
                )
                history[name].append(tensor.double().clone())
        average.update(step)
    return history


def test_the_average_is_that_of_the_definition(model):
    average = WeightAverage(model, 0.8)
    history = moved(model, 60, average)  # the decay reaches 0.8 at step 36
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.in_place():
        for name, tensor in model.state_dict().items():
            expected = history[name][0]
            for step, value in enumerate(history[name][1:], 1):
                decay = min(0.8, step / (step + 9))
                expected = decay * expected + (1 - decay) * value
            if name.endswith("num_batches_tracked"):
                assert tensor == 60
            else:
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
                assert not torch.equal(tensor, live[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, live[name])


def test_a_swap_back_restores_even_after_an_error(model):
    average = WeightAverage(model, 0.5)
    moved(model, 3, average)
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert all(torch.equal(tensor, live[name]) for name, tensor in model.state_dict().items())


def test_what_is_saved_is_the_average_and_a_resume_goes_on_with_both(tmp_path):
    changes = dict(training__average=0.7, model__norm_type="batch")
    whole = train(tiny_image_recipe(tmp_path, **changes), tmp_path / "whole")
    plain = train(tiny_image_recipe(tmp_path, model__norm_type="batch"), tmp_path / "plain")
    averaged = load_file(whole.checkpoint / "model.safetensors")
    raw = load_file(plain.checkpoint / "model.safetensors")
    kept = load_state(whole.checkpoint, 0)["average"]
    assert all(
        torch.equal(kept[name], tensor) for name, tensor in raw.items()
    )  # averaging changes no step
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in raw.items())

    def stop(event):
        if event["kind"] == "validation" and event["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(
            tiny_image_recipe(tmp_path, **changes, training__save_every=2),
            tmp_path / "cut",
            on_event=stop,
        )
    resumed = train(
        tiny_image_recipe(tmp_path, **changes, training__save_every=2),
        tmp_path / "cut",
        resume=True,
    )
    again = load_file(resumed.checkpoint / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in averaged.items())
    assert resumed.best == whole.best
