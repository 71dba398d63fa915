"""What is installed, which engines work here, and why the others do not."""

import importlib.metadata
import importlib.util
import platform
import warnings
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Finding:
    """One line of the report: works (None if it is only information), and a remedy where it does not."""

    name: str
    value: str
    works: bool | None = None
    remedy: str = ""


def examine() -> list[Finding]:
    """Looks at the machine, the packages and the engines; compiles and checks a kernel of every engine that is there."""
    import torch

    import hgrn

    findings = [
        Finding("hgrn", hgrn.__version__),
        Finding(
            "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
        ),
        Finding("CPU threads", str(torch.get_num_threads())),
        Finding("CUDA devices", str(torch.cuda.device_count())),
    ]
    findings += [_package(name) for name in _PACKAGES]
    return findings + [
        _engine("numba", "cpu"),
        _engine("triton", "cuda"),
        _compiler_cache(),
        _kept_memory(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        if name == "triton":  # only GPUs need it
            return Finding(name, "not installed (needed for GPUs only)")
        return Finding(name, "not installed", False, f"pip install {name}")


def _engine(engine: str, device: str) -> Finding:
    """Whether an engine runs and agrees with the reference on a small scan."""
    import torch

    from hgrn.ops import hgru_scan
    from hgrn.ops.engines import why_not

    label = f"engine {engine} ({device})"
    if device == "cuda" and not torch.cuda.is_available():
        return Finding(label, "no CUDA device here")
    if (problem := why_not(engine)) is not None:
        if importlib.util.find_spec(engine) is None:
            problem = f"pip install {_requirement(engine)}"
        return Finding(label, "cannot be used; the slow reference takes its place", False, problem)
    generator = torch.Generator().manual_seed(0)
    x, gate, theta = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((2, 50, 64), (2, 50, 32), (32,))
    )
    try:
        h, _ = hgru_scan(x, gate, None, theta, engine=engine)
    except Exception as error:  # whatever a broken installation raises is what the report is for
        return Finding(
            label, f"fails: {error}", False, f"reinstall {engine} as constraints.txt has it"
        )
    expected, _ = hgru_scan(x.double(), gate.double(), None, theta.double(), engine="reference")
    off = (h - expected).abs().max().item()
    return Finding(
        label, f"works, {off:.1e} from the float64 reference", off < 1e-5, "please report this"
    )


def _requirement(package: str) -> str:
    """What pip is to install: the version that PyTorch asks for, where it asks for one.

    Another triton than PyTorch's own breaks `torch.compile`.
    """
    for requirement in importlib.metadata.requires("torch") or ():
        wanted = requirement.split(";")[0].strip()
        if wanted.startswith(f"{package}=="):
            return wanted
    return package


def _compiler_cache() -> Finding:
    from hgrn.ops.engines import why_not

    label = "compiled kernels"
    again = "compiled again by every process"
    if why_not("numba") is not None:
        return Finding(label, "none, without the engine numba")
    from hgrn.ops.cpu import cache, language

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

    return Finding(
        "malloc keeps freed memory",
        "when hgrn trains" if can_keep_freed_memory() else "not on this system",
    )
