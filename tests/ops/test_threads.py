"""The CPU engine's threads: many callers, forks, PyTorch's thread count, no writable cache."""

import ctypes
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from hgrn.ops import available_engines, hgru_scan
from hgrn.ops.cpu import threads

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="numba is not installed"
)


def large():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 256, 1024, generator=generator), torch.randn(
        4, 256, 1024, generator=generator
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def who_ran(work=1 << 20, tasks=64):
    """Runs tasks of a kernel made of Python and returns which thread had which."""
    seen = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def kernel(address):
        while (task := taken()) < tasks:
            seen.append((task, threading.get_ident()))
            time.sleep(0.001)

    taken = itertools.count().__next__  # atomic, as the kernels' own counter
    threads.run(ctypes.cast(kernel, ctypes.c_void_p).value, np.array([tasks, 0]), work)
    assert sorted(task for task, _ in seen) == list(range(tasks))
    return {thread for _, thread in seen}


def test_tasks_are_shared_among_as_many_threads_as_pytorch_has(two_threads):
    assert len(who_ran()) == 2
    assert who_ran(work=100) == {threading.get_ident()}
    assert who_ran(tasks=1) == {threading.get_ident()}
    torch.set_num_threads(1)
    assert who_ran() == {threading.get_ident()}


def test_where_openmp_cannot_be_called_a_pool_takes_over(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "_gomp_parallel", lambda: None)
    monkeypatch.setattr(threads, "_pool", None)
    used = who_ran()
    assert len(used) == 2 and threading.get_ident() not in used


def test_same_result_on_any_number_of_threads(two_threads):
    x, gate = (t.requires_grad_() for t in large())
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        h, final = hgru_scan(x, gate)
        results.append((h, final, *torch.autograd.grad(h.sum(), [x, gate])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_many_python_threads_at_once(two_threads):
    x, gate = large()
    expected = hgru_scan(x, gate)[0]
    wrong = []

    def call():
        for _ in range(20):
            if not torch.equal(hgru_scan(x, gate)[0], expected):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


FORKED = """
import os, warnings
import numpy as np
import torch
from hgrn.ops import hgru_scan
from hgrn.ops.cpu import threads
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
torch.set_num_threads(2)
x = torch.linspace(-3, 3, 1 << 20).reshape(4, 256, 1024)
gate = torch.linspace(5, -5, 1 << 20).reshape(4, 256, 1024)
expected = hgru_scan(x, gate)[0].numpy()
assert not threads._forked
child = os.fork()
if child == 0:  # compared by NumPy: PyTorch's own threads do not survive a fork
    right = np.array_equal(hgru_scan(x, gate)[0].numpy(), expected)
    os._exit(0 if threads._forked and right and threads._pool else 1)
assert os.waitpid(child, 0)[1] == 0

class Scans(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, n):
        return hgru_scan(x, gate)[0]

loader = torch.utils.data.DataLoader(
    Scans(), num_workers=2, batch_size=None, multiprocessing_context="fork"
)
assert all(np.array_equal(h.numpy(), expected) for h in loader)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_children_work_after_the_parent_used_its_threads():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


EVERYTHING = """
import os, signal, sys, warnings
import numpy as np
import torch
from hgrn import HGRN, gated_scan, hgru_carry, hgru_scan
from hgrn.ops import gated_norm, gated_unit, linear
from hgrn.ops.cpu import threads
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
torch.set_num_threads(2)
calls = {}
generator = torch.Generator().manual_seed(0)

def leaf(*shape):
    return torch.randn(shape, generator=generator).requires_grad_()

def norm(x, gate, own):
    return gated_norm(x, gate, own, own, engine="numba")

def half(c, f, own):
    return [y.float() for y in hgru_scan(c.half(), f.half(), None, own)]

for width in (64, 128, 2048):
    x = leaf(2, 40, width)
    gate = leaf(2, 40, width)
    wide = leaf(2, 40, 2 * width)
    own = leaf(width)
    calls |= {
        f"real {width}": (lambda c, f, own: hgru_scan(c, f, own.sigmoid()), x, gate, own),
        f"complex {width}": (lambda c, f, own: hgru_scan(c, f, own.sigmoid(), own), wide, x, own),
        f"carry {width}": (lambda c, f, own: hgru_carry(c, f, None, own), wide, x, own),
        f"gated {width}": (lambda c, f, own: gated_scan(c, -f.abs(), theta=own), wide, x, own),
        f"norm {width}": (norm, x, gate, own),
        f"unit {width}": (lambda x: gated_unit(x, engine="numba"), wide),
        f"half {width}": (half, wide, x, own),
    }
many = leaf(1, 2, 1 << 17), leaf(1, 2, 1 << 16), leaf(1 << 16)
calls["many angles"] = (lambda c, f, own: hgru_scan(c, f, None, own), *many)
calls["product"] = (linear, leaf(256, 512), leaf(1024, 512), leaf(1024))
rnn = HGRN(128, 2)
calls["stack"] = (lambda x, *parameters: rnn(x)[0], leaf(4, 64, 128), *rnn.parameters())

def results(function, *inputs):
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    grads = torch.autograd.grad([y.sum() for y in outputs], inputs)
    return [y.detach().numpy() for y in (*outputs, *grads)]

SET_UP
expected = {name: results(*call) for name, call in calls.items()}
sys.stdout.flush()
for generation in ("child", "child of a child"):
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(100)  # what waits for threads that are gone would wait for ever
    for name, call in calls.items():
        for one, other in zip(results(*call), expected[name], strict=True):
            assert np.allclose(one, other, rtol=1e-4, atol=1e-4), (generation, name)
    print(generation, torch.get_num_threads(), flush=True)
os._exit(0)
"""
WITHOUT_PAUSE = "threads._omp_pause = lambda: lambda kind: -1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    "set_up, count", [("", 2), (WITHOUT_PAUSE, 1)], ids=["threads ended before", "one thread after"]
)
def test_every_operator_and_whole_modules_work_in_forked_children(set_up, count):
    program = EVERYTHING.replace("SET_UP", set_up)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"child {count}\nchild of a child {count}\n"


def test_more_threads_than_a_system_has_are_not_asked_for(two_threads):
    x, gate = large()
    expected = hgru_scan(x, gate)[0]
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda address: None)
    block = np.array([64, 0])
    asked = []
    before = torch.get_num_threads
    torch.get_num_threads = lambda: 1_000_000
    try:
        assert threads.count() == 1024
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                threads,
                "_gomp_parallel",
                lambda: lambda kernel, block, count, flags: asked.append(count),
            )
            threads.run(ctypes.cast(kernel, ctypes.c_void_p).value, block, 1 << 20)
        assert asked == [1024]
        assert torch.equal(hgru_scan(x, gate)[0], expected)
    finally:
        torch.get_num_threads = before


def test_without_a_writable_folder_the_kernels_still_compile():
    program = """
import warnings, numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from hgrn.ops import hgru_scan
    x = torch.ones(1, 2, 3)
    hgru_scan(x, x, engine="numba"); hgru_scan(x, x, engine="numba")
said = [str(w.message) for w in caught if "NUMBA_CACHE_DIR" in str(w.message)]
assert len(said) == 1, said
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiling_is_announced_once_and_its_result_is_kept(tmp_path):
    program = """
import logging, sys
logging.basicConfig(format="%(message)s", level=logging.INFO)
logging.getLogger("hgrn").setLevel(logging.INFO)
import torch, hgrn
x = torch.ones(1, 2, 3)
hgrn.hgru_scan(x, x, engine="numba"); hgrn.gated_scan(x, -x, engine="numba")
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for expected in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("compiling kernels for this processor") == expected, done.stderr


def test_without_numba_the_reference_runs_with_one_warning():
    program = """
import sys, warnings
sys.modules["numba"] = None
import torch, hgrn
assert hgrn.available_engines("cpu") == ("reference",)
x = torch.ones(1, 2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hgrn.hgru_scan(x, x); hgrn.hgru_scan(x, x)
(said,) = [str(w.message) for w in caught]
assert said == "hgrn runs its reference loop on cpu, which is slow: install numba for a fast one"
try:
    hgrn.hgru_scan(x, x, engine="numba")
except ImportError as error:
    assert "numba" in str(error)
else:
    raise AssertionError("a named engine fell back")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
