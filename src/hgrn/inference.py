"""Using a saved model: load it with what belongs to it, write text with it as it is made, name what is in an image."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hgrn.errors import UserError
from hgrn.progress import without_bars
from hgrn.training.manifests import find_checkpoint
from hgrn.untrusted import read_json

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "*.model",
)  # a folder without any of them has no tokenizer

# Logits over a temperature below this could leave the range of float32.
_LOWEST_TEMPERATURE = 1e-6
_LARGEST_SEED = 2**64 - 1  # of torch.manual_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hgrn.models import HGRNForCausalLM, HGRNForImageClassification, HGRNImageProcessor
    from hgrn.models.classification import Classifier


def load(
    path: str | Path, *, int8: bool = False, tokenizer: str | None = None
) -> tuple["HGRNForCausalLM", "PreTrainedTokenizerFast", Path]:
    """The language model and tokenizer in `path` (a run folder, a checkpoint or a saved model), and the folder they are in.

    With int8 the weights of its linear maps are rounded to 8 bits (`hgrn.modules.quantize_int8`). tokenizer: what
    `load_tokenizer` takes, for a model that was saved without one; None is the one that is saved with the model.

    Raises UserError for whatever is there instead, for weights that are not finite, and where there is no tokenizer.
    """
    from hgrn.data.tokenizer import load_tokenizer
    from hgrn.models import HGRNForCausalLM

    folder = find_checkpoint(Path(path))
    model = _load_model(folder, lambda _: HGRNForCausalLM, int8)
    if tokenizer is None and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer: say with --tokenizer which one the model was trained with (bytes, the name of one on "
            "the Hugging Face hub, or the path of a folder or tokenizer.json)"
        )
    return model, load_tokenizer(tokenizer or str(folder)), folder


def load_classifier(
    path: str | Path, *, int8: bool = False
) -> tuple["Classifier", "HGRNImageProcessor | None", Path]:
    """The classifier in `path`, its image processor if it has one, and the folder they are in; as `load`."""
    from hgrn import models

    def kind(saved_as: str) -> type:
        if "Classification" not in saved_as or not hasattr(models, saved_as):
            raise ValueError(
                f"it is a {saved_as or 'model without a name'}, and a classifier is needed"
            )
        return getattr(models, saved_as)

    folder = find_checkpoint(Path(path))
    model = _load_model(folder, kind, int8)
    settings = folder / "preprocessor_config.json"
    if not settings.is_file():
        return model, None, folder
    try:
        return model, models.HGRNImageProcessor.from_dict(read_json(settings)), folder
    except ValueError as error:
        raise UserError(
            f"{settings} does not describe an image processor of these models: {error}"
        ) from error


def _load_model(folder: Path, kind: Callable[[str], type], int8: bool):
    """The model saved in a folder, ready to be used; `kind` gives its class for the name that it was saved under."""
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
    unfit = {kind: names for kind, names in report.items() if names and kind.endswith("_keys")}
    if unfit:
        raise UserError(
            f"{folder}: the weights do not fit the model that its config.json describes; "
            + "; ".join(
                f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}"
                for kind, names in unfit.items()
            )
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
    """An image file as uint8 [channels, H, W]. Raises UserError for a file that is none, or not whole."""
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
    """Every class of a model and its probability for an image uint8 [C, H, W], the likeliest first."""
    inputs = processor(image, input_data_format="channels_first", return_tensors="pt")
    shares = model(**inputs).logits[0].float().softmax(0)
    return [
        (model.config.id2label[index], shares[index].item())
        for index in shares.argsort(descending=True).tolist()
    ]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerFast", prompt: str, vocab_size: int
) -> torch.Tensor:
    """The prompt's ids `[1, T]`. Bytes that are not UTF-8 (surrogate escapes, as in `sys.argv`) reach a byte-level model as they are.

    Raises UserError for an empty prompt, one that is no text, or text that the vocabulary does not hold.
    """
    from hgrn.data.tokenizer import bytes_to_ids, is_byte_tokenizer

    try:
        raw = prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the prompt holds half of a surrogate pair at character {error.start}, which is no text"
        ) from None
    if is_byte_tokenizer(tokenizer):
        ids = bytes_to_ids(raw).tolist()
    else:
        try:
            ids = tokenizer(raw.decode("utf-8"), add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError as error:
            raise UserError(
                f"the prompt is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}), and the tokenizer of this model "
                "reads UTF-8 only: convert the prompt, for example with iconv"
            ) from None
    if not ids:
        raise UserError("the prompt is empty: give at least one character to go on from")
    strange = [i for i in ids if i >= vocab_size or (i == tokenizer.unk_token_id and i is not None)]
    if strange:
        raise UserError(
            f"the prompt {prompt!r} has {len(strange)} token(s) outside of the model's vocabulary; reword it"
        )
    return torch.tensor([ids], device="cpu")


def check_sampling(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> None:
    """Raise UserError for a number that `generate` cannot follow."""
    if not (temperature == 0 or _LOWEST_TEMPERATURE <= temperature < math.inf):
        rule = f"must be at least 0 (0, or a finite number from {_LOWEST_TEMPERATURE:g})"
        raise UserError(
            f"temperature {rule}, got {temperature:g}; 0 takes the likeliest token, 1 samples as the model says"
        )
    if top_k is not None and top_k < 1:
        raise UserError(
            f"top_k must be at least 1, got {top_k}; leave it out to sample from all tokens"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(
            f"top_p must be above 0 and at most 1, got {top_p:g}; leave it out to sample from all tokens"
        )
    if seed is not None and not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed must be from 0 to 2**64 - 1, got {seed}")


class _Pieces:
    """What `generate` of transformers calls a streamer: gets ids as they are made, hands on complete characters."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", write: Callable[[str], None]):
        from hgrn.data.tokenizer import StreamDecoder

        self._decoder = StreamDecoder(tokenizer)
        self._write = write
        self._is_prompt = True

    def put(self, ids: torch.Tensor) -> None:
        if self._is_prompt:  # the first call brings the prompt back
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
    """Calls `write` with the prompt, then with each piece of its continuation as it is made.

    temperature 0 takes the likeliest token every time; top_k and top_p draw from the likeliest tokens only.
    Raises UserError as `encode_prompt` and `check_sampling`.
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
    except (
        ValueError,
        TypeError,
    ) as error:  # what is not set here comes from the model's generation_config.json
        raise UserError(f"the model's settings of generation cannot be used: {error}") from error
