"""One training step: against its matrix products alone, and in tokens a second against other models of equal size."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hgrn.bench.measure import Tell, round_robin
from hgrn.bench.models import KINDS, SIZES, LanguageModel, build, hgrn_model
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import ScanCase, check
from hgrn.ops.linear_maps import product

# Width, depth, time steps and batch of the models that are compared with their own matrix products.
_MODELS = ((512, 6, 512, 8), (128, 4, 512, 8))
_QUICK_MODELS = ((128, 2, 128, 2),)


class MatrixProducts:
    """The matrix products of a training step of `model` on `tokens` tokens, and nothing else.

    For every linear map forward, and for the gradients of its input and its weight, by the libraries that the model calls, into
    memory that is already mapped.
    """

    def __init__(self, model: nn.Module, tokens: int):
        self._weights = [
            module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)
        ]
        widths = {width for weight in self._weights for width in weight.shape}
        self._rows = {width: torch.randn(tokens, width) for width in widths}
        self._gradients = [torch.empty_like(weight) for weight in self._weights]
        self.flops = 6 * tokens * sum(weight.numel() for weight in self._weights)

    def __call__(self) -> None:
        for weight in self._weights:
            out, inner = weight.shape
            product(self._rows[inner], weight)
        for weight, gradient in zip(reversed(self._weights), reversed(self._gradients)):
            out, inner = weight.shape
            product(self._rows[out], weight.T)
            torch.mm(self._rows[out].T, self._rows[inner], out=gradient)


def training_step(model: LanguageModel, batch: int, steps: int) -> Callable[[], Tensor]:
    """Forward, backward, clipping and fused AdamW on one random batch `[batch, steps]`, as `hgrn train` does it."""
    ids = torch.randint(256, (batch, steps + 1), generator=torch.Generator().manual_seed(0))
    inputs = ids[:, :-1].contiguous()
    labels = ids[:, 1:].contiguous()
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> Tensor:
        loss = model.loss(inputs, labels)
        loss.backward()
        norm = get_total_norm([parameter.grad for parameter in parameters])
        clip_grads_with_norm_(parameters, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Raises UserError if the scan of the models disagrees with the reference."""
    rows = []
    for width, depth, steps, batch in _QUICK_MODELS if quick else _MODELS:
        rows += _against_products(width, depth, steps, batch, 3 if quick else 15, tell)
    for size in ("tiny",) if quick else ("5M", "30M"):
        steps, batch = (128, 2) if quick else (512, 4)
        rows += _against_peers(size, steps, batch, 2 if quick else 7, 2 if quick else 60, tell)
    return rows


def _against_products(
    width: int, depth: int, steps: int, batch: int, repeats: int, tell: Tell
) -> list[Row]:
    check(ScanCase("hgru_scan", True, True), (batch, steps, width), torch.float32)
    model = hgrn_model(width, depth)
    products = MatrixProducts(model, batch * steps)
    functions = {"step": training_step(model, batch, steps), "products": products}
    label = f"D={width}, {depth} layers, T={steps}, B={batch}"
    times = round_robin(functions, repeats, on_call=tell(f"train {label}"))
    cells = {"shape": label, "flops": products.flops}
    limit = times["products"].median
    note = f"limit: its matrix products alone; the step takes {times['step'].median / limit:.2f} of their time"
    rate = f"{products.flops / limit / 1e6:.0f} GFLOP/s"
    return [
        Row.timed(
            times["step"],
            name="training step",
            limit_ms=limit,
            parameters=model.size,
            note=note,
            tokens_per_s=1e3 * batch * steps / times["step"].median,
            **cells,
        ),
        Row.timed(
            times["products"],
            name="matrix products of the step",
            peer="torch",
            kind="kernel",
            note=rate,
            **cells,
        ),
    ]


def _against_peers(
    size: str, steps: int, batch: int, repeats: int, cap_s: float, tell: Tell
) -> list[Row]:
    check(ScanCase("hgru_scan", True, True), (batch, steps, SIZES[size]["HGRN"][0]), torch.float32)
    models = {name: build(name, size, steps) for name in SIZES[size]}
    functions = {name: training_step(model, batch, steps) for name, model in models.items()}
    times = round_robin(functions, repeats, cap_s=cap_s, on_call=tell(f"train peers {size}"))
    return [
        Row.timed(
            times[name],
            name="training step, equal size",
            peer=name,
            shape=f"{size}, T={steps}, B={batch}",
            parameters=model.size,
            tokens_per_s=1e3 * batch * steps / times[name].median,
            note="; ".join(filter(None, (_dimensions(size, name), KINDS[name].note()))),
        )
        for name, model in models.items()
    ]


def _dimensions(size: str, name: str) -> str:
    width, depth = SIZES[size][name]
    return f"D={width}, {depth} layers"
