"""Using a saved model: load it with what belongs to it, write text with it as it is made, name what is in an image."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hgrn.errors import UserError
from hgrn.training.checkpointing import find_checkpoint, without_bars
from hgrn.untrusted import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hgrn.models import HGRNForCausalLM, HGRNForImageClassification, HGRNImageProcessor
    from hgrn.models.classification import Classifier


def load(path: str | Path, *, int8: bool = False) -> tuple["HGRNForCausalLM", "PreTrainedTokenizerFast", Path]:
    """The language model and tokenizer in `path` (a run folder, a checkpoint or a saved model), and the folder they are in.

    With int8 the weights of its linear maps are rounded to 8 bits (`hgrn.modules.quantize_int8`).

    Raises UserError for whatever is there instead, and for weights that are not finite.
    """
    from hgrn.data.tokenizer import load_tokenizer
    from hgrn.models import HGRNForCausalLM

    folder = find_checkpoint(Path(path))
    model = _load_model(folder, lambda _: HGRNForCausalLM, int8)
    return model, load_tokenizer(str(folder)), folder


def load_classifier(path: str | Path, *, int8: bool = False) -> tuple["Classifier", "HGRNImageProcessor | None", Path]:
    """The classifier in `path`, its image processor if it has one, and the folder they are in; as `load`."""
    from hgrn import models

    def kind(saved_as: str) -> type:
        if "Classification" not in saved_as or not hasattr(models, saved_as):
            raise ValueError(f"it is a {saved_as or 'model without a name'}, and a classifier is needed")
        return getattr(models, saved_as)

    folder = find_checkpoint(Path(path))
    model = _load_model(folder, kind, int8)
    settings = folder / "preprocessor_config.json"
    if not settings.is_file():
        return model, None, folder
    try:
        return model, models.HGRNImageProcessor.from_dict(read_json(settings)), folder
    except ValueError as error:
        raise UserError(f"{settings} does not describe an image processor of these models: {error}") from error


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
            raise ValueError(f"architectures in its config.json must be a list of names, got {named!r}")
        saved_as = named[0]
        with without_bars():
            model, report = kind(saved_as).from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} does not hold a model that can be loaded: {error}") from error
    unfit = {kind: names for kind, names in report.items() if names and kind.endswith("_keys")}
    if unfit:
        raise UserError(
            f"{folder}: the weights do not fit the model that its config.json describes; "
            + "; ".join(f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}" for kind, names in unfit.items())
        )
    wrong = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if wrong:
        raise UserError(f"{folder}: {', '.join(wrong[:3])} hold NaN or infinity; use an earlier checkpoint")
    if int8:
        quantize_int8(model)
    return model.eval()


def read_image(path: Path, channels: int) -> torch.Tensor:
    """An image file as uint8 [channels, H, W]. Raises UserError for a file that is none, or not whole."""
    from hgrn.data.images.decoding import decode
    from hgrn.data.images.source import CorruptImage

    try:
        return decode(path.read_bytes(), str(path), channels)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except CorruptImage as error:
        raise UserError(str(error)) from error


@torch.no_grad()
def classify(model: "HGRNForImageClassification", processor: "HGRNImageProcessor", image: torch.Tensor) -> list[tuple[str, float]]:
    """Every class of a model and its probability for an image uint8 [C, H, W], the likeliest first."""
    inputs = processor(image, input_data_format="channels_first", return_tensors="pt")
    shares = model(**inputs).logits[0].float().softmax(0)
    return [(model.config.id2label[index], shares[index].item()) for index in shares.argsort(descending=True).tolist()]


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", prompt: str, vocab_size: int) -> torch.Tensor:
    """The prompt's ids `[1, T]`. Raises UserError for an empty prompt or text that the vocabulary does not hold."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("the prompt is empty: give at least one character to go on from")
    strange = [i for i in ids if i >= vocab_size or (i == tokenizer.unk_token_id and i is not None)]
    if strange:
        raise UserError(f"the prompt {prompt!r} has {len(strange)} token(s) outside of the model's vocabulary; reword it")
    return torch.tensor([ids])


class _Pieces:
    """What `generate` of transformers calls a streamer: gets ids as they are made, hands on complete characters."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", write: Callable[[str], None]):
        from hgrn.data.tokenizer import StreamDecoder

        self._decoder, self._write, self._is_prompt = StreamDecoder(tokenizer), write, True

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
    Raises UserError as `encode_prompt`, and for a temperature below 0.
    """
    from transformers import GenerationConfig

    if temperature < 0:
        raise UserError(f"temperature must be at least 0, got {temperature:g}; 0 takes the likeliest token, 1 samples")
    ids = encode_prompt(tokenizer, prompt, model.config.vocab_size)
    if seed is not None:
        torch.manual_seed(seed)
    sampling = {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 1.0} if temperature else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature > 0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **sampling,
    )  # fmt: skip
    write(prompt)
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=_Pieces(tokenizer, write))
    except (ValueError, TypeError) as error:  # what is not set here comes from the model's generation_config.json
        raise UserError(f"the model's settings of generation cannot be used: {error}") from error
