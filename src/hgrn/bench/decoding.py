"""One token after the other: against the time to read the weights once, and a Transformer with its cache."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hgrn.bench.measure import Tell, round_robin
from hgrn.bench.models import BYTES, transformer
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import ScanCase, check, refuse_if_wrong


def _int8(model: nn.Module) -> nn.Module:
    from hgrn.modules import quantize_int8

    return quantize_int8(copy.deepcopy(model))


# How the weights of our model may be stored: name -> what makes of the float32 model one that steps with such weights.
FORMATS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "int8": _int8,
}
_CONTEXTS = (128, 512, 2048, 4096)
_QUICK_CONTEXTS = (128, 512)
_GENERATED = 16  # tokens of one call of generate


def weight_bytes(model: nn.Module) -> int:
    """What a step has to read: every parameter and buffer once, but of a table of embeddings only a row.

    A table that is the output's matrix too is read as that.
    """
    modules = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    tensors = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return sum(tensor.nbytes for tensor in tensors.values())


def hgrn_step(model: nn.Module, cache: Any = None) -> Callable[[], Tensor]:
    """A step of a causal language model that goes on from a cache, by default one that has seen a single token."""
    ids = torch.full((1, 1), 65)
    if cache is None:
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values

    @torch.no_grad()
    def step() -> Tensor:
        return model(input_ids=ids, past_key_values=cache, use_cache=True).logits

    return step


def transformer_step(model: nn.Module, context: int) -> Callable[[], Tensor]:
    """A step behind `context` tokens, whose keys and values are random; they are the same number before every call."""
    from transformers import DynamicCache

    ids = torch.full((1, 1), 65)
    config = model.config
    cache = DynamicCache(config=config)
    shape = (1, config.n_head, context, config.n_embd // config.n_head)
    for layer in range(config.n_layer):
        cache.update(torch.randn(shape), torch.randn(shape), layer)

    @torch.no_grad()
    def step() -> Tensor:
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        cache.crop(-1)  # takes the newest token away again
        return logits

    return step


class WeightProducts:
    """The products of one vector with every linear map of a model: all that a step must compute."""

    def __init__(self, model: nn.Module):
        weights = [
            module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)
        ]
        self._calls = [
            partial(
                torch.mm,
                torch.randn(1, weight.shape[1]),
                weight.T,
                out=torch.empty(1, weight.shape[0]),
            )
            for weight in weights
        ]

    def __call__(self) -> None:
        for call in self._calls:
            call()


def _check_int8(width: int) -> None:
    """Raises UserError if a product with 8-bit weights is not that of the numbers that they stand for."""
    from hgrn.ops import int8_linear, quantize_rows

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, width, generator=generator)
    weight = torch.randn(2 * width, width, generator=generator)
    weight, scale = quantize_rows(weight)
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T
    refuse_if_wrong("int8_linear", torch.float32, int8_linear(x, weight, scale), expected)


def _check_step(name: str, model: nn.Module) -> None:
    """Raises UserError if a compiled step is not what the modules of the model compute."""
    expected = hgrn_step(model)()
    expected = hgrn_step(model)()
    with model.stepping():
        found = hgrn_step(model)()
    refuse_if_wrong(f"a step with weights in {name}", torch.float32, found, expected)


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Raises UserError if a kernel of the model disagrees with the reference."""
    from hgrn.models import HGRNConfig, HGRNForCausalLM

    torch.manual_seed(0)
    if quick:
        size = "3.4M"
        config = HGRNConfig(vocab_size=BYTES, hidden_size=256, num_hidden_layers=4)
        other = transformer(256, 4, 1024, BYTES)
    else:
        size = "150M"
        config = HGRNConfig.preset("lm-150m", eos_token_id=None)
        other = transformer(config.hidden_size, 14, 8192, config.vocab_size)
    check(ScanCase("hgru_scan", True, False), (1, 1, config.hidden_size), torch.float32)
    _check_int8(config.hidden_size)
    model = HGRNForCausalLM(config).eval()
    other = other.eval()
    models = {name: convert(model) for name, convert in FORMATS.items()}
    for name, stored in models.items():
        _check_step(name, stored)
    source = torch.ones(weight_bytes(model) // 4)

    functions = {"read": source.sum, "products": WeightProducts(model)}
    for name, stored in models.items():
        functions["step", name] = hgrn_step(stored)
        functions["generate", name] = partial(
            stored.generate,
            torch.full((1, 1), 65),
            max_new_tokens=_GENERATED,
            min_new_tokens=_GENERATED,
            do_sample=False,
            pad_token_id=0,
        )
    contexts = _QUICK_CONTEXTS if quick else _CONTEXTS
    functions |= {context: transformer_step(other, context) for context in contexts}
    with contextlib.ExitStack() as inside:
        for stored in models.values():
            inside.enter_context(stored.stepping())
        times = round_robin(functions, 5 if quick else 30, on_call=tell(f"decode {size}"))

    read = times["read"].median
    rows = [
        Row.timed(
            times["read"],
            name="read as many bytes: torch.sum",
            peer="torch",
            shape=size,
            kind="kernel",
            bytes=source.nbytes,
            note=f"{source.nbytes / read / 1e6:.1f} GB/s",
        ),
        Row.timed(
            times["products"],
            name="the products of one vector with all weights",
            peer="torch",
            shape=size,
            kind="kernel",
        ),
    ]
    for name, stored in models.items():
        amount = weight_bytes(stored)
        cells = {"peer": "HGRN", "shape": size, "dtype": name, "parameters": model.num_parameters()}
        limit = read * amount / source.nbytes
        step = times["step", name]
        generate = times["generate", name].over(_GENERATED)
        rows.append(
            Row.timed(
                step,
                name="decode step",
                bytes=amount,
                limit_ms=limit,
                tokens_per_s=1e3 / step.median,
                note="limit: reading the weights once",
                **cells,
            )
        )
        rows.append(
            Row.timed(
                generate,
                name="generate, a token",
                tokens_per_s=1e3 / generate.median,
                note=f"{generate.median - step.median:.2f} ms of it is not the model's step",
                **cells,
            )
        )
    for context in contexts:
        rows.append(
            Row.timed(
                times[context],
                name="decode step",
                peer="Transformer",
                shape=f"{size}, context {context}",
                parameters=other.num_parameters(),
                tokens_per_s=1e3 / times[context].median,
                note="transformers GPT-2, SDPA, DynamicCache",
            )
        )
    return rows
