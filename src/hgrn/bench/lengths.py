"""Time and memory against length: of training steps of long sequences, and of decoding steps behind long contexts."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from hgrn.bench.decoding import hgrn_step
from hgrn.bench.measure import Tell, resident_bytes, round_robin
from hgrn.bench.models import HGRNModel, hgrn_model
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import ScanCase, check
from hgrn.bench.training import training_step
from hgrn.errors import UserError

_LENGTHS = tuple(4096 << k for k in range(7))  # to 262,144
_QUICK_LENGTHS = (1024, 4096)
_WIDTH = 128
_DEPTH = 4
_QUICK_WIDTH = 32
_CHUNK = 4096  # tokens of one call while a context is read
# Run by a process of its own, so that nothing that was measured before counts.
_CHILD = (
    "import sys; from hgrn.bench.lengths import report_peak; report_peak(*map(int, sys.argv[1:]))"
)


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Raises UserError if the scan of the model disagrees with the reference, or a length does not fit in memory."""
    lengths, width = (_QUICK_LENGTHS, _QUICK_WIDTH) if quick else (_LENGTHS, _WIDTH)
    check(ScanCase("hgru_scan", True, True), (1, lengths[-1], width), torch.float32)
    return training_rows(lengths, width, 2 if quick else 3, tell) + decoding_rows(
        lengths, width, 20 if quick else 200, tell
    )


def training_rows(lengths: tuple[int, ...], width: int, repeats: int, tell: Tell) -> list[Row]:
    """Time and memory of training steps."""
    progress = tell("length: memory")
    # First, while this process is small: the longest takes most of the memory of a small machine.
    peaks = {}
    for number, length in enumerate(lengths, 1):
        peaks[length] = _peak(length, width)
        progress(number, len(lengths))

    model = hgrn_model(width, _DEPTH)
    steps = {length: training_step(model, 1, length) for length in lengths}
    times = round_robin(steps, repeats, on_call=tell("length: training steps"))
    return [
        Row.timed(
            times[length],
            name="training step",
            peer="HGRN",
            shape=f"T={length}, {_label(width)}",
            tokens_per_s=1e3 * length / times[length].median,
            parameters=model.size,
            memory_mb=peaks[length],
        )
        for length in lengths
    ]


def decoding_rows(lengths: tuple[int, ...], width: int, repeats: int, tell: Tell) -> list[Row]:
    """Time of decoding steps, and the size of the state."""
    model = hgrn_model(width, _DEPTH).eval()
    caches = _read_contexts(model, lengths)
    steps = {length: hgrn_step(model.model, cache) for length, cache in caches.items()}
    with model.model.stepping():
        times = round_robin(steps, repeats, on_call=tell("length: decoding steps"))
    return [
        Row.timed(
            times[length],
            name="decode step",
            peer="HGRN",
            shape=f"context {length}, {_label(width)}",
            tokens_per_s=1e3 / times[length].median,
            parameters=model.size,
            memory_mb=sum(part.nbytes for layer in caches[length].state for part in layer) / 1e6,
            note="memory: the state",
        )
        for length in lengths
    ]


def _label(width: int) -> str:
    return f"B=1, D={width}, {_DEPTH} layers"


@torch.no_grad()
def _read_contexts(model: HGRNModel, lengths: tuple[int, ...]) -> dict[int, object]:
    """The cache after each of the lengths, ascending, of one random text."""
    from hgrn.models import HGRNCache

    caches = {}
    cache = None
    read = 0
    for length in lengths:
        while read < length:
            ids = torch.randint(256, (1, min(_CHUNK, length - read)))
            cache = model.model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).past_key_values
            read += ids.shape[1]
        caches[length] = HGRNCache(cache.state, cache.seen_tokens)
    return caches


def _peak(length: int, width: int) -> float | None:
    """The most memory of a training step, in 10^6 bytes above what the process held; None if not on Linux."""
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(length), str(width), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"a training step of {length} tokens failed in a process of its own (status {done.returncode}): "
            f"{done.stderr.strip()[-300:] or 'it was killed; the memory is too small for this length'}"
        )
    return json.loads(done.stdout)


def report_peak(length: int, width: int, threads: int) -> None:
    """Prints the peak, by the high-water mark that the system keeps of the process's resident memory."""
    torch.set_num_threads(threads)
    model = hgrn_model(width, _DEPTH)
    training_step(model, 1, 64)()  # libraries, kernels, and what each thread keeps
    before = resident_bytes("VmRSS")
    training_step(model, 1, length)()
    print((resident_bytes("VmHWM") - before) / 1e6)
