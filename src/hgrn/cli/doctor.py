"""`hgrn doctor`: say what is installed, which engines work here and why the others do not, and how
fast this machine is."""

import argparse
from typing import NamedTuple

from hgrn.cli.options import Parser

ABOUT = "say what is installed, which engines work here, and how fast the machine is"
MORE = """\
The speed check takes about ten seconds. A scan does little work on many numbers, so memory limits
it: a good scan takes hardly longer than reading and writing its numbers would.

examples:
  hgrn doctor
  hgrn doctor --no-speed"""

_PACKAGES = (
    "torch",
    "numba",
    "triton",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "matplotlib",
    "tensorboard",
)
_WIDTH = 26  # of the names in the report


class Finding(NamedTuple):
    """One line of the report. works: None if it is only information. remedy: where it does not."""

    name: str
    value: str
    works: bool | None = None
    remedy: str = ""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--no-speed", action="store_true", help="leave out the speed check")


def run(arguments: argparse.Namespace) -> int:
    findings = examine()
    marks = {True: "ok", False: "!!", None: "  "}
    for finding in findings:
        print(f"{marks[finding.works]} {finding.name:{_WIDTH}} {finding.value}")
        if finding.works is False:
            print(f"   {'':{_WIDTH}} -> {finding.remedy}")
    # The machine is measured last, so that nobody waits for what is known at once.
    if not arguments.no_speed:
        for finding in speed():
            print(f"   {finding.name:{_WIDTH}} {finding.value}", flush=True)
    return 0 if all(finding.works is not False for finding in findings) else 1


def speed() -> list[Finding]:
    """How fast memory, matrix products and the scan are on the CPU, and a verdict in words."""
    from hgrn.cli.speed import measure_speed
    from hgrn.memory import keep_freed_memory
    from hgrn.progress import Bar

    # As `hgrn train` does, so that the numbers are those of training.
    keep_freed_memory()
    with Bar("measuring speed") as bar:
        found = measure_speed(on_call=bar)
    return [
        Finding("memory", f"{found.bandwidth / 1e9:.1f} GB/s read and written"),
        Finding("matrix products", f"{found.products / 1e9:.0f} GFLOP/s in float32"),
        Finding("scan", f"{found.scan:.0%} of memory's speed"),
        Finding("scan and gradients", f"{found.backward:.0%} of memory's speed"),
        Finding("scan in its layer", f"{found.of_layer:.0%} of the time of the matrix products"),
        Finding("verdict", found.verdict),
    ]


def examine() -> list[Finding]:
    """Look at the machine and the packages; run and check every engine that is there."""
    import platform

    import torch

    import hgrn

    return [
        Finding("hgrn", hgrn.__version__),
        Finding(
            "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
        ),
        Finding("CPU threads", str(torch.get_num_threads())),
        Finding("CUDA devices", str(torch.cuda.device_count())),
        *map(_package, _PACKAGES),
        _engine("numba", "cpu"),
        _engine("triton", "cuda"),
        _compiler_cache(),
        _kept_memory(),
    ]


def _package(name: str) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding(name, version(name), True)
    except PackageNotFoundError:
        # A machine without a GPU has no use for it.
        if name == "triton":
            return Finding(name, "not installed (needed for GPUs only)")
        return Finding(name, "not installed", False, f"pip install {name}")


def _engine(engine: str, device: str) -> Finding:
    """Whether an engine runs and agrees with the reference on a small scan."""
    from importlib.util import find_spec

    import torch

    from hgrn.ops import hgru_scan
    from hgrn.ops.engines import why_not

    label = f"engine {engine} ({device})"
    if device == "cuda" and not torch.cuda.is_available():
        return Finding(label, "no CUDA device here")
    if (problem := why_not(engine)) is not None:
        if find_spec(engine) is None:
            problem = f"pip install {_requirement(engine)}"
        return Finding(label, "cannot be used; the slow reference takes its place", False, problem)
    # A small scan of a complex state, whose answer in float64 the reference knows.
    generator = torch.Generator().manual_seed(0)
    candidate, forget, theta = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((2, 50, 64), (2, 50, 32), (32,))
    )
    try:
        h, _ = hgru_scan(candidate, forget, None, theta, engine=engine)
    except Exception as error:
        # A broken installation may raise anything, and to say so is what the report is for.
        return Finding(
            label, f"fails: {error}", False, f"reinstall {engine} as constraints.txt has it"
        )
    expected, _ = hgru_scan(
        candidate.double(), forget.double(), None, theta.double(), engine="reference"
    )
    off = (h - expected).abs().max().item()
    return Finding(
        label, f"works, {off:.1e} from the float64 reference", off < 1e-5, "please report this"
    )


def _requirement(package: str) -> str:
    """What pip is to install: the version that PyTorch asks for, where it asks for one.

    Another triton than PyTorch's own breaks `torch.compile`.
    """
    from importlib.metadata import requires

    for requirement in requires("torch") or ():
        wanted = requirement.split(";")[0].strip()
        if wanted.startswith(f"{package}=="):
            return wanted
    return package


def _compiler_cache() -> Finding:
    """Whether compiled CPU kernels are kept on disk, so that the next process need not compile."""
    import warnings

    from hgrn.ops.engines import why_not

    label = "compiled kernels"
    again = "compiled again by every process"
    if why_not("numba") is not None:
        return Finding(label, "none, without the engine numba")
    from hgrn.ops.cpu import cache, language

    # The search warns of folders that cannot be written; the report says it in its own words.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = language.cache_folder()
    if folder is None:
        return Finding(
            label,
            f"{again}: no folder for them is writable",
            False,
            "set NUMBA_CACHE_DIR to a writable folder",
        )
    if (problem := cache.problem_of(folder)) is not None:
        return Finding(label, f"{again}: {folder}: {problem}", False, cache.REMEDY)
    return Finding(label, f"kept in {folder}", True)


def _kept_memory() -> Finding:
    from hgrn.memory import can_keep_freed_memory

    kept = "when hgrn trains" if can_keep_freed_memory() else "not on this system"
    return Finding("malloc keeps freed memory", kept)
