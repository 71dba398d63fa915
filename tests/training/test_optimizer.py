import torch
from torch import nn

from hgrn.training.optimizer import build_optimizer, parameters_of, set_learning_rate
from hgrn.training.recipe import OptimizerSpec


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.bounds = nn.Parameter(torch.ones(3, 2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def no_decay_names(self):
        return {"bounds", "linear.bias"}


def decays(model, **fields):
    """Parameter name -> weight decay of its group."""
    optimizer = build_optimizer(model, OptimizerSpec(lr=0.1, weight_decay=0.3, **fields))
    by_id = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id.get(id(p)) for name, p in model.named_parameters()}


def test_the_modules_choose_what_takes_no_decay():
    expected = {"linear.weight": 0.3, "linear.bias": 0.0, "bounds": 0.0, "frozen": None}
    assert decays(Gated(), no_decay="module") == expected


def test_a_recipe_can_decay_everything():
    expected = {"linear.weight": 0.3, "linear.bias": 0.3, "bounds": 0.3, "frozen": None}
    assert decays(Gated(), no_decay="none") == expected


def test_decay_is_decoupled_and_scaled_by_the_learning_rate():
    model = Gated()
    optimizer = build_optimizer(model, OptimizerSpec(lr=0.1, weight_decay=0.3, no_decay="none"))
    set_learning_rate(optimizer, 0.5)
    for parameter in parameters_of(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.bounds.detach(), torch.full((3, 2), 1 - 0.5 * 0.3))
