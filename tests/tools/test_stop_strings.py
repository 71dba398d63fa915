"""`generate` stops at strings, for which it is given a tokenizer."""

import pytest

from hgrn.data.tokenizer import byte_tokenizer


@pytest.mark.parametrize(
    "options", [{}, dict(num_beams=2), dict(use_cache=False), dict(prefill_chunk_size=2)]
)
def test_generation_stops_behind_a_string(options, trained, sentence):
    tokenizer = byte_tokenizer()
    said = trained.generate(
        sentence[:, :5],
        max_new_tokens=60,
        do_sample=False,
        tokenizer=tokenizer,
        stop_strings=["東京"],
        **options,
    )
    assert tokenizer.decode(said[0]) == "Grüße aus 東京"
