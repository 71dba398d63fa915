"""Generation with the cache equals generation without, on a trained model."""

import copy

import pytest
import torch

from hgrn.models import HGRNCache

MODES = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, temperature=1.5),
    "beams": dict(do_sample=False, num_beams=3),
    "sampled beams": dict(do_sample=True, num_beams=2, temperature=1.5),
    "several beams of each": dict(do_sample=False, num_beams=4, num_return_sequences=2),
    "several of each": dict(do_sample=True, num_return_sequences=3, temperature=1.5),
    "prefill in chunks": dict(do_sample=False, prefill_chunk_size=3),
}
NEW = 20


@pytest.fixture
def prompts(rules):
    """Prompts of 2 to 8 tokens of different rules, padded on the left: ids, mask and lengths."""
    lengths = [8, 3, 5, 2]
    ids = torch.full((len(lengths), max(lengths)), rules.pad)
    generator = torch.Generator().manual_seed(7)
    for row, length in enumerate(lengths):
        ids[row, -length:] = rules.sample(1, length, generator)[0]
    return ids, (ids != rules.pad).long(), lengths


def generate(model, ids, mask=None, **options):
    torch.manual_seed(3)
    if options.get("use_cache") is False:
        options.pop("prefill_chunk_size", None)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **options)


@pytest.mark.parametrize("mode", MODES)
def test_with_cache_is_without(mode, trained, prompts):
    ids, mask, _ = prompts
    with_cache = generate(trained, ids, mask, **MODES[mode])
    assert with_cache.shape[1] == ids.shape[1] + NEW
    assert torch.equal(with_cache, generate(trained, ids, mask, use_cache=False, **MODES[mode]))


def test_what_is_generated_follows_the_rule(trained, rules, prompts):
    ids, mask, lengths = prompts
    for row, length in zip(generate(trained, ids, mask, do_sample=False), lengths, strict=True):
        rule, *letters = row[-NEW - length :].tolist()
        made = [
            rules.tables[rule][letter - rules.rules].item() + rules.rules for letter in letters[:-1]
        ]
        assert letters[1:] == made


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_padded_prompts_give_what_each_gives_alone(mode, trained, prompts):
    ids, mask, lengths = prompts
    together = generate(trained, ids, mask, **MODES[mode])
    for row, length in enumerate(lengths):
        alone = generate(trained, ids[row : row + 1, -length:], **MODES[mode])
        assert torch.equal(together[row, -NEW - length :], alone[0])


@pytest.mark.parametrize("mode", MODES)
def test_the_tests_above_see_a_lost_state(mode, trained, prompts, monkeypatch):
    ids, mask, _ = prompts
    expected = generate(trained, ids, mask, use_cache=False, **MODES[mode])
    update = HGRNCache.update_state

    def forget(self, state, tokens):
        update(
            self, tuple(tuple(torch.zeros_like(part) for part in layer) for layer in state), tokens
        )

    monkeypatch.setattr(HGRNCache, "update_state", forget)
    assert not torch.equal(generate(trained, ids, mask, **MODES[mode]), expected)


def test_beams_that_are_not_reordered_are_seen(trained, prompts, monkeypatch):
    ids, mask, _ = prompts
    unsure = copy.deepcopy(trained)
    with torch.no_grad():
        unsure.model.embed_tokens.weight.mul_(
            0.1
        )  # the head is tied to it: nearly flat, so that beams change places
    mode = dict(do_sample=False, num_beams=4)
    expected = generate(unsure, ids, mask, use_cache=False, **mode)
    assert torch.equal(generate(unsure, ids, mask, **mode), expected)
    monkeypatch.setattr(HGRNCache, "reorder_cache", lambda self, index: None)
    assert not torch.equal(generate(unsure, ids, mask, **mode), expected)


def test_generation_goes_on_from_a_returned_cache(trained, rules):
    ids = rules.sample(3, 6, torch.Generator().manual_seed(9))
    whole = trained.generate(ids, max_new_tokens=12, do_sample=False)
    first = trained.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert (
        first.past_key_values.get_seq_length() == ids.shape[1] + 4
    )  # the newest token is not read yet
    rest = trained.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=7, do_sample=False
    )
    assert torch.equal(rest, whole)

    # With only the ids that the cache has not seen, transformers tells by a mask over all columns.
    seen = trained.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    new = seen.sequences[:, seen.past_key_values.get_seq_length() :]
    rest = trained.generate(
        new,
        attention_mask=torch.ones_like(seen.sequences),
        past_key_values=seen.past_key_values,
        max_new_tokens=7,
        do_sample=False,
    )
    assert torch.equal(rest[:, new.shape[1] :], whole[:, -7:])


@pytest.mark.parametrize("mode", ["greedy", "several beams of each"])
def test_embeddings_can_take_the_place_of_the_prompt(mode, trained, prompts):
    ids, mask, _ = prompts
    options = dict(max_new_tokens=NEW, attention_mask=mask, **MODES[mode])
    embedded = trained.generate(inputs_embeds=trained.model.embed_tokens(ids), **options)
    assert torch.equal(embedded, trained.generate(ids, **options)[:, ids.shape[1] :])


@pytest.mark.parametrize("speculative", ["assistant", "prompt lookup"])
def test_speculative_decoding_is_refused_with_the_reason(speculative, trained, rules):
    ids = rules.sample(1, 6, torch.Generator().manual_seed(9))
    options = dict(assistant_model=trained)
    if speculative == "prompt lookup":
        options = dict(prompt_lookup_num_tokens=2)
    with pytest.raises(
        NotImplementedError, match="cannot be cropped: a recurrent state does not hold"
    ):
        trained.generate(ids, max_new_tokens=8, do_sample=False, **options)


def test_caches_of_keys_and_values_are_refused(trained, rules):
    ids = rules.sample(1, 6, torch.Generator().manual_seed(9))
    with pytest.raises(
        ValueError, match="cache_implementation='static'.*leave cache_implementation out"
    ):
        trained.generate(ids, max_new_tokens=2, cache_implementation="static")
