"""A text far larger than the memory allowed is prepared, drawn from and trained on."""

import shutil
import subprocess
import sys

import pytest

SIZE = 3 * 10**9
ALLOWED = 1_500_000_000  # bytes of address space above what is in use after the imports
NEEDED = 4 * SIZE  # on disk: the text, two bytes a token, and room to spare

LIMITED = """
import resource, sys
from pathlib import Path
import numpy, torch
from hgrn.data.sampling import BlockSampler
from hgrn.data.text import TextData, TextSplit
from hgrn.data.tokens import prepare
from hgrn.models import HGRNForCausalLM
from hgrn.ops.cpu import launch
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


text, cache, allowed = sys.argv[1], sys.argv[2], int(sys.argv[3])
imported = status("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (imported + allowed, imported + allowed))
try:
    numpy.empty(2 * allowed, numpy.uint8)
except MemoryError:
    pass
else:
    sys.exit("the limit does not limit")

data = TextData(files=[text], splits={"train": TextSplit()}, cache=cache, documents="line")
tokens = prepare(data, "train")
size = Path(text).stat().st_size
assert len(tokens) == size - 1 and tokens.num_bytes == size - 1, len(tokens)
for mode in ("reset", "carry", "documents"):
    sampler = BlockSampler(tokens, 1024, 64, mode, seed=0)
    for _ in range(50):
        batch = sampler.next()
        assert batch.num_blocks == 64 and int(batch.input_ids.max()) == 257
with open(text, "rb") as file:
    for start in (0, size // 2, size - 10_001):
        file.seek(start)
        window = file.read(10_000).replace(b"\\n", b"\\0")
        found = tokens.read(start, 10_000)
        found[found == 257] = 0
        assert bytes(found.tolist()) == window
recipe = load_recipe("lm/text", {
    "data.files": [text],
    "data.cache": cache,
    "data.documents": "line",
    "data.splits": {"train": {}},
    "training.steps": 5,
    "training.eval_every": None,
    "schedule.warmup_steps": 1,
    "model.hidden_size": 64,
})
outcome = train(recipe, Path(cache) / "run")
assert outcome.step == 5 and outcome.checkpoint.is_dir()
print(f"peak {(status('VmPeak') - imported) / 1e6:.0f} MB of address space above the imports")
"""


@pytest.mark.slow
def test_three_gigabytes_in_one_and_a_half(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED / 1e9:.0f} GB of disk, and {free / 1e9:.0f} GB are free")
    text = tmp_path / "large.txt"
    try:
        with open(text, "wb") as file:
            lines = "".join(f"line {number} of a long text\n" for number in range(500_000)).encode()
            while file.tell() < SIZE:
                file.write(lines)
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, text, tmp_path / "cache", str(ALLOWED)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout)
    finally:
        shutil.rmtree(tmp_path)
