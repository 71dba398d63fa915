"""What a token mixer costs: its state, a training step and a decoding step, at equal width."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.models import parameters
from benchmarks.parts import Part
from benchmarks.probes.models import Contestant, state_bytes
from benchmarks.probes.peers import FixedDecay, Mamba, MinGRU
from benchmarks.rows import Row
from benchmarks.scan_cases import refuse_if_wrong
from hgrn.cli.speed import round_robin
from hgrn.modules import HGRN, HGRU, HGRN2Mixer, Stepper
from hgrn.progress import OnProgress

# No convolutions but Mamba's own, so that the numbers are those of the mixers.
_MIXERS = (
    Contestant("hgrn-complex", "HGRN, complex", HGRU),
    Contestant("hgrn-real", "HGRN, real", HGRU, {"complex_state": False}),
    Contestant("hgrn2-64", "HGRN2, heads of 64", HGRN2Mixer, {"head_dim": 64}),
    Contestant("hgrn2-128", "HGRN2, heads of 128", HGRN2Mixer, {"head_dim": 128}),
    Contestant("fixed-decay-64", "fixed decay, heads of 64", FixedDecay, {"head_dim": 64}),
    Contestant("mamba", "Mamba", Mamba),
    Contestant("mingru", "minGRU", MinGRU),
)
_DEPTH = 2
_DECODED = 200  # positions


def parts(quick: bool) -> list[Part]:
    """One part, because all mixers are compared with each other."""
    width, steps, batch, repeats = (128, 32, 2, 2) if quick else (512, 512, 8, 9)
    where = f"D={width}, {_DEPTH} layers"
    measure = partial(_measure, width, steps, batch, repeats, where)
    return [Part(f"mixers {where}", lambda row: row.shape.startswith(where), measure)]


def training_step(stack: HGRN, batch: int, steps: int) -> Callable[[], None]:
    """Forward, backward and fused AdamW on random inputs `[batch, steps, D]`."""
    x = torch.randn(batch, steps, stack.dim)
    gradient = torch.randn_like(x)
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        stack(x)[0].backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding_steps(stack: HGRN) -> dict[str, Callable[[], Tensor]]:
    """One position of one sequence, by the modules, and by compiled steps if the mixer has them."""
    x = torch.randn(1, stack.dim)
    with torch.no_grad():
        first, state = stack(x[:, None])

    @torch.no_grad()
    def by_modules() -> Tensor:
        return stack(x[:, None], state)[0]

    try:
        stepper = Stepper(stack)
    except ValueError:
        return {"by its modules": by_modules}
    refuse_if_wrong("a compiled step", torch.float32, stepper(x), first[:, 0])
    return {"by its modules": by_modules, "compiled": lambda: stepper(x)}


def _measure(
    width: int, steps: int, batch: int, repeats: int, where: str, tell: OnProgress
) -> list[Row]:
    training: dict[tuple[str, str], Callable[[], object]] = {}
    decoding: dict[tuple[str, str], Callable[[], object]] = {}
    cells: dict[str, dict[str, Any]] = {}
    for each in _MIXERS:
        torch.manual_seed(0)
        # A stepper follows the weights of its stack, so the stack that is trained is another one.
        stack, trained = (
            HGRN(width, _DEPTH, mixer=each.mixer, **each.options).eval() for _ in range(2)
        )
        training["training step", each.label] = training_step(trained, batch, steps)
        for how, step in decoding_steps(stack).items():
            decoding[f"decode step, {how}", each.label] = step
        state = state_bytes(each.mixer(width, **each.options))
        cells[each.label] = {
            "parameters": parameters(stack),
            "note": f"a state of {state:,} bytes in each layer",
        }

    # The long and the short calls run apart: a training step would empty the caches of a decode
    # step.
    rows = []
    for functions, calls, shape in (
        (training, repeats, (batch, steps)),
        (decoding, _DECODED, (1, 1)),
    ):
        times = round_robin(functions, calls, warm_ups=2, on_call=tell)
        for (name, label), measured in times.items():
            rows.append(
                Row.timed(
                    measured,
                    name=name,
                    peer=label,
                    shape=f"{where}, B={shape[0]}, T={shape[1]}",
                    tokens_per_s=1e3 * shape[0] * shape[1] / measured.median,
                    **cells[label],
                )
            )
    return rows
