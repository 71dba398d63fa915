"""Measures the GPU kernels, training steps and decoding on one GPU, against a copy of as many bytes and against other packages.

    PYTHONPATH=src python benchmarks/gpu.py                            # at most 8 minutes; writes benchmarks/results/gpu.csv
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse             # every path at tiny shapes on a CPU; its numbers mean nothing

Nothing is timed before its result has been compared with float64; what fails is named and has no time.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrn.bench.measure import Times
from hgrn.bench.models import transformer
from hgrn.bench.results import Row, environment, version, write_csv
from hgrn.bench.scan_cases import refuse_if_wrong
from hgrn.errors import UserError

PARTS = ("check", "kernels", "step", "decode")
SHAPES = ((8, 2048, 1024), (8, 2048, 2048), (1, 65536, 1024), (64, 512, 256))
TINY = ((2, 24, 16), (1, 70, 8))
SIZES = {"150M": (768, 14, 50272), "1B": (2048, 16, 50272)}
TINY_SIZES = {"tiny": (32, 2, 64)}
TARGETS = {"forward": 0.7, "backward": 0.8}  # of the speed of the copy, at the first three shapes
STEP_TARGET = 1.3  # times the tokens a second of flash-linear-attention


class Bench:
    """The device, the clock, the rows that were found and the time that is left."""

    def __init__(self, rehearse: bool, minutes: float):
        self.rehearse, self.device = rehearse, "cpu" if rehearse else "cuda"
        self.ends, self.rows, self.verdicts = time.monotonic() + 60 * minutes, [], []
        self.flush = torch.empty(1 << (10 if rehearse else 28), dtype=torch.uint8, device=self.device)  # beyond any L2

    def absent(self, reason: str, **cells) -> None:
        print(f"left out: {cells.get('name')} {cells.get('peer', '')} {cells.get('shape', '')}: {reason}", flush=True)
        self.rows.append(Row(note=f"left out: {reason}", **cells))

    def late(self, **cells) -> bool:
        """Whether the time is used up; what is skipped for it is named."""
        if time.monotonic() < self.ends:
            return False
        self.absent("the time of --minutes was used up", **cells)
        return True

    def time(self, functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
        """All in turn, with a cold L2, by CUDA events; in a rehearsal by wall time."""
        repeats = 2 if self.rehearse else repeats
        for function in functions.values():
            for _ in range(1 if self.rehearse else 3):
                function()
        readings = {name: [] for name in functions}
        for _ in range(repeats):
            for name, function in functions.items():
                self.flush.zero_()
                readings[name].append(self._once(function))
        return {name: Times.of(seconds) for name, seconds in readings.items()}

    def _once(self, function: Callable[[], object]) -> float:
        if self.rehearse:
            began = time.perf_counter()
            function()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def tensors(shape, dtype, device, complex_state=False) -> dict[str, Tensor]:
    """Candidate, forget, gradient of h, bound and theta, as the engine takes them: `[B, T, 1, C]`."""
    batch, steps, channels = shape
    generator = torch.Generator(device).manual_seed(0)

    def draw(width):
        return torch.randn(batch, steps, 1, width, generator=generator, device=device).to(dtype)

    wide = channels * (2 if complex_state else 1)
    bound = 0.95 * torch.rand(channels, generator=generator, device=device)
    theta = torch.rand(channels, generator=generator, device=device) if complex_state else None
    return {"candidate": draw(wide), "forget": draw(channels), "grad": draw(wide), "bound": bound, "theta": theta}


def run_ours(given: dict[str, Tensor]) -> tuple[Callable, Callable]:
    from hgrn.ops import triton as engine

    inputs = given["candidate"], given["forget"], given["bound"], given["theta"], None
    grad, rest = given["grad"], (None, None, False)
    h, final = engine.hgru_scan(*inputs, *rest)
    zero = torch.zeros_like(final)
    return lambda: engine.hgru_scan(*inputs, *rest), lambda: engine.hgru_scan_backward(grad, zero, *inputs, h, *rest)


def expected(given: dict[str, Tensor]) -> list[Tensor]:
    """h and the gradients of candidate and forget, by the float64 reference."""
    from hgrn.ops import reference

    candidate, forget = (given[name].double().requires_grad_() for name in ("candidate", "forget"))
    theta = None if given["theta"] is None else given["theta"].double()
    h, _ = reference.hgru_scan(candidate, forget, given["bound"].double(), theta, None, None, None, False)
    return [h.detach(), *torch.autograd.grad(h, (candidate, forget), given["grad"].double())]


def run_fla(kind: str, compiled: bool, given: dict[str, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """flash-linear-attention's scan with the operations around it: h and the gradients of candidate and forget."""
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

    scan = {"chunk_hgrn": chunk_hgrn, "fused_recurrent_hgrn": fused_recurrent_hgrn}[kind]
    candidate, forget = (given[name].squeeze(2).detach().requires_grad_() for name in ("candidate", "forget"))
    bound, grad = given["bound"], given["grad"].squeeze(2)

    def around(candidate, forget):
        log_gate = torch.logaddexp(bound.log(), torch.log1p(-bound) + F.logsigmoid(forget)).to(forget.dtype)
        return F.silu(candidate) * (1 - log_gate.exp()), log_gate

    around = torch.compile(around) if compiled else around

    def run():
        x, log_gate = around(candidate, forget)
        h = scan(x=x, g=log_gate)[0]
        return h.detach(), *torch.autograd.grad(h, (candidate, forget), grad)

    return run


def compare(name: str, dtype: torch.dtype, found, wanted) -> None:
    for one, other in zip(found, wanted):
        refuse_if_wrong(name, dtype, one.reshape(other.shape), other)


def check(bench: Bench, shape, dtype, complex_state=False) -> str | None:
    """What is wrong with our kernels at the shape, its time cut to what the reference can follow; None if nothing is."""
    batch, steps, channels = shape
    given = tensors((min(batch, 8), min(steps, 512), channels), dtype, bench.device, complex_state)
    forward, backward = run_ours(given)
    name = f"hgru_scan {'complex' if complex_state else 'real'} at {list(shape)}"
    try:
        compare(name, dtype, (forward()[0], *backward()[:2]), expected(given))
    except UserError as error:
        return str(error)
    return None


def kernels(bench: Bench, timed: bool) -> None:
    for shape in TINY if bench.rehearse else SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            for complex_state in (False, True):
                cells = {"shape": str(list(shape)), "dtype": str(dtype).removeprefix("torch."), "kind": "kernel"}
                state = "complex" if complex_state else "real"
                if bench.late(name=f"hgru_scan {state}", **cells):
                    continue
                if problem := check(bench, shape, dtype, complex_state):
                    bench.absent(problem, name=f"hgru_scan {state}", **cells)
                    bench.verdicts.append((f"check {state} {cells['shape']} {cells['dtype']}", False))
                    continue
                bench.verdicts.append((f"check {state} {cells['shape']} {cells['dtype']}", True))
                if timed:
                    against_copy(bench, shape, dtype, complex_state, cells)
        if timed:
            against_fla(bench, shape)


def against_copy(bench: Bench, shape, dtype, complex_state, cells) -> None:
    state, numbers = ("complex", 2) if complex_state else ("real", 1)
    given = tensors(shape, dtype, bench.device, complex_state)
    elements = given["forget"].numel() * dtype.itemsize
    traffic = {"forward": (2 * numbers + 1) * elements, "backward": (4 * numbers + 2) * elements}
    functions = dict(zip(traffic, run_ours(given)))
    for way, amount in traffic.items():
        source = torch.zeros(amount // 2, dtype=torch.uint8, device=bench.device)
        functions[f"copy {way}"] = lambda to=torch.empty_like(source), source=source: to.copy_(source)
    times = bench.time(functions, 30)
    for way, amount in traffic.items():
        limit = times[f"copy {way}"].median
        row = Row.timed(times[way], name=f"hgru_scan {state} {way}", bytes=amount, limit_ms=limit, note="limit: a copy", **cells)
        bench.rows.append(row)
        if shape in SHAPES[:3] and not complex_state:
            bench.verdicts.append((f"{way} {cells['shape']} {cells['dtype']}: {row.ratio:.2f} of {TARGETS[way]}", row.ratio >= TARGETS[way]))


def against_fla(bench: Bench, shape) -> None:
    dtype = torch.float32 if bench.rehearse else torch.bfloat16
    cells = {"name": "forward+backward real", "shape": str(list(shape)), "dtype": str(dtype).removeprefix("torch.")}
    small, given = tensors((shape[0], min(shape[1], 512), shape[2]), dtype, bench.device), tensors(shape, dtype, bench.device)
    forward, backward = run_ours(given)
    functions = {"hgrn": lambda: (forward(), backward())}
    for kind in ("chunk_hgrn", "fused_recurrent_hgrn"):
        for compiled in (False, True):
            peer = f"{kind}, {'compiled' if compiled else 'eager'}"
            if bench.late(peer=peer, **cells):
                continue
            try:
                compare(peer, dtype, run_fla(kind, compiled, small)(), expected(small))
                functions[peer] = run_fla(kind, compiled, given)
            except Exception as error:  # whatever another package raises here is the reason that it is left out
                bench.absent(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", peer=peer, **cells)
    for peer, times in bench.time(functions, 10).items():
        bench.rows.append(Row.timed(times, peer=peer, **cells))


def language_models(size: str, width: int, depth: int, vocabulary: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """Ours and flash-linear-attention's of equal shapes (real state), and a Transformer of equal width."""

    def ours():
        from hgrn.models import HGRNConfig, HGRNForCausalLM

        return HGRNForCausalLM(HGRNConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, intermediate_size=2 * width, complex_state=False,
            norm_type="rms", bias=False, scale_embeddings=False, tie_word_embeddings=False,
        ))  # fmt: skip

    def fla():
        from fla.models import HGRNConfig, HGRNForCausalLM

        return HGRNForCausalLM(HGRNConfig(
            attn_mode="chunk", vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, intermediate_size=2 * width,
            bos_token_id=None, eos_token_id=None,
        ))  # fmt: skip

    return {"hgrn": ours, "flash-linear-attention": fla, "Transformer": lambda: transformer(width, depth, 2048, vocabulary)}


def steps(bench: Bench, decode: bool) -> None:
    for size, (width, depth, vocabulary) in (TINY_SIZES if bench.rehearse else SIZES).items():
        rates = {}
        for peer, build in language_models(size, width, depth, vocabulary).items():
            for compiled in (False, True):
                name = f"{'decode' if decode else 'training'} step, {'compiled' if compiled else 'eager'}"
                if bench.rehearse and compiled:
                    bench.absent("a rehearsal compiles nothing", name=name, peer=peer, shape=size)
                    continue
                if bench.late(name=name, peer=peer, shape=size):
                    continue
                try:
                    torch.manual_seed(0)
                    model = build().to(bench.device)
                    rows = list((decoding if decode else training)(bench, model, compiled, vocabulary, size, name, peer))
                except Exception as error:  # as above; ours too, because an hour of a GPU should not be lost to one row
                    bench.absent(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", name=name, peer=peer, shape=size)
                    continue
                finally:
                    model = None
                bench.rows += rows
                rates[peer] = max(rates.get(peer, 0), *(row.tokens_per_s for row in rows))
        if not decode and {"hgrn", "flash-linear-attention"} <= set(rates):
            ratio = rates["hgrn"] / rates["flash-linear-attention"]
            bench.verdicts.append((f"training {size}: {ratio:.2f} of {STEP_TARGET} times", ratio >= STEP_TARGET))


def training(bench, model, compiled, vocabulary, size, name, peer):
    batch, length = (1, 16) if bench.rehearse else ((16, 2048) if size == "150M" else (4, 2048))
    ids = torch.randint(vocabulary, (batch, length), device=bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = torch.compile(model) if compiled else model

    def step():
        with torch.autocast(bench.device, torch.bfloat16, enabled=not bench.rehearse):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    times = bench.time({"step": step}, 10)["step"]
    yield Row.timed(
        times, name=name, peer=peer, shape=f"{size}, T={length}, B={batch}", dtype="bfloat16", note="autocast, fused AdamW",
        parameters=sum(p.numel() for p in model.parameters()), tokens_per_s=1e3 * batch * length / times.median,
    )  # fmt: skip


def decoding(bench, model, compiled, vocabulary, size, name, peer):
    model = model.to(torch.float32 if bench.rehearse else torch.bfloat16).eval()
    run = torch.compile(model) if compiled else model
    for batch in (1, 64):
        ids = torch.randint(vocabulary, (batch, 8), device=bench.device)
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values

            def step():
                nonlocal cache
                with torch.no_grad():
                    cache = run(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).past_key_values

            times = bench.time({"step": step}, 20)["step"]
        yield Row.timed(
            times, name=name, peer=peer, shape=f"{size}, B={batch}", dtype="bfloat16",
            parameters=sum(p.numel() for p in model.parameters()), tokens_per_s=1e3 * batch / times.median,
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of gpu.csv (default: benchmarks/results; of a rehearsal, a new one)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--minutes", type=float, default=8, help="time after which what is left is skipped and named")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter")
    options = parser.parse_args(arguments)
    results = Path(__file__).resolve().parent / "results"
    if options.rehearse and options.out is not None and options.out.resolve().is_relative_to(results):
        parser.error(f"--out {options.out}: a rehearsal's numbers mean nothing and do not belong into {results}; give another folder")
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no GPU is here; --rehearse runs all of it on a CPU")
    out = options.out or (Path(tempfile.mkdtemp()) if options.rehearse else results)
    bench = Bench(options.rehearse, options.minutes)
    if {"check", "kernels"} & set(options.only):
        kernels(bench, "kernels" in options.only)
    for part in ("step", "decode"):
        if part in options.only:
            steps(bench, part == "decode")
    hardware = "REHEARSAL, no GPU: these numbers mean nothing" if options.rehearse else torch.cuda.get_device_name()
    where = environment() | {p: version(p) for p in ("triton", "flash-linear-attention")} | {"gpu": hardware}
    for row in bench.rows:
        print(f"{row.name:42} {row.peer:28} {row.shape:22} {row.dtype:9} {row.median_ms or float('nan'):10.4g} ms"
              f" {'' if row.ratio is None else f'{row.ratio:.2f} of the copy'} {row.note}")  # fmt: skip
    for text, holds in bench.verdicts:
        print(f"{'holds' if holds else 'FAILS'}: {text}")
    print(hardware)
    if bench.rows:
        write_csv(out / "gpu.csv", [row.text | where for row in bench.rows])
        print(f"written: {out / 'gpu.csv'}")
    return 0 if all(holds for text, holds in bench.verdicts if text.startswith("check")) else 1


if __name__ == "__main__":
    sys.exit(main())
