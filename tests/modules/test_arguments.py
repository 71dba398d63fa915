"""Errors about wrong arguments of modules name the argument, its value, the rule and the remedy."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from hgrn.modules import HGRN, HGRU
from hgrn.ops import gated_norm, gated_unit, hgru_carry, hgru_scan, int8_linear
from hgrn.ops.packing import lengths_to_mask

X = torch.randn(1, 6, 8)
STACK = HGRN(8, 2)
LAYER = HGRU(8)
GRID = HGRN(8, 2, grid=True)
CONV = HGRU(8, conv_size=3)
HALF = HGRN(8, 2).bfloat16()
STATE = STACK(X)[1]
ONES = torch.ones(8)
BAD_CALLS = {
    # argument, value, remedy: the call
    ("x", "PackedSequence", "pad_packed_sequence"): lambda: STACK(pack_sequence([X[0], X[0, :2]])),
    ("x", "got list", "torch.as_tensor(x)"): lambda: STACK([[1.0]]),
    ("x", "got ndarray", "torch.as_tensor(x)"): lambda: LAYER(X.numpy()),
    ("x", "[B, T, D] with D = 8", "got (1, 6, 7)"): lambda: STACK(X[..., :7]),
    ("x", "[B, T, D] with D = 8, got (6, 8)", "x[None]"): lambda: STACK(X[0]),
    ("x", "got (8,)", "[B, T, D]"): lambda: STACK(X[0, 0]),
    ("x", "[B, H, W, D] with D = 8, got (1, 6, 8)", "x[None]"): lambda: GRID(X),
    ("x", "torch.int64", "torch.nn.Embedding"): lambda: STACK(X.long()),
    ("x", "torch.float64", "x.to(torch.float32)"): lambda: STACK(X.double()),
    (
        "x",
        "torch.float64, but the weights it meets (in_proj.weight)",
        "x.to(torch.float32)",
    ): lambda: LAYER(X.double()),
    ("x", "torch.float32", "x.to(torch.bfloat16)"): lambda: HALF(X),
    ("x", "torch.bfloat16", "x.to(torch.float32)"): lambda: STACK(X.bfloat16()),
    ("state", "got Tensor", "each of 2 blocks"): lambda: STACK(X, torch.zeros(2, 1, 16)),
    ("state[0]", "got Tensor", "no (h, c)"): lambda: STACK(X, (torch.zeros(2, 1, 16),) * 2),
    ("state[1]", "a tuple of NoneType", "the call before returned"): lambda: STACK(
        X, (STATE[0], (None,))
    ),
    ("state", "each of 2 blocks, got 1", "or None"): lambda: STACK(X, STATE[:1]),
    ("state[0]", "(3, 16) (sequences, channels), got (1, 16)", "None to start anew"): lambda: STACK(
        X.expand(3, 6, 8), STATE
    ),
    ("state[0]", "(1, 16) (sequences, channels), got (1, 8)", "None"): lambda: LAYER(
        X, state=(torch.zeros(1, 8),)
    ),
    ("state", "got Tensor", "no (h, c)"): lambda: LAYER(X, state=torch.zeros(1, 16)),
    ("mask", "torch.int64", "mask.bool()"): lambda: STACK(X, mask=torch.ones(1, 6).long()),
    ("mask", "(1, 6), got (1, 5)", "expand"): lambda: STACK(X, mask=torch.ones(1, 5).bool()),
    ("mask", "got list", "torch.as_tensor(mask)"): lambda: STACK(X, mask=[[True] * 6]),
    ("mask", "got list", "bool tensor"): lambda: CONV(X, mask=[[True] * 6]),
    ("cu_seqlens", "got list", "torch.as_tensor(cu_seqlens)"): lambda: STACK(
        X, cu_seqlens=[0, 2, 6]
    ),
    ("cu_seqlens", "got ndarray", "torch.as_tensor(cu_seqlens)"): lambda: CONV(
        X, cu_seqlens=np.array([0, 2, 6])
    ),
    ("cu_seqlens", "got tuple", "torch.as_tensor(cu_seqlens)"): lambda: hgru_carry(
        X, X, cu_seqlens=(0, 6)
    ),
    ("cu_seqlens", "torch.float32", "int32 or int64"): lambda: CONV(
        X, cu_seqlens=torch.tensor([0.0, 6.0])
    ),
    ("dim", "'time'", "integer"): lambda: hgru_scan(X, X, dim="time"),
    ("forget", "got list", "torch.as_tensor(forget)"): lambda: hgru_scan(X, [1.0]),
    ("x", "got list", "tensor"): lambda: gated_unit([1.0, 2.0]),
    ("x", "torch.int64", ".float()"): lambda: gated_unit(X.long()),
    ("gate", "got NoneType", "tensor"): lambda: gated_norm(X, None, ONES, ONES),
    ("bias", "got NoneType", "tensor"): lambda: gated_norm(X, X, ONES, None),
    ("scale", "got float", "quantize_rows"): lambda: int8_linear(X, torch.ones(8, 8).char(), 0.1),
    ("weight", "(8,)", "quantize_rows"): lambda: int8_linear(X, torch.ones(8).char(), ONES),
}


@pytest.mark.parametrize("parts", BAD_CALLS, ids=lambda parts: " ".join(parts[:2]))
def test_errors_name_argument_value_and_remedy(parts):
    name, *others = parts
    with pytest.raises((ValueError, TypeError)) as caught:
        BAD_CALLS[parts]()
    message = str(caught.value)
    assert message.startswith(name) and all(part in message for part in others), message


def test_the_remedy_for_a_packed_sequence_works():
    sequences = [X[0], X[0, :2]]
    x, lengths = torch.nn.utils.rnn.pad_packed_sequence(pack_sequence(sequences), batch_first=True)
    y, state = STACK(x, mask=lengths_to_mask(lengths, x.shape[1]))
    alone, after = STACK(X[:, :2])
    assert torch.allclose(y[1, :2], alone[0], atol=1e-6)
    assert torch.allclose(state[0][0][1], after[0][0][0], atol=1e-6)


def test_what_worked_before_the_checks_works():
    """Half precision in autocast or behind float32 norms; states in lists, or of other dtypes."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert STACK(X)[0].shape == X.shape and STACK(X.bfloat16())[0].shape == X.shape
    # Maps in bfloat16 behind norms in float32.
    mixed = HGRN(8, 1)
    for part in mixed.modules():
        if isinstance(part, torch.nn.Linear):
            part.bfloat16()
    assert mixed(X.bfloat16())[0].dtype == torch.bfloat16
    assert STACK(X, [list(entry) for entry in STATE])[0].shape == X.shape
    assert STACK(X, tuple((part.double(),) for (part,) in STATE))[0].shape == X.shape


def test_quantize_dynamic_says_that_it_does_nothing():
    with (
        pytest.warns(
            UserWarning,
            match=r"leaves hgrn.modules.Linear as it is; .* hgrn.modules.quantize_int8\(model\)",
        ),
        pytest.warns(DeprecationWarning),
    ):
        torch.ao.quantization.quantize_dynamic(HGRN(8, 1), {torch.nn.Linear}, dtype=torch.qint8)
