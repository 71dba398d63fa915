"""HGRNModel: masks, packing, embeddings, hidden states, checkpointing, and errors that name their
argument."""

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNModel
from tests.tolerances import assert_close

LENGTHS = [5, 2, 7]
CU_SEQLENS = torch.tensor([0, 5, 7, 14])


@pytest.fixture
def model(tiny) -> HGRNModel:
    for block in tiny.model.stack.blocks:
        torch.nn.init.ones_(block.mixer.theta)
    return tiny.model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(11, (1, 14), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float32])
def test_padded_is_plain(model, ids, side, kind):
    rows = ids[0].split(LENGTHS)
    padded = torch.full((3, 7), 9)
    mask = torch.zeros(3, 7)
    for n, row in enumerate(rows):
        where = slice(7 - len(row), None) if side == "left" else slice(len(row))
        padded[n, where], mask[n, where] = row, 1
    output = model(padded, attention_mask=mask.to(kind))
    for n, row in enumerate(rows):
        alone = model(row[None])
        assert_close(output.last_hidden_state[n, mask[n].bool()], alone.last_hidden_state[0])
        for layer, expected in zip(
            output.past_key_values.state, alone.past_key_values.state, strict=True
        ):
            assert_close(layer[0][n], expected[0][0])


def test_packed_is_separate(model, ids):
    output = model(ids, cu_seqlens=CU_SEQLENS)
    for n, row in enumerate(ids[0].split(LENGTHS)):
        alone = model(row[None])
        assert_close(
            output.last_hidden_state[:, CU_SEQLENS[n] : CU_SEQLENS[n + 1]], alone.last_hidden_state
        )
        assert_close(output.past_key_values.state[1][0][n], alone.past_key_values.state[1][0][0])


def test_a_mask_of_ones_does_not_undo_packing_and_zeros_are_padding_inside_it(model, ids):
    packed = model(ids, cu_seqlens=CU_SEQLENS).last_hidden_state
    ones = torch.ones_like(ids)
    assert torch.equal(model(ids, ones, cu_seqlens=CU_SEQLENS).last_hidden_state, packed)
    assert not torch.equal(model(ids, ones).last_hidden_state, packed)
    ones[0, 9] = 0
    output = model(ids, ones, cu_seqlens=CU_SEQLENS).last_hidden_state
    alone = model(torch.cat([ids[:, 7:9], ids[:, 10:]], dim=1)).last_hidden_state
    assert_close(output[:, 10:], alone[:, 2:])


def test_a_mask_may_have_the_columns_of_the_past(model, ids):
    mask = torch.ones_like(ids)
    mask[0, 2] = mask[0, 9] = 0
    whole = model(ids, mask).last_hidden_state
    first = model(ids[:, :6], mask[:, :6])
    for given in (mask, mask[:, 6:]):
        rest = model(ids[:, 6:], given, past_key_values=first.past_key_values.detach())
        assert_close(rest.last_hidden_state, whole[:, 6:])


def test_embeddings_in_place_of_ids(model, ids):
    scaled = model(ids)[0]
    assert torch.equal(model(inputs_embeds=model.embed_tokens(ids))[0], scaled)
    model.config.scale_embeddings = False
    assert_close(model(inputs_embeds=model.embed_tokens(ids) * 8**0.5)[0], scaled)


def test_hidden_states_end_with_the_output(model, ids):
    output = model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and output.hidden_states[-1] is output.last_hidden_state
    assert_close(output.hidden_states[0], model.embed_tokens(ids) * 8**0.5)
    assert model(ids).hidden_states is None


def test_the_cache_is_returned_when_asked_for(model, ids):
    assert model(ids).past_key_values.get_seq_length() == 14
    assert model(ids, use_cache=False).past_key_values is None
    model.train()
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None
    first, *rest = model(ids, use_cache=True, return_dict=False)
    assert first.shape == (1, 14, 8) and len(rest) == 1


def test_checkpointing_changes_nothing_but_memory(model, ids, monkeypatch):
    model.train()
    runs = []
    compute = type(model.stack.blocks[0])._compute

    def counted(self, *args):
        runs.append(self)
        return compute(self, *args)

    monkeypatch.setattr(type(model.stack.blocks[0]), "_compute", counted)

    def gradients():
        runs.clear()
        state = model(ids[:, :6], use_cache=True).past_key_values
        model(ids[:, 6:], past_key_values=state).last_hidden_state.square().mean().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return grads

    expected = gradients()
    assert len(runs) == 4
    model.activation_checkpointing_enable()
    assert all(map(torch.equal, gradients(), expected)) and len(runs) == 8
    model.activation_checkpointing_disable()
    gradients()
    assert len(runs) == 4


@pytest.mark.parametrize(
    "options", [dict(), dict(conv_size=4), dict(complex_state=False, norm_type="rms")]
)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_does_not_cut_a_carried_state(reentrant, options, ids):
    torch.manual_seed(0)
    model = (
        HGRNModel(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, **options))
        .double()
        .train()
    )
    embeds = model.embed_tokens(ids[:, :4]).detach().requires_grad_()

    def gradients():
        state = model(inputs_embeds=embeds, use_cache=True).past_key_values
        loss = model(ids[:, 4:], past_key_values=state).last_hidden_state.square().mean()
        return torch.autograd.grad(loss, [embeds]) if not reentrant else backward(loss)

    def backward(loss):  # reentrant checkpointing knows no torch.autograd.grad
        model.zero_grad()
        embeds.grad = None
        loss.backward()
        return [embeds.grad, *(parameter.grad for parameter in model.parameters())]

    expected = gradients()
    assert expected[0].abs().sum() > 0
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    for found, wanted in zip(gradients(), expected, strict=True):
        assert_close(found, wanted)


def test_options_reach_the_stack():
    config = HGRNConfig(
        vocab_size=5,
        hidden_size=4,
        num_hidden_layers=1,
        intermediate_size=3,
        glu_act="identity",
        dropout=0.25,
        bias=False,
        norm_eps=1e-3,
        complex_state=False,
        gate_position="before_norm",
        gate_act="sigmoid",
        gate_rank=2,
        pad_token_id=4,
        norm_type="rms",
    )
    model = HGRNModel(config)
    block = model.stack.blocks[0]
    mixer = block.mixer
    glu = block.glu
    assert (
        glu.gate_up_proj.out_features == 6 and glu.act == "identity" and glu.down_proj.bias is None
    )
    assert (
        mixer.theta is None and mixer.gate_position == "before_norm" and mixer.gate_act == "sigmoid"
    )
    assert mixer.gate_up.in_features == 2 and mixer.norm.eps == model.stack.norm.eps == 1e-3
    assert (
        type(block.mixer_norm) is type(block.glu_norm) is type(model.stack.norm) is torch.nn.RMSNorm
    )
    assert isinstance(mixer.norm, torch.nn.RMSNorm)
    assert HGRNModel(HGRNConfig(vocab_size=5, hidden_size=4, conv_size=3)).stack.blocks[
        0
    ].mixer.short_conv.weight.shape == (12, 3)
    assert model.dropout.p == block.dropout.p == 0.25 and model.embed_tokens.padding_idx == 4


IDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "exactly one of input_ids and inputs_embeds"),
        (dict(input_ids=IDS, inputs_embeds=torch.zeros(2, 3, 8)), "exactly one of"),
        (
            dict(input_ids=IDS, attention_mask=torch.ones(2, 2)),
            r"attention_mask .*\[2, 3\].*\(2, 2\)",
        ),
        (dict(input_ids=IDS, attention_mask=torch.ones(2, 1, 3, 3)), "attention_mask must have"),
        (dict(input_ids=IDS, cu_seqlens=torch.tensor([0, 6])), "packed sequences need"),
        (dict(input_ids=IDS, output_attentions=True), "no attention weights"),
    ],
)
def test_what_does_not_go_together_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_a_misspelt_argument_is_not_swallowed(model, ids):
    with pytest.raises(TypeError, match="cu_seq_lens"):
        model(ids, cu_seq_lens=CU_SEQLENS)
