"""Makes a tokenizer that turns raw text into the ids of `vocabulary`, to be saved with a model.

transformers takes seconds to import, so only the function imports it.
"""

from typing import TYPE_CHECKING

from hgrn.data.lra.splits import LabelledData
from hgrn.data.lra.vocabulary import BYTES, SPECIALS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_tokenizer(task: str, data: LabelledData) -> "PreTrainedTokenizerFast":
    """The tokenizer of a task of sequences or pairs, "listops", "text" or "retrieval".

    With `truncation=True` it gives the ids that `prepare` gives, <eos> at the end included; without
    it, longer texts stay whole. Text that spells "<eos>" is text, except in ListOps.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    pad, unknown, eos = SPECIALS
    assert data.vocabulary is not None  # only images have none
    # Escapes in JSON can spell half of a surrogate pair, but no text of a tokenizer can hold it.
    ids = {
        token: number
        for number, token in enumerate(data.vocabulary.tokens)
        if not "\ud800" <= token <= "\udfff"
    }
    if task == "listops":
        from hgrn.data.lra.listops import CLOSE

        backend = Tokenizer(models.WordLevel(ids, unk_token=unknown))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Replace(Regex("[()]"), ""), normalizers.Replace("]", CLOSE)]
        )
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:  # a BPE that merges nothing: one token for each character, or each byte
        is_bytes = data.vocabulary == BYTES
        backend = Tokenizer(models.BPE(ids, [], unk_token=unknown, byte_fallback=is_bytes))
        backend.decoder = decoders.Fuse()
        if is_bytes:
            backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, ids[eos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        eos_token=eos,
        model_max_length=data.max_length,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
