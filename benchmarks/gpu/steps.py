"""Training steps and decoding steps of the models on a GPU."""

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import models
from benchmarks.gpu.models import FLA, GRADIENT, LOSS, TRANSFORMER, Size, refuse, relative
from benchmarks.gpu.session import OURS, Session
from benchmarks.rows import Row

STEP_TARGET = 1.3  # times the tokens a second of flash-linear-attention
# Seconds that a layer takes to be compiled, forward and backward: a guess, to keep to --minutes.
_COMPILES = 4
_UNCHECKED = "its check did not pass"


def targets(rows: list[Row], rehearse: bool) -> dict[str, tuple[float, float | None]]:
    """The wanted tokens a second over flash-linear-attention's, and those found, if any."""
    found = {}
    for size in models.sizes(rehearse):
        # The best of eager and compiled counts, for each of the two.
        rates = {}
        for row in rows:
            is_step = row.name in ("training step, eager", "training step, compiled")
            if is_step and row.tokens_per_s and row.shape == _training_shape(size):
                rates[row.peer] = max(rates.get(row.peer, 0.0), row.tokens_per_s)
        ratio = rates[OURS] / rates[FLA] if {OURS, FLA} <= rates.keys() else None
        found[f"training {size.name}, times {FLA}'s tokens/s"] = (STEP_TARGET, ratio)
    return found


def _training_shape(size: Size) -> str:
    return f"{size.name}, T={size.length}, B={size.batch}"


def train(session: Session, size: Size, passed: set[str], compiled: bool) -> None:
    """A training step of every model that has passed its check."""
    name = f"training step, {'compiled' if compiled else 'eager'}"
    needs = _COMPILES * size.depth if compiled and not session.rehearse else 0
    for peer in models.PEERS:
        cells: dict[str, Any] = {
            "name": name,
            "peer": peer,
            "shape": _training_shape(size),
            "dtype": "bfloat16",
        }
        if session.skips(needs, **cells):
            continue
        if peer not in passed:
            session.leave_out(_UNCHECKED, **cells)
            continue
        with session.guarded(**cells):
            session.forget_memory()
            session.add(_training_step(session, size, compiled, cells))


def _training_step(session: Session, size: Size, compiled: bool, cells: dict[str, Any]) -> Row:
    torch.compiler.reset()
    model: Any = models.built(session, models.PEERS[cells["peer"]], size)
    ids = torch.randint(size.vocabulary, (size.batch, size.length), device=session.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    call = model
    if compiled:
        call = torch.compile(model, backend="aot_eager" if session.rehearse else "inductor")

    def forward_backward() -> Tensor:
        loss = models.loss_of(call, ids)
        loss.backward()
        return loss.detach()

    def step() -> None:
        forward_backward()
        optimizer.step()
        optimizer.zero_grad()

    # The plain loss, before anything has moved the weights.
    with torch.no_grad():
        plain = models.loss_of(model, ids).cpu().double()
    loss = session.first(forward_backward, **cells)
    optimizer.zero_grad()
    what = "the loss of the timed call from that of the plain one"
    refuse(what, relative(loss, plain), LOSS[torch.bfloat16])
    times = session.time({"step": step}, 10)["step"]
    return Row.timed(
        times,
        parameters=models.parameters(model),
        tokens_per_s=1e3 * size.batch * size.length / times.median,
        memory_mb=session.peak_mb(),
        note="weights in bfloat16, fused AdamW",
        **cells,
    )


def decode(session: Session, size: Size, passed: set[str]) -> None:
    """A decoding step of every model that has passed its check, at two sizes of a batch."""
    for peer, build in models.PEERS.items():
        cells: dict[str, Any] = {"name": "decoding step", "peer": peer, "dtype": "bfloat16"}
        batches = {
            batch: f"{size.name}, B={batch}, after {size.prompt}"
            for batch in ((1, 2) if session.rehearse else (1, 64))
        }
        left = {
            batch: shape
            for batch, shape in batches.items()
            if not session.results.has(shape=shape, **cells)
        }
        if not left or session.skips(shape=size.name, **cells):
            continue
        if peer not in passed:
            session.leave_out(_UNCHECKED, shape=size.name, **cells)
            continue
        with session.guarded(shape=size.name, **cells):
            session.forget_memory()
            model: Any = models.built(session, build, size).eval()
            for batch, shape in left.items():
                with session.guarded(shape=shape, **cells), torch.no_grad():
                    _decoding_step(session, model, size, batch, cells | {"shape": shape})


def _states(cache: Any) -> list[Tensor]:
    """The recurrent states that a cache of ours or of flash-linear-attention holds."""
    if hasattr(cache, "state"):
        return [part for layer in cache.state for part in layer]
    return [layer["recurrent_state"] for layer in cache]


def _decoding_step(
    session: Session, model: Any, size: Size, batch: int, cells: dict[str, Any]
) -> None:
    """One token more for each sequence: as called, and from a CUDA graph."""
    ids = torch.randint(size.vocabulary, (batch, size.prompt), device=session.device)
    token = ids[:, :1].clone()
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    start = copy.deepcopy(cache)

    def step() -> Tensor:
        nonlocal cache
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        return out.logits

    plain = session.first(step, **cells)
    functions = {"": step}
    graphed = cells | {"name": f"{cells['name']}, CUDA graph"}
    if cells["peer"] == TRANSFORMER:
        session.leave_out("its keys and values grow, so no step is like another", **graphed)
    else:
        with session.guarded(**graphed):
            # A graph reads and writes the same memory every time, so new states are copied back.
            kept = _states(start)

            def static_step() -> Tensor:
                out = model(input_ids=token, past_key_values=start, use_cache=True)
                for memory, new in zip(kept, _states(out.past_key_values), strict=True):
                    memory.copy_(new)
                return out.logits

            replay = session.capture(static_step)
            again = replay().clone()
            session.wait()
            what = "logits from a CUDA graph from those of the call"
            refuse(what, relative(again, plain.cpu().double()), GRADIENT[torch.bfloat16])
            functions[", CUDA graph"] = replay
    for suffix, times in session.time(functions, 20).items():
        kind = "kernel" if suffix else "op"
        session.add(
            Row.timed(
                times,
                parameters=models.parameters(model),
                tokens_per_s=1e3 * batch / times.median,
                **cells | {"name": cells["name"] + suffix, "kind": kind},
            )
        )
