"""HGRN2: a training step against its own matrix products, and a decoding step against memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.cpu.decoding import hgrn_step, weight_bytes
from benchmarks.cpu.models import BYTES, parameters
from benchmarks.cpu.training import MatrixProducts, training_step
from benchmarks.parts import Part
from benchmarks.rows import Row
from benchmarks.scan_cases import refuse_if_wrong
from hgrn.cli.speed import round_robin
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.ops import gla_scan
from hgrn.progress import OnProgress

_CHUNK = 64
# Width, depth, time steps, batch and head size.
_TRAINED = (512, 6, 512, 8, 64)
_QUICK = (128, 2, 128, 2, 64)


class ChunkedProducts:
    """The matrix products of one layer's recurrence in chunks of 64, forward and backward.

    In each chunk and head: queries with keys, these weights with values, queries with the state,
    keys with values; and backward two products for each of them.
    """

    def __init__(self, width: int, tokens: int, head_dim: int):
        chunks = tokens * (width // head_dim) // _CHUNK
        self._rows = torch.randn(chunks, _CHUNK, head_dim)
        self._weights = torch.randn(chunks, _CHUNK, _CHUNK)
        self._states = torch.randn(chunks, head_dim, head_dim)
        self.flops = 3 * 4 * 2 * chunks * _CHUNK * head_dim * max(_CHUNK, head_dim)

    def __call__(self) -> None:
        for _ in range(3):
            torch.bmm(self._rows, self._rows.mT)
            torch.bmm(self._weights, self._rows)
            torch.bmm(self._rows, self._states)
            torch.bmm(self._rows.mT, self._rows)


def parts(quick: bool) -> list[Part]:
    """A training step, and a decoding step."""
    sizes = _QUICK if quick else _TRAINED
    size = "3.4M" if quick else "150M"
    return [
        _training(*sizes, repeats=3 if quick else 15),
        Part(
            f"decode {size}, HGRN2",
            lambda row: row.shape == f"{size}, HGRN2",
            partial(_decoding, quick, f"{size}, HGRN2"),
        ),
    ]


def _model(config: HGRNConfig) -> HGRNForCausalLM:
    torch.manual_seed(0)
    return HGRNForCausalLM(config)


def _check(head_dim: int) -> None:
    """Raise UserError if the scan differs from the float64 reference."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 130, 2, head_dim, generator=generator) for _ in range(3))
    log_f = torch.nn.functional.logsigmoid(torch.randn(q.shape, generator=generator))
    expected, _ = gla_scan(*(x.double() for x in (q, k, v, log_f)), engine="reference")
    refuse_if_wrong("gla_scan", torch.float32, gla_scan(q, k, v, log_f)[0], expected)


def _training(width: int, depth: int, steps: int, batch: int, head_dim: int, repeats: int) -> Part:
    where = f"HGRN2, D={width}, {depth} layers, T={steps}, B={batch}, heads of {head_dim}"

    def measure(tell: OnProgress) -> list[Row]:
        _check(head_dim)
        config = HGRNConfig(
            vocab_size=BYTES,
            hidden_size=width,
            num_hidden_layers=depth,
            mixer="hgrn2",
            mixer_options={"head_dim": head_dim},
        )
        model = _model(config)
        products = MatrixProducts(model, batch * steps)
        chunked = ChunkedProducts(width, batch * steps, head_dim)

        def bare() -> None:
            products()
            for _ in range(depth):
                chunked()

        functions: dict[Any, Callable[[], object]] = {
            "step": training_step(model, batch, steps),
            "products": bare,
        }
        times = round_robin(functions, repeats, on_call=tell)
        limit = times["products"].median
        share = times["step"].median / limit
        flops = products.flops + depth * chunked.flops
        return [
            Row.timed(
                times["step"],
                name="training step",
                peer="HGRN2",
                shape=where,
                limit_ms=limit,
                flops=flops,
                parameters=parameters(model),
                note="limit: its matrix products alone, the recurrence in chunks of 64 among them; "
                f"the step takes {share:.2f} of their time",
                tokens_per_s=1e3 * batch * steps / times["step"].median,
            ),
            Row.timed(
                times["products"],
                name="matrix products of the step",
                peer="torch",
                shape=where,
                kind="kernel",
                flops=flops,
                note=f"{flops / limit / 1e6:.0f} GFLOP/s",
            ),
        ]

    return Part(f"train {where}", lambda row: row.shape == where, measure)


def state_bytes(model: HGRNForCausalLM) -> int:
    """What a step must read of the state of one sequence."""
    return sum(part.nbytes for layer in model.model.initial_state(1) for part in layer)


def _decoding(quick: bool, where: str, tell: OnProgress) -> list[Row]:
    options: dict[str, Any] = {"mixer": "hgrn2", "norm_type": "rms"}
    if quick:
        config = HGRNConfig(vocab_size=BYTES, hidden_size=256, num_hidden_layers=4, **options)
    else:
        config = HGRNConfig.preset("lm-150m", eos_token_id=None, **options)
    _check(64)
    model = _model(config).eval()
    expected = hgrn_step(model)()
    amount = weight_bytes(model) + state_bytes(model)
    source = torch.ones(amount // 4)
    step = hgrn_step(model)
    functions: dict[Any, Callable[[], object]] = {"read": source.sum, "step": step}
    with model.stepping():
        refuse_if_wrong("a step of HGRN2", torch.float32, step(), expected)
        times = round_robin(functions, 5 if quick else 30, on_call=tell)
    share = times["read"].median / times["step"].median
    return [
        Row.timed(
            times["step"],
            name="decode step",
            peer="HGRN2",
            shape=where,
            bytes=amount,
            limit_ms=times["read"].median,
            parameters=parameters(model),
            tokens_per_s=1e3 / times["step"].median,
            note="limit: reading weights and state once by torch.sum; "
            f"the step is {share:.2f} as fast",
        )
    ]
