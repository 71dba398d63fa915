"""Time and memory against length: training on long sequences, decoding behind long contexts."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu.decoding import hgrn_step
from benchmarks.cpu.models import hgrn_model, parameters
from benchmarks.cpu.training import training_step
from benchmarks.machine import resident_bytes
from benchmarks.parts import Part
from benchmarks.rows import ROOT, Row
from benchmarks.scan_cases import ScanCase, check
from hgrn.cli.speed import round_robin
from hgrn.errors import UserError
from hgrn.models import HGRNCache, HGRNForCausalLM
from hgrn.progress import OnProgress

_LENGTHS = tuple(4096 << k for k in range(7))  # to 262,144
_QUICK_LENGTHS = (1024, 4096)
_WIDTH = 128
_QUICK_WIDTH = 32
_DEPTH = 4
_CHUNK = 4096  # tokens of one call while a context is read
# Peak memory is that of a process of its own, so that nothing measured before counts.
_CHILD = (
    "import sys; from benchmarks.cpu.lengths import report_peak; "
    "report_peak(*map(int, sys.argv[1:]))"
)


def parts(quick: bool) -> list[Part]:
    """Memory of each training step, their times, and decoding steps.

    Raises UserError, when measured, if a length does not fit into memory.
    """
    lengths, width = (_QUICK_LENGTHS, _QUICK_WIDTH) if quick else (_LENGTHS, _WIDTH)

    def part(title: str, name: str, measure: partial[list[Row]]) -> Part:
        def owns(row: Row) -> bool:
            return row.name == name and row.shape.endswith(_sizes(width))

        return Part(f"length: {title}", owns, measure)

    training = partial(_training_rows, lengths, width, 2 if quick else 3)
    decoding = partial(_decoding_rows, lengths, width, 20 if quick else 200)
    return [
        part("training steps", "training step", training),
        part("decoding steps", "decode step", decoding),
    ]


def _training_rows(
    lengths: tuple[int, ...], width: int, repeats: int, tell: OnProgress
) -> list[Row]:
    check(ScanCase("hgru_scan", True, True), (1, lengths[-1], width), torch.float32)
    # Memory first, while this process is small: the longest step takes most of a small machine's.
    peaks = {}
    for number, length in enumerate(lengths, 1):
        peaks[length] = _peak(length, width)
        tell(number, len(lengths))

    model = hgrn_model(width, _DEPTH)
    steps = {length: training_step(model, 1, length) for length in lengths}
    times = round_robin(steps, repeats, on_call=tell)
    return [
        Row.timed(
            times[length],
            name="training step",
            peer="HGRN",
            shape=f"T={length}, {_sizes(width)}",
            tokens_per_s=1e3 * length / times[length].median,
            parameters=parameters(model),
            memory_mb=peaks[length],
        )
        for length in lengths
    ]


def _decoding_rows(
    lengths: tuple[int, ...], width: int, repeats: int, tell: OnProgress
) -> list[Row]:
    check(ScanCase("hgru_scan", True, False), (1, 1, width), torch.float32)
    model = hgrn_model(width, _DEPTH).eval()
    caches = _read_contexts(model, lengths)
    steps = {length: hgrn_step(model, cache) for length, cache in caches.items()}
    with model.stepping():
        times = round_robin(steps, repeats, on_call=tell)
    return [
        Row.timed(
            times[length],
            name="decode step",
            peer="HGRN",
            shape=f"context {length}, {_sizes(width)}",
            tokens_per_s=1e3 / times[length].median,
            parameters=parameters(model),
            memory_mb=sum(part.nbytes for layer in caches[length].state for part in layer) / 1e6,
            note="memory: the state",
        )
        for length in lengths
    ]


def _sizes(width: int) -> str:
    return f"B=1, D={width}, {_DEPTH} layers"


@torch.no_grad()
def _read_contexts(model: HGRNForCausalLM, lengths: tuple[int, ...]) -> dict[int, Any]:
    """The cache after each length (ascending) of one random text."""
    caches = {}
    cache: Any = None
    read = 0
    for length in lengths:
        while read < length:
            ids = torch.randint(256, (1, min(_CHUNK, length - read)))
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            read += ids.shape[1]
        caches[length] = HGRNCache(cache.state, cache.seen_tokens)
    return caches


def _peak(length: int, width: int) -> float | None:
    """The most memory of a training step above what its process held, in 10^6 bytes.

    None on systems other than Linux.
    """
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(length), str(width), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        killed = "it was killed; the memory is too small for this length"
        raise UserError(
            f"a training step of {length} tokens failed in a process of its own "
            f"(status {done.returncode}): {done.stderr.strip()[-300:] or killed}"
        )
    return json.loads(done.stdout)


def report_peak(length: int, width: int, threads: int) -> None:
    """Print the peak, from the high-water mark of resident memory that the system keeps."""
    torch.set_num_threads(threads)
    model = hgrn_model(width, _DEPTH)
    # A short step first: libraries, kernels, and what each thread keeps are no part of the peak.
    training_step(model, 1, 64)()
    before = resident_bytes("VmRSS")
    training_step(model, 1, length)()
    print((resident_bytes("VmHWM") - before) / 1e6)
