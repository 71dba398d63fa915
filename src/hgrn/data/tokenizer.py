"""Tokenizers: bytes by default, any Hugging Face tokenizer, and how to train one."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from hgrn.errors import UserError
from hgrn.files import expanded, reading, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BYTES = "bytes"
BYTE_BOS = 256
BYTE_EOS = 257
BYTE_PAD = 258
BYTE_VOCAB_SIZE = 259
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")

LARGEST_VOCABULARY = 2**24
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """The 256 bytes at ids 0 to 255 in byte order, then `<bos>` 256, `<eos>` 257, `<pad>` 258.

    Text that spells "<eos>" is encoded as its five bytes (`split_special_tokens`). Pass
    `split_special_tokens=False` in a call to have it read as the special token. Bytes that are not
    UTF-8 cannot be written as a `str`: `bytes_to_ids` and `ids_to_bytes` take them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = _byte_level_symbols()
    backend = Tokenizer(
        models.BPE(vocab={symbol: byte for byte, symbol in enumerate(symbols)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _with_special_tokens(backend)


def bytes_to_ids(data: bytes) -> np.ndarray:
    """Ids of the byte tokenizer, uint16 [len(data)], for any bytes."""
    return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)


def ids_to_bytes(ids: Iterable[int]) -> bytes:
    """The bytes behind ids of the byte tokenizer; bos, eos and pad stand for none."""
    ids = np.fromiter(ids, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= BYTE_VOCAB_SIZE)]
    if outside.size:
        raise ValueError(
            f"ids must be in [0, {BYTE_VOCAB_SIZE}) for the byte tokenizer; got {outside[0]}"
        )
    return ids[ids < BYTE_BOS].astype(np.uint8).tobytes()


def is_byte_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether this is the byte tokenizer, under whatever name or folder it was loaded."""
    vocabulary = tokenizer.get_vocab()
    return len(vocabulary) == BYTE_VOCAB_SIZE and vocabulary == byte_tokenizer().get_vocab()


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer.

    name: "bytes", a Hugging Face name, a folder that `save_pretrained` wrote, or a tokenizer.json.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if name == BYTES:
        return byte_tokenizer()
    if missing := missing_local_tokenizer(name):
        raise UserError(missing)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = expanded(name)
    try:
        if path.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            # Without `trust_remote_code`, transformers asks on a terminal whether to run code that
            # the folder brings along.
            tokenizer = AutoTokenizer.from_pretrained(
                str(path) if path.is_dir() else name, trust_remote_code=False
            )
        # transformers accepts settings of any type, and fails only when they are used.
        tokenizer.decode(tokenizer("a")["input_ids"])
        return tokenizer
    except Exception as error:  # the Rust backend raises plain Exception for a file it cannot parse
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f'tokenizer {name!r} cannot be loaded: {reason}. Give "bytes", the name of a tokenizer '
            "on the Hugging Face hub (with a network connection, or downloaded before), a folder "
            "with a tokenizer.json, or make one with `hgrn tokenizer train`"
        ) from error


def missing_local_tokenizer(name: str) -> str | None:
    """What is wrong with a tokenizer's name or path, without loading it; None if nothing is."""
    if not name.strip():
        return 'tokenizer is empty; give "bytes", a name or a path'
    is_path = name.startswith(("/", "./", "../", "~")) or name.endswith(".json")
    try:
        exists = expanded(name).exists()
    except (OSError, ValueError) as error:  # too long, forbidden, ~ of nobody (a UserError)
        return f"tokenizer {name!r} cannot be looked up: {error}"
    if is_path and not exists:
        return (
            f"tokenizer {name!r} is a path that does not exist; "
            "`hgrn tokenizer train` makes a tokenizer"
        )
    return None


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE and saves it so that `AutoTokenizer` finds it.

    `<bos>` is 0, `<eos>` 1, `<pad>` 2. vocab_size counts these and the 256 bytes; a small text may
    give fewer tokens.

    Raises:
        UserError: vocab_size is below 259 or above 2 ** 24, or `out` holds files already.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size must be at least {smallest}, for 256 bytes and {len(SPECIAL_TOKENS)} "
            f"special tokens; got {vocab_size}"
        )
    # The trainer allocates the whole vocabulary before it reads anything.
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"vocab_size must be at most {LARGEST_VOCABULARY}; got {vocab_size}")
    out = Path(out)
    with reading(out, "give another name"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} exists and is not an empty folder; choose another folder for the tokenizer"
            )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = _with_special_tokens(backend)
    with whole_folder(out) as draft:
        tokenizer.save_pretrained(draft)
    return tokenizer


class StreamDecoder:
    """Turns ids into text as they arrive, and holds back incomplete characters.

    The pieces joined are `tokenizer.decode` of all ids without special tokens. To continue a
    prompt, push its ids first and drop what comes back: some tokenizers decode a first word
    differently.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        # Ids from the last complete character on, and some before it as context.
        self._ids: list[int] = []
        # The part of their text that has been returned.
        self._shown = ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete, perhaps empty."""
        ids = list(ids)
        self._ids += ids
        text = self._decode(self._ids)
        complete = text.rstrip(INCOMPLETE)
        fresh = complete[len(self._shown) :]
        if complete == text and fresh:
            # Some decoders treat the first token of a text specially: the newest ids stay as
            # context.
            self._ids = ids
            self._shown = self._decode(ids)
        else:
            self._shown += fresh
        return fresh

    def finish(self) -> str:
        """What was held back; bytes that never became a character are U+FFFD."""
        rest = self._decode(self._ids)[len(self._shown) :]
        self._ids = []
        self._shown = ""
        return rest

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cast(str, text)  # a list only for a list of lists


def _with_special_tokens(backend) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _byte_level_symbols() -> list[str]:
    """The character that stands for each byte in a ByteLevel model.

    Printable Latin-1 stands for itself; the others take U+0100 and up, in byte order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
