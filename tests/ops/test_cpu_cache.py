"""Compiled kernels on disk: with any folder and any damage, the scan runs and is right."""

import os
import stat
import subprocess
import sys
import warnings

import pytest
import torch

from hgrn.ops import available_engines

if "numba" not in available_engines("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

from hgrn.ops.cpu import cache, language, threads
from hgrn.ops.cpu.cache import KernelFile
from hgrn.ops.cpu.language import Kernel
from hgrn.ops.cpu.rows import number

SCAN = "import torch, hgrn; x = torch.ones(1, 3, 2); print(hgrn.hgru_scan(x, x)[0].sum().item())"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new folder for kernels. The process has compiled none and warned of nothing."""
    monkeypatch.setattr(language, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cache, "_said", set())
    return tmp_path


@Kernel(constants="value", states="y")
def small(call, task):
    """Writes its constant; soon compiled."""
    call.y[0] = number(call.y, call.value)


def compiled(value=1):
    """Compiles the kernel like a new process, checks what it does; whether it came from disk."""
    made = small._compile("float32", value)
    y = torch.zeros(1)
    threads.run(made.address, small.block(1, y=y.data_ptr()), 0)
    assert y.item() == value
    return made.cache_hits == 1


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_a_kernel_is_compiled_once(folder):
    assert not compiled()
    assert compiled()
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "damage", ["empty", "short", "garbage", "flipped", "other kernel", "folder"]
)
def test_a_damaged_file_is_compiled_again(damage, folder):
    compiled()
    path = only_file(folder)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    if damage == "other kernel":  # two processes at once can leave this in Numba's own cache
        compiled(2)
        (other,) = set(folder.iterdir()) - {path}
        content = other.read_bytes()
        other.unlink()
    path.unlink()
    if damage == "folder":
        path.mkdir()
        with pytest.warns(UserWarning, match="cannot be kept in"):
            assert not compiled()
        return
    path.write_bytes(
        {
            "empty": b"",
            "short": content[:-1],
            "garbage": b"\x80garbage" * 99,
            "flipped": flipped,
        }.get(damage, content)
    )
    assert not compiled()
    assert compiled()  # and the file is whole again


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")],
    ids=str,
)
def test_a_folder_that_takes_nothing_is_named_once(error, folder, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(cache.os, "replace", refuse)
    with pytest.warns(
        UserWarning, match=f"cannot be kept in .*{folder.name}.*{error.strerror}.*NUMBA_CACHE_DIR"
    ) as said:
        assert not compiled()
        assert not compiled()
    assert len(said) == 1
    assert not list(folder.iterdir())  # nothing half-written stays


def test_files_of_other_sources_go_away_and_those_of_other_machines_stay(tmp_path):
    here = KernelFile(tmp_path, "scan", "this one", "old")
    elsewhere = KernelFile(tmp_path, "scan", "another", "old")
    here.save(b"1")
    elsewhere.save(b"2")
    KernelFile(tmp_path, "scan", "this one", "new").save(b"3")
    assert here.load() is None and elsewhere.load() == b"2"
    assert KernelFile(tmp_path, "scan", "this one", "new").load() == b"3"


def test_a_file_that_was_renamed_is_not_believed(tmp_path):
    one = KernelFile(tmp_path, "scan", "here", "a")
    other = KernelFile(tmp_path, "step", "here", "a")
    one.save(b"1")
    os.replace(one.path, other.path)
    assert other.load() is None


def test_without_any_folder_it_is_said_once(monkeypatch):
    def none_writable(_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(cache, "_said", set())
    monkeypatch.setattr(language, "FunctionCache", none_writable)
    language.cache_folder.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no folder for compiled CPU kernels is writable"):
            assert not compiled()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not compiled()
    finally:
        language.cache_folder.cache_clear()


def test_doctor_names_the_folder_and_the_remedy(folder, monkeypatch):
    from hgrn.doctor import _compiler_cache

    good = _compiler_cache()
    assert good.works and str(folder) in good.value
    monkeypatch.setattr(language, "cache_folder", lambda: folder / "file" / "below")
    (folder / "file").touch()
    bad = _compiler_cache()
    assert bad.works is False and str(folder) in bad.value and "NUMBA_CACHE_DIR" in bad.remedy


@pytest.mark.parametrize("how", ["environment", pytest.param("config", marks=pytest.mark.slow)])
def test_without_numba_s_compiler_the_reference_runs(how):
    """In one line, for scans, whole models and int8 weights."""
    program = f"""
import warnings
warnings.simplefilter("always")
if {how == "config"}:
    import numba
    numba.config.DISABLE_JIT = 1
{SCAN}
from hgrn.doctor import examine
from hgrn.modules import quantize_int8
rnn = quantize_int8(hgrn.HGRN(dim=8, depth=1).eval())
with torch.no_grad():
    print(rnn(torch.randn(1, 4, 8))[0].shape)
for finding in examine():
    print(f"{{finding.name}}: {{finding.value}} -> {{finding.remedy}}")
"""
    environment = os.environ | ({"NUMBA_DISABLE_JIT": "1"} if how == "environment" else {})
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning") == 1 and "NUMBA_DISABLE_JIT is set; unset it" in done.stderr
    assert (
        "engine numba (cpu): cannot be used; the slow reference takes its place"
        " -> NUMBA_DISABLE_JIT is set" in done.stdout
    )
