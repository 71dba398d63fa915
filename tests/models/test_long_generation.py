"""After 20,000 tokens a token takes the memory and operations that it took at the start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hgrn
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.ops import available_engines

pytestmark = pytest.mark.slow

TOKENS = 20_000
EARLY = 2_000
CONFIG = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2)

# In a process of its own, whose highest resident memory is that of the loop; sys.argv[1]: "steps"
# (compiled) or "operations".
PROGRAM = f"""
import contextlib, json, resource, sys, torch
from hgrn.models import HGRNConfig, HGRNForCausalLM
torch.manual_seed(0)
model = HGRNForCausalLM(HGRNConfig(**{CONFIG})).eval()
stepping = model.stepping if sys.argv[1] == "steps" else contextlib.nullcontext
highest = []
with torch.no_grad(), stepping():
    output = model(torch.tensor([[1]]), use_cache=True)
    for token in range(1, {TOKENS}):
        if token in ({EARLY}, {TOKENS} - 1):
            unit = 1 if sys.platform == "darwin" else 1024
            highest.append(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        output = model(output.logits[:, -1:].argmax(-1), past_key_values=output.past_key_values)
cache = output.past_key_values
size = sum(part.nbytes for layer in cache.state for part in layer)
print(json.dumps(dict(highest=highest, seen=cache.get_seq_length(), cache=size)))
"""


@pytest.fixture(scope="module")
def model() -> HGRNForCausalLM:
    torch.manual_seed(0)
    return HGRNForCausalLM(HGRNConfig(**CONFIG)).eval()


class Counted(TorchDispatchMode):
    """The operations that are dispatched inside, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(model, cache) -> list[str]:
    """What one more token takes; the cache goes on by it."""
    with Counted() as counted, torch.no_grad():
        model(torch.tensor([[1]]), past_key_values=cache)
    return counted.names


def nbytes(cache) -> int:
    return sum(part.nbytes for layer in cache.state for part in layer)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
@pytest.mark.parametrize("how", ["steps", "operations"])
def test_memory_stays_as_it_is(how):
    if how == "steps" and "numba" not in available_engines("cpu"):
        pytest.skip("numba is not here")
    environment = {
        "PYTHONPATH": str(Path(hgrn.__file__).parents[1]),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seen"] == TOKENS and found["cache"] == 2 * 2 * 64 * 4
    early, late = found["highest"]
    # Keys and values of that width would take 18 MB more by then, and one float32 vector of 64
    # channels kept of each token 4.6 MB.
    assert late - early < 2e6, f"{(late - early) / 1e6:.1f} MB more"


def test_generate_ends_with_the_cache_and_the_operations_of_the_start(model):
    ids = torch.tensor([[1, 2, 3]])
    start = model.generate(ids, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    end = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True)
    assert end.sequences.shape == (1, TOKENS + 3) and torch.equal(
        end.sequences[:, :13], start.sequences
    )
    assert end.past_key_values.get_seq_length() == TOKENS + 2
    assert nbytes(end.past_key_values) == nbytes(start.past_key_values) == 2 * 2 * 64 * 4
    early = operations(model, start.past_key_values)
    late = operations(model, end.past_key_values)
    assert late == early and len(early) > 10
    assert all(part.isfinite().all() for layer in end.past_key_values.state for part in layer)
