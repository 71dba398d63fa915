"""The streamers of transformers and the byte tokenizer: what is printed are whole characters."""

import io
import sys
import threading

import pytest
from transformers import TextIteratorStreamer, TextStreamer

from hgrn.data.tokenizer import INCOMPLETE, byte_tokenizer
from tests.tools.conftest import SENTENCE


class Screen(io.StringIO):
    """Standard output that remembers what was written at once."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


def printed(model, ids, new, monkeypatch, **options) -> list[str]:
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        model.generate(
            ids,
            max_new_tokens=new,
            do_sample=False,
            streamer=TextStreamer(byte_tokenizer(), **options),
        )
    assert screen.pieces[-1] == "\n"  # the end of the last line is the streamer's own
    return screen.pieces[:-1]


def iterated(model, ids, new, monkeypatch, **options) -> list[str]:
    streamer = TextIteratorStreamer(byte_tokenizer(), timeout=60, **options)
    thread = threading.Thread(
        target=model.generate,
        args=(ids,),
        kwargs=dict(max_new_tokens=new, do_sample=False, streamer=streamer),
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    return pieces


@pytest.mark.parametrize("stream", [printed, iterated])
def test_only_whole_characters_are_printed(stream, trained, sentence, monkeypatch):
    size = sentence.shape[1]
    ids = sentence.repeat(1, 2)[:, : size + 1]
    pieces = stream(trained, ids, 2 * size - 1, monkeypatch, skip_prompt=True)
    assert "".join(pieces) == (SENTENCE * 2)[1:]
    assert not any(INCOMPLETE in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 10  # piece by piece, not at the end
    # The ids one by one do not make characters: it is the streamer that waits for the rest of each.
    assert INCOMPLETE in "".join(byte_tokenizer().decode([token]) for token in sentence[0].tolist())


@pytest.mark.parametrize("stream", [printed, iterated])
def test_a_character_that_generation_cut_is_marked_at_the_very_end(
    stream, trained, sentence, monkeypatch
):
    cut = len("Grüße aus 東京".encode()) - 1  # the last character lacks its last byte
    pieces = stream(trained, sentence[:, :1], cut - 1, monkeypatch)
    text = "".join(pieces)
    assert text == "Grüße aus 東" + INCOMPLETE
    assert (
        not any(INCOMPLETE in piece for piece in pieces[:-1])
        and byte_tokenizer().decode(sentence[0, :cut]) == text
    )
