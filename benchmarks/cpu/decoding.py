"""One token after the other: against reading the weights once, and a Transformer with its cache."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.cpu.models import BYTES, parameters, transformer
from benchmarks.parts import Part
from benchmarks.rows import Row
from benchmarks.scan_cases import ScanCase, check, refuse_if_wrong
from hgrn import ops
from hgrn.cli.speed import Times, round_robin
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import quantize_int8
from hgrn.progress import OnProgress

# How weights are stored -> makes of the float32 model one that steps with such weights.
FORMATS: dict[str, Callable[[nn.Module], Any]] = {
    "float32": lambda model: model,
    "int8": lambda model: quantize_int8(copy.deepcopy(model)),
}
_CONTEXTS = (128, 512, 2048, 4096)
_QUICK_CONTEXTS = (128, 512)
_GENERATED = 16  # tokens of one call of generate


def weight_bytes(model: nn.Module) -> int:
    """What a step must read: every parameter and buffer once, but only a row of an embedding table.

    A table that is the output's matrix too is read whole, as that matrix.
    """
    modules = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    tensors = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return sum(tensor.nbytes for tensor in tensors.values())


def hgrn_step(model: nn.Module, cache: Any = None) -> Callable[[], Tensor]:
    """A step of a causal language model after `cache`; by default after a single token."""
    ids = torch.full((1, 1), 65)
    if cache is None:
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values

    @torch.no_grad()
    def step() -> Tensor:
        return model(input_ids=ids, past_key_values=cache, use_cache=True).logits

    return step


def transformer_step(model: Any, context: int) -> Callable[[], Tensor]:
    """A step behind `context` tokens with random keys and values; every call finds as many."""
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
        self._calls = []
        for module in model.modules():
            if isinstance(module, nn.Linear):
                weight = module.weight.detach()
                out = torch.empty(1, weight.shape[0])
                vector = torch.randn(1, weight.shape[1])
                self._calls.append(partial(torch.mm, vector, weight.T, out=out))

    def __call__(self) -> None:
        for call in self._calls:
            call()


def check_int8(width: int) -> None:
    """Raise UserError if 8-bit products differ from those of the numbers that they stand for."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, width, generator=generator)
    weight = torch.randn(2 * width, width, generator=generator)
    weight, scale = ops.quantize_rows(weight)
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T
    refuse_if_wrong("int8_linear", torch.float32, ops.int8_linear(x, weight, scale), expected)


def _check_step(name: str, model: Any) -> None:
    """Raise UserError if a compiled step differs from the modules of the model."""
    expected = hgrn_step(model)()
    with model.stepping():
        found = hgrn_step(model)()
    refuse_if_wrong(f"a step with weights in {name}", torch.float32, found, expected)


def parts(quick: bool) -> list[Part]:
    """One part, because everything is compared with everything."""
    size = "3.4M" if quick else "150M"

    def owns(row: Row) -> bool:
        return row.shape.partition(",")[0] == size

    return [Part(f"decode {size}", owns, partial(_measure, quick, size))]


def _measure(quick: bool, size: str, tell: OnProgress) -> list[Row]:
    torch.manual_seed(0)
    if quick:
        config = HGRNConfig(vocab_size=BYTES, hidden_size=256, num_hidden_layers=4)
        other = transformer(256, 4, 1024).eval()
    else:
        config = HGRNConfig.preset("lm-150m", eos_token_id=None)
        other = transformer(config.hidden_size, 14, 8192, config.vocab_size).eval()
    contexts = _QUICK_CONTEXTS if quick else _CONTEXTS
    check(ScanCase("hgru_scan", True, False), (1, 1, config.hidden_size), torch.float32)
    check_int8(config.hidden_size)
    model = HGRNForCausalLM(config).eval()
    models = {name: convert(model) for name, convert in FORMATS.items()}
    for name, stored in models.items():
        _check_step(name, stored)
    # As many bytes as the weights: reading them is the limit of a step.
    source = torch.ones(weight_bytes(model) // 4)

    functions: dict[object, Callable[[], object]] = {
        "read": source.sum,
        "products": WeightProducts(model),
    }
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
    functions |= {context: transformer_step(other, context) for context in contexts}
    # Both models step by their compiled programs while everything is timed in turn.
    with ExitStack() as inside:
        for stored in models.values():
            inside.enter_context(stored.stepping())
        times = round_robin(functions, 5 if quick else 30, on_call=tell)

    read = times["read"]
    rows = [
        Row.timed(
            read,
            name="read as many bytes: torch.sum",
            peer="torch",
            shape=size,
            kind="kernel",
            bytes=source.nbytes,
            note=f"{source.nbytes / read.median / 1e6:.1f} GB/s",
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
        cells = {"peer": "HGRN", "shape": size, "dtype": name, "parameters": parameters(model)}
        generate = times["generate", name].over(_GENERATED)
        rows += _rows_of_ours(
            times["step", name], generate, weight_bytes(stored), read.median / source.nbytes, cells
        )
    for context in contexts:
        rows.append(
            Row.timed(
                times[context],
                name="decode step",
                peer="Transformer",
                shape=f"{size}, context {context}",
                parameters=parameters(other),
                tokens_per_s=1e3 / times[context].median,
                note="transformers GPT-2, SDPA, DynamicCache",
            )
        )
    return rows


def _rows_of_ours(
    step: Times, generate: Times, amount: int, ms_per_byte: float, cells: dict[str, Any]
) -> list[Row]:
    """A step against reading its `amount` bytes of weights, and a token of `generate`."""
    beside = generate.median - step.median
    return [
        Row.timed(
            step,
            name="decode step",
            bytes=amount,
            limit_ms=amount * ms_per_byte,
            tokens_per_s=1e3 / step.median,
            note="limit: reading the weights once",
            **cells,
        ),
        Row.timed(
            generate,
            name="generate, a token",
            tokens_per_s=1e3 / generate.median,
            note=f"{beside:.2f} ms of it is not the model's step",
            **cells,
        ),
    ]
