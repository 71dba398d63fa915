"""Use a saved model: load it with its tokenizer or image processor, continue a text, classify an
image."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hgrn.errors import UserError
from hgrn.progress import without_bars
from hgrn.untrusted import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hgrn.models import HGRNForCausalLM, HGRNForImageClassification, HGRNImageProcessor
    from hgrn.models.classification import Classifier

# A folder without any of these files has no tokenizer.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")

# Logits over a temperature below this could leave the range of float32.
_LOWEST_TEMPERATURE = 1e-6
_LARGEST_SEED = 2**64 - 1  # that torch.manual_seed takes


def load(
    folder: Path, *, int8: bool = False, tokenizer: str | None = None
) -> tuple["HGRNForCausalLM", "PreTrainedTokenizerFast"]:
    """The language model and the tokenizer in a folder that `find_checkpoint` has found.

    int8: round the weights of its linear maps to 8 bits (`hgrn.modules.quantize_int8`). tokenizer:
    what `load_tokenizer` takes, for a model that was saved without one; None takes the one that is
    saved with the model.

    Raises UserError if the folder holds something else, if weights are not finite, and if there is
    no tokenizer.
    """
    from hgrn.data.tokenizer import load_tokenizer
    from hgrn.models import HGRNForCausalLM

    model = _load_model(folder, lambda _: HGRNForCausalLM, int8)
    if tokenizer is None and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer: say with --tokenizer which one the model was trained with "
            "(bytes, the name of one on the Hugging Face hub, or the path of a folder or "
            "tokenizer.json)"
        )
    return model, load_tokenizer(tokenizer or str(folder))


def load_classifier(
    folder: Path, *, int8: bool = False
) -> tuple["Classifier", "HGRNImageProcessor | None"]:
    """The classifier in a folder that `find_checkpoint` has found, and its image processor if it
    has one.

    int8 and errors are those of `load`.
    """
    from hgrn import models

    def kind(saved_as: str) -> type:
        if "Classification" not in saved_as or not hasattr(models, saved_as):
            raise ValueError(
                f"it is a {saved_as or 'model without a name'}, and a classifier is needed"
            )
        return getattr(models, saved_as)

    model = _load_model(folder, kind, int8)
    settings = folder / "preprocessor_config.json"
    if not settings.is_file():
        return model, None
    try:
        return model, models.HGRNImageProcessor.from_dict(read_json(settings))
    except ValueError as error:
        raise UserError(
            f"{settings} does not describe an image processor of these models: {error}"
        ) from error


def _load_model(folder: Path, kind: Callable[[str], Any], int8: bool) -> Any:
    """The model saved in a folder, ready for use; `kind` gives its class for the saved name."""
    from safetensors import SafetensorError

    from hgrn.models import HGRNConfig
    from hgrn.modules import quantize_int8

    try:
        config = HGRNConfig.get_config_dict(folder)[0]
        if (found := config.get("model_type")) != "hgrn":
            raise ValueError(f"its config.json describes a model of type {found!r}, not 'hgrn'")
        named = config.get("architectures") or [""]
        if not isinstance(named, list) or not isinstance(named[0], str):
            raise ValueError(
                f"architectures in its config.json must be a list of names, got {named!r}"
            )
        saved_as = named[0]
        with without_bars():
            model, report = kind(saved_as).from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} does not hold a model that can be loaded: {error}") from error

    # transformers makes up weights that are missing; a trained model has none of those.
    unfit = [
        f"{what.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}"
        for what, names in report.items()
        if names and what.endswith("_keys")
    ]
    if unfit:
        raise UserError(
            f"{folder}: the weights do not fit the model that its config.json describes; "
            f"{'; '.join(unfit)}"
        )
    wrong = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if wrong:
        raise UserError(
            f"{folder}: {', '.join(wrong[:3])} hold NaN or infinity; use an earlier checkpoint"
        )
    if int8:
        quantize_int8(model)
    return model.eval()


def read_image(path: Path, channels: int) -> torch.Tensor:
    """The image in a file, uint8 `[channels, H, W]`. Raises UserError if it is none, or not whole."""
    from hgrn.data.images.decoding import decode
    from hgrn.data.images.source import CorruptImage

    grey = "the model was trained on grey images; make this one grey too"
    try:
        return decode(path.read_bytes(), str(path), channels, no_colour=grey)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except CorruptImage as error:
        raise UserError(str(error)) from error


@torch.no_grad()
def classify(
    model: "HGRNForImageClassification", processor: "HGRNImageProcessor", image: torch.Tensor
) -> list[tuple[str, float]]:
    """Every class of a model and its probability for an image, the likeliest first.

    image: uint8 `[C, H, W]`, of any height and width.
    """
    inputs = processor(image, input_data_format="channels_first", return_tensors="pt")
    shares = model(**inputs).logits[0].float().softmax(0)
    return [
        (model.config.id2label[index], shares[index].item())
        for index in shares.argsort(descending=True).tolist()
    ]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerFast", prompt: str, vocab_size: int
) -> torch.Tensor:
    """The ids of a prompt, `[1, T]`.

    A byte-level model gets bytes that are not UTF-8 as they are; Python keeps them in `sys.argv` as
    surrogate escapes. Raises UserError if the prompt is empty, is no text, or has characters that
    the vocabulary does not hold.
    """
    from hgrn.data.tokenizer import bytes_to_ids, is_byte_tokenizer

    try:
        raw = prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the prompt holds half of a surrogate pair at character {error.start}, which is no "
            "text"
        ) from None
    if is_byte_tokenizer(tokenizer):
        ids = bytes_to_ids(raw).tolist()
    else:
        try:
            ids = tokenizer(raw.decode("utf-8"), add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError as error:
            raise UserError(
                f"the prompt is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}), and "
                "the tokenizer of this model reads UTF-8 only: convert the prompt, for example with "
                "iconv"
            ) from None
    if not ids:
        raise UserError("the prompt is empty: give at least one character to go on from")
    strange = [i for i in ids if i >= vocab_size or (i == tokenizer.unk_token_id and i is not None)]
    if strange:
        raise UserError(
            f"the prompt {prompt!r} has {len(strange)} token(s) outside of the model's vocabulary; "
            "reword it"
        )
    return torch.tensor([ids], device="cpu")


def check_sampling(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> None:
    """Raise UserError for a number that `generate` cannot sample with."""
    if not (temperature == 0 or _LOWEST_TEMPERATURE <= temperature < math.inf):
        raise UserError(
            f"temperature must be at least 0 (0, or a finite number from {_LOWEST_TEMPERATURE:g}), "
            f"got {temperature:g}; 0 takes the likeliest token, 1 samples as the model says"
        )
    if top_k is not None and top_k < 1:
        raise UserError(
            f"top_k must be at least 1, got {top_k}; leave it out to sample from all tokens"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(
            f"top_p must be above 0 and at most 1, got {top_p:g}; leave it out to sample from all "
            "tokens"
        )
    if seed is not None and not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed must be from 0 to 2**64 - 1, got {seed}")


class _Pieces:
    """A streamer of transformers: takes ids as they are made, hands on complete characters."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", write: Callable[[str], None]):
        from hgrn.data.tokenizer import StreamDecoder

        self._decoder = StreamDecoder(tokenizer)
        self._write = write
        self._is_prompt = True

    def put(self, ids: torch.Tensor) -> None:
        # The first call brings the prompt, which is written already.
        if self._is_prompt:
            self._is_prompt = False
        else:
            self._write(self._decoder.push(ids.flatten().tolist()))

    def end(self) -> None:
        self._write(self._decoder.finish())


def generate(
    model: "HGRNForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    prompt: str,
    write: Callable[[str], None],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> None:
    """Call `write` with the prompt, then with each piece of its continuation as it is made.

    temperature 0 takes the likeliest token every time; top_k and top_p sample from the likeliest
    tokens only. Raises UserError as `encode_prompt` and `check_sampling` do.
    """
    from transformers import GenerationConfig

    check_sampling(temperature, top_k, top_p, seed)
    ids = encode_prompt(tokenizer, prompt, model.config.vocab_size)
    if seed is not None:
        torch.manual_seed(seed)
    sampling = (
        {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 1.0}
        if temperature
        else {}
    )
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    write(prompt)
    try:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=_Pieces(tokenizer, write),
        )
    except (ValueError, TypeError) as error:
        # Settings that are not made here come from the model's generation_config.json.
        raise UserError(f"the model's settings of generation cannot be used: {error}") from error
