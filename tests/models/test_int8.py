"""What 8-bit weights cost a trained model that decodes, in bits per token."""

import copy
import math

import torch
from torch import Tensor

from hgrn.models import HGRNConfig, HGRNForImageClassification
from hgrn.modules import quantize_int8


@torch.no_grad()
def bits(model, tokens: Tensor) -> Tensor:
    """The cost of each token that could follow, `[B, T - 1, V]` in bits, one step at a time."""
    rows = []
    cache = None
    for token in tokens[:, :-1].T:
        output = model(token[:, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(-output.logits.double().log_softmax(-1) / math.log(2))
    return torch.cat(rows, 1)


def test_eight_bit_weights_cost_a_trained_model_next_to_nothing(trained, rules):
    """Measured: 1e-5 bits on text, 6e-7 in expectation; weights of 6 bits cost 1e-4 and 9e-6."""
    tokens = rules.sample(8, 200, torch.Generator().manual_seed(9))
    before = bits(trained, tokens)
    after = bits(quantize_int8(copy.deepcopy(trained)), tokens)
    on_text = (after - before).gather(-1, tokens[:, 1:, None]).mean().item()
    in_expectation = (
        (torch.exp2(-before) * (after - before)).sum(-1).mean().item()
    )  # on text that the model would write
    assert abs(on_text) < 1e-4 and 0 < in_expectation < 2e-6, (on_text, in_expectation)


def test_images_are_read_in_float():
    """The embedding of patches follows the dtype of its weights, but not of rounded ones."""
    torch.manual_seed(0)
    config = HGRNConfig(
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        bidirectional=True,
        num_labels=3,
    )
    model = HGRNForImageClassification(config).eval()
    pixels = torch.rand(2, 1, 8, 8)
    expected = model(pixel_values=pixels).logits
    assert (
        quantize_int8(model)(pixel_values=pixels).logits - expected
    ).abs().max() < 0.03 * expected.abs().max()
