"""Every variant of HGRN against its equation, written as a loop, and the command that trains it."""

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.ablations.command import difference, table
from benchmarks.ablations.variants import SETTINGS, variants
from benchmarks.rows import read_csv
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import HGRN

DEPTH = 4
OURS = [name for name, variant in variants(DEPTH).items() if "model.mixer" in variant.changes]


def mixer_of(name):
    """The third layer's mixer of a stack in float64, and its learned bound."""
    changes = variants(DEPTH)[name].changes
    options = changes["model.mixer_options"]
    torch.manual_seed(0)
    stack = HGRN(
        6, DEPTH, mixer=changes["model.mixer"], gate_position="before_norm", mixer_options=options
    )
    stack = stack.double()
    assert stack.bounds is not None
    with torch.no_grad():
        stack.bounds.logits.normal_()
    bound = stack.lower_bounds()[2]
    assert bound is not None
    return stack.blocks[2].mixer, bound.detach()


def loop(name, mixer, bound, x):
    """The output by the equation of the variant, one position after the other."""
    width = 6
    in_proj = mixer.in_proj(x)
    candidate, forget = in_proj[..., : 2 * width], in_proj[..., 2 * width : 3 * width]
    c = torch.nn.functional.silu(candidate)
    c = torch.complex(c[..., :width], c[..., width:])
    gamma = bound
    if name == "random-bound":
        gamma = mixer.bound
        assert not torch.equal(gamma, bound) and gamma.min() >= 0 and gamma.max() <= 1
    if name == "decreasing-bound":
        gamma = (1 - 1 / DEPTH - bound).clamp(min=0)
    keep = gamma + (1 - gamma) * torch.sigmoid(forget)
    write = 1 - keep
    if name == "only-bound":
        keep, write = gamma.expand_as(forget), (1 - gamma).expand_as(forget)
    if name == "no-forget-gate":
        keep = write = torch.ones_like(forget)
    if name == "untied-input-gate":
        write = torch.sigmoid(mixer.input_gate(x))
    turn = torch.polar(torch.ones_like(mixer.theta), mixer.theta)
    h = torch.zeros(x.shape[0], width, dtype=torch.complex128)
    states = []
    for t in range(x.shape[1]):
        h = keep[:, t] * turn * h + write[:, t] * c[:, t]
        states.append(torch.cat([h.real, h.imag], -1))
    states = torch.stack(states, 1)
    if name != "no-output-gate":
        states = states * torch.nn.functional.silu(in_proj[..., 3 * width :])
    normed = torch.nn.functional.layer_norm(states, (2 * width,), eps=mixer.norm.eps)
    return mixer.out_proj(normed), states


@pytest.mark.parametrize("name", OURS)
def test_a_variant_computes_its_equation(name):
    mixer, bound = mixer_of(name)
    x = torch.randn(2, 7, 6, dtype=torch.double)
    y, state = mixer(x, bound)
    torch.testing.assert_close(y, loop(name, mixer, bound, x)[0])
    # From state to state the same.
    first, between = mixer(x[:, :3], bound)
    second, last = mixer(x[:, 3:], bound, between)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(last[0], state[0])


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_of_a_variant_learns(name):
    mixer, bound = mixer_of(name)
    y, _ = mixer(torch.randn(2, 7, 6, dtype=torch.double), bound)
    y.square().sum().backward()
    idle = {key for key, p in mixer.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == ({"theta"} if name == "fixed-theta" else set())


def test_a_bound_that_falls_starts_as_the_published_one_upside_down():
    stack = HGRN(6, DEPTH, mixer="ablation-decreasing-bound", mixer_options={"depth": DEPTH})
    bounds = [bound for bound in stack.lower_bounds() if bound is not None]
    fallen = [(1 - 1 / DEPTH - bound).clamp(min=0) for bound in bounds]
    torch.testing.assert_close(torch.stack(fallen), torch.stack(bounds[::-1]))


def test_a_saved_variant_is_never_read_as_plain_hgrn(tmp_path):
    config = HGRNConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, mixer="ablation-only-bound"
    )
    model = HGRNForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    again = HGRNForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert type(again.model.stack.blocks[0].mixer).__name__ == "OnlyBound"


def test_a_table_tells_differences_with_their_errors():
    assert difference([2.0, 2.2], [1.0, 1.2]) == "+1.000 ± 0.141"
    assert difference([2.0], [1.0, 1.2]) == "+0.900"
    setting = next(setting for setting in SETTINGS if setting.name == "sotu")
    rows = [
        {
            "data": "sotu",
            "variant": name,
            "seed": "0",
            "bits_per_byte": bits,
            "parameters": "1234",
        }
        for name, bits in (("full", "1.5"), ("no-bound", "1.75"))
    ]
    columns = table(rows, setting)
    assert columns["from HGRN"] == ["", "+0.250"]
    assert columns["paper, perplexity on WikiText-103"] == ["24.14", "24.71"]


def test_the_command_trains_once(tmp_path, capsys):
    words = ["ablations", "--quick", "--share", "1/11", "--out", str(tmp_path)]
    words += ["--runs", str(tmp_path / "runs")]
    assert main(words) == 0
    rows = read_csv(tmp_path / "ablations.csv")
    assert [row["variant"] for row in rows] == ["full"]
    assert rows[0]["equation"] == "h_t = lambda_t E h_{t-1} + (1 - lambda_t) c_t"
    assert main(words) == 0
    assert read_csv(tmp_path / "ablations.csv") == rows
    capsys.readouterr()
    assert main(["ablations", "--data", "soto=x"]) == 2
    assert "--data must be like sotu=PATH, got 'soto=x'" in capsys.readouterr().err
