"""The cache: what it holds, what it does to batches, and that gradients flow through it."""

import pytest
import torch
from transformers import DynamicCache

from hgrn.models import HGRNCache
from tests.tolerances import assert_close


def filled(sequences=3) -> HGRNCache:
    generator = torch.Generator().manual_seed(0)
    state = tuple((torch.randn(sequences, 4, generator=generator),) for _ in range(2))
    return HGRNCache(state, seen_tokens=5)


def parts(cache: HGRNCache) -> list[torch.Tensor]:
    return [part for layer in cache.state for part in layer]


def test_an_empty_cache_answers_what_generation_asks():
    cache = HGRNCache()
    assert cache.get_seq_length() == 0 and cache.batch_size == -1 and len(cache) == 0
    assert not cache.is_initialized and not cache.has_previous_state() and not cache.is_compileable
    assert cache.get_max_length() == -1 and not cache.is_croppable
    cache.reorder_cache(torch.tensor([0]))
    assert cache.state is None


def test_batch_operations():
    cache = filled()
    order = torch.tensor([2, 0, 0])
    before = parts(filled())
    cache.reorder_cache(order)
    assert all(
        torch.equal(now, part[order]) for now, part in zip(parts(cache), before, strict=True)
    )
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    cache.batch_select_indices(torch.tensor([1, 5]))
    assert all(
        torch.equal(now, part[[2, 0]]) for now, part in zip(parts(cache), before, strict=True)
    )
    assert (
        cache.get_seq_length() == 5
        and repr(cache) == "HGRNCache(2 layers, batch_size=2, seen_tokens=5)"
    )
    cache.reset()
    assert cache.state is None and cache.get_seq_length() == 0


@pytest.mark.parametrize("call", [lambda c: c.crop(-1), lambda c: c.activate_past_recording()])
def test_it_cannot_go_back(call):
    with pytest.raises(
        NotImplementedError, match="cannot be cropped.*decode without an assistant model"
    ):
        call(filled())


def test_chunks_through_the_cache_are_the_whole(tiny):
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
    whole = tiny(ids)
    cache = HGRNCache()
    logits = []
    for chunk in ids.split([4, 1, 1, 3], dim=1):
        output = tiny(chunk, past_key_values=cache)
        assert output.past_key_values is cache
        logits.append(output.logits)
    assert_close(torch.cat(logits, dim=1), whole.logits)
    assert cache.get_seq_length() == whole.past_key_values.get_seq_length() == 9
    for now, expected in zip(parts(cache), parts(whole.past_key_values), strict=True):
        assert_close(now, expected)


def test_a_later_loss_reaches_an_earlier_chunk_unless_detached(tiny):
    tiny.train()
    ids = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))
    embedded = tiny.model.embed_tokens(ids).detach()

    def gradient(cut: bool) -> torch.Tensor:
        first = embedded[:, :4].clone().requires_grad_()
        cache = tiny(inputs_embeds=first, use_cache=True).past_key_values
        state = cache.state
        if cut:
            cache = cache.detach()
            assert cache.get_seq_length() == 4 and not any(
                part.requires_grad for part in parts(cache)
            )
        loss = tiny(
            inputs_embeds=embedded[:, 4:], past_key_values=cache, shift_labels=ids[:, 4:]
        ).loss
        assert cache.state is not state
        loss.backward()
        return first.grad

    whole = embedded.clone().requires_grad_()
    labels = ids.masked_fill(torch.arange(8) < 4, -100)
    tiny(inputs_embeds=whole, shift_labels=labels).loss.backward()
    assert_close(
        gradient(cut=False), whole.grad[:, :4], torch.float32
    )  # the loss itself is float32
    assert whole.grad[:, :4].abs().max() > 1e-4
    assert gradient(cut=True) is None


def test_other_caches_are_refused(tiny):
    with pytest.raises(TypeError, match="past_key_values must be an HGRNCache, got DynamicCache"):
        tiny(torch.zeros(1, 2, dtype=torch.long), past_key_values=DynamicCache())
