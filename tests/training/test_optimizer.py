import torch
from torch import nn

from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.training.muon import orthogonalize
from hgrn.training.optimizer import build_optimizer, parameters_of, set_learning_rate
from hgrn.training.recipe.fields import OptimizerSpec


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
    by_id = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
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


def test_orthogonalize_levels_the_singular_values():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 20, 33, generator=generator)
    for x in (matrices, matrices.mT.contiguous()):
        values = torch.linalg.svdvals(orthogonalize(x))
        assert values.min() > 0.6 and values.max() < 1.3
        # The singular vectors stay: the product with what it came from is symmetric and positive.
        product = orthogonalize(x).mT @ x
        assert (
            torch.allclose(product, product.mT, atol=1e-3)
            and torch.linalg.eigvalsh(product).min() > -1e-3
        )
    assert torch.isfinite(orthogonalize(torch.zeros(1, 4, 4))).all()


def language_model():
    torch.manual_seed(0)
    return HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    model = language_model()
    names = model.layer_matrices()
    assert set(names) == {
        f"model.stack.blocks.{n}.{part}.weight"
        for n in (0, 1)
        for part in ("mixer.in_proj", "mixer.out_proj", "glu.gate_up_proj", "glu.down_proj")
    }
    assert names["model.stack.blocks.0.mixer.in_proj.weight"] == (16, 8, 16)
    optimizer = build_optimizer(model, OptimizerSpec(name="muon", lr=0.01, weight_decay=0.3))
    assert {id(p) for p in parameters_of(optimizer)} == {id(p) for p in model.parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name not in names:
            assert optimizer.state[parameter]["step"] == 1
            continue
        decay = 1 - 0.01 * 0.3
        pieces = zip(
            parameter.detach().split(names[name]),
            before[name].split(names[name]),
            grads[name].split(names[name]),
        )
        for (
            after,
            start,
            grad,
        ) in pieces:  # at the first step the momentum points where the gradient does
            direction = orthogonalize(grad[None])[0]
            expected = decay * start - 0.01 * 0.2 * max(after.shape) ** 0.5 * direction
            assert torch.allclose(after, expected, atol=1e-5), name


def test_muon_goes_on_from_its_state_as_if_never_stopped():
    runs = []
    for stops in (False, True):
        model = language_model()
        optimizer = build_optimizer(model, OptimizerSpec(name="muon", lr=0.01))
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            if stops and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer(model, OptimizerSpec(name="muon", lr=0.01))
                optimizer.load_state_dict(state)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs))
