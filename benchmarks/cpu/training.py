"""A training step: against its own matrix products, and against other models of equal size."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from benchmarks.cpu.models import KINDS, SIZES, build, hgrn_model, loss_of, parameters
from benchmarks.parts import Part
from benchmarks.rows import Row
from benchmarks.scan_cases import ScanCase, check
from hgrn.cli.speed import round_robin
from hgrn.ops.linear_maps import product
from hgrn.progress import OnProgress
from hgrn.training.optimizer import build_optimizer
from hgrn.training.recipe import load_recipe

# Width, depth, time steps and batch of the models that are compared with their own products.
_MODELS = ((512, 6, 512, 8), (128, 4, 512, 8))
_QUICK_MODELS = ((128, 2, 128, 2),)


class MatrixProducts:
    """The matrix products of a training step of `model` on `tokens` tokens, and nothing else.

    A call does, for every linear map, the product forward and those for the gradients of its input
    and of its weight. It calls the libraries that the model calls, on memory that is mapped.
    """

    def __init__(self, model: nn.Module, tokens: int):
        self._weights = [
            module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)
        ]
        # One matrix of activations for each width, shared by all maps.
        widths = {width for weight in self._weights for width in weight.shape}
        self._rows = {width: torch.randn(tokens, width) for width in widths}
        self._gradients = [torch.empty_like(weight) for weight in self._weights]
        self.flops = 6 * tokens * sum(weight.numel() for weight in self._weights)

    def __call__(self) -> None:
        for weight in self._weights:
            product(self._rows[weight.shape[1]], weight)
        # The order of a backward pass, so that caches hold what they would hold there.
        for weight, gradient in zip(reversed(self._weights), reversed(self._gradients)):
            out, inner = weight.shape
            product(self._rows[out], weight.T)
            torch.mm(self._rows[out].T, self._rows[inner], out=gradient)


def training_step(model: nn.Module, batch: int, steps: int) -> Callable[[], Tensor]:
    """A step of training as `hgrn train` takes it, on one random batch `[batch, steps]`.

    It is forward, backward, clipping and fused AdamW. The training loop itself cannot be called one
    step at a time, in turn with other models.
    """
    ids = torch.randint(256, (batch, steps + 1), generator=torch.Generator().manual_seed(0))
    inputs = ids[:, :-1].contiguous()
    labels = ids[:, 1:].contiguous()
    model.train()
    changes = {"optimizer.name": "adamw", "optimizer.lr": 1e-4, "optimizer.no_decay": "none"}
    optimizer = build_optimizer(model, load_recipe("quickstart", changes).optimizer)
    trained = list(model.parameters())

    def step() -> Tensor:
        loss = loss_of(model, inputs, labels)
        loss.backward()
        norm = get_total_norm([each.grad for each in trained if each.grad is not None])
        clip_grads_with_norm_(trained, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def parts(quick: bool) -> list[Part]:
    """A part for each model that is compared with its products, and for each size with peers."""
    if quick:
        products = [_against_products(*sizes, repeats=3) for sizes in _QUICK_MODELS]
        return [*products, _against_peers("tiny", 128, 2, repeats=2, cap_s=2)]
    products = [_against_products(*sizes, repeats=15) for sizes in _MODELS]
    return [*products, *(_against_peers(size, 512, 4, 7, 60) for size in ("5M", "30M"))]


def _against_products(width: int, depth: int, steps: int, batch: int, repeats: int) -> Part:
    where = f"D={width}, {depth} layers, T={steps}, B={batch}"

    def measure(tell: OnProgress) -> list[Row]:
        check(ScanCase("hgru_scan", True, True), (batch, steps, width), torch.float32)
        model = hgrn_model(width, depth)
        products = MatrixProducts(model, batch * steps)
        functions = {"step": training_step(model, batch, steps), "products": products}
        times = round_robin(functions, repeats, on_call=tell)
        limit = times["products"].median
        share = times["step"].median / limit
        cells: dict[str, Any] = {"shape": where, "flops": products.flops}
        step = Row.timed(
            times["step"],
            name="training step",
            limit_ms=limit,
            parameters=parameters(model),
            note=f"limit: its matrix products alone; the step takes {share:.2f} of their time",
            tokens_per_s=1e3 * batch * steps / times["step"].median,
            **cells,
        )
        alone = Row.timed(
            times["products"],
            name="matrix products of the step",
            peer="torch",
            kind="kernel",
            note=f"{products.flops / limit / 1e6:.0f} GFLOP/s",
            **cells,
        )
        return [step, alone]

    return Part(f"train {where}", lambda row: row.shape == where, measure)


def _against_peers(size: str, steps: int, batch: int, repeats: int, cap_s: float) -> Part:
    where = f"{size}, T={steps}, B={batch}"
    measure = partial(_measure_peers, size, steps, batch, repeats, cap_s, where)
    return Part(f"train {where}, with peers", lambda row: row.shape == where, measure)


def _measure_peers(
    size: str, steps: int, batch: int, repeats: int, cap_s: float, where: str, tell: OnProgress
) -> list[Row]:
    check(ScanCase("hgru_scan", True, True), (batch, steps, SIZES[size]["HGRN"][0]), torch.float32)
    models = {name: build(name, size, steps) for name in SIZES[size]}
    functions = {name: training_step(model, batch, steps) for name, model in models.items()}
    times = round_robin(functions, repeats, cap_s=cap_s, on_call=tell)
    rows = []
    for name, model in models.items():
        width, depth = SIZES[size][name]
        rows.append(
            Row.timed(
                times[name],
                name="training step, equal size",
                peer=name,
                shape=where,
                parameters=parameters(model),
                tokens_per_s=1e3 * batch * steps / times[name].median,
                note="; ".join(filter(None, (f"D={width}, {depth} layers", KINDS[name].note))),
            )
        )
    return rows
