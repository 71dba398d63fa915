"""Which engine runs a scan, and what every engine must offer.

An engine is a module with the functions of `Engine`. The reference is one of them: slow, but it
works on every device.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from hgrn.ops.arguments import Scan
from hgrn.ops.gla_arguments import GlaScan


class Engine(Protocol):
    """What an engine computes. Its arguments have been checked, and autograd never sees inside.

    h has x's dtype. States, and gradients of lower_bound, theta and initial_state, have the
    state's. No output may be an input.
    """

    def hgru_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """h `[O, T, I, C]` and the final state `[N, I, C]`."""
        ...

    def hgru_scan_backward(
        self, scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, gate, lower_bound, theta and initial_state; zeros for what was not given.

        h is what `hgru_scan` returned.
        """
        ...

    def hgru_carry(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """The product of the gates `[N, I, D]`, and the final state from zero `[N, I, C]`."""
        ...

    def gated_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """h `[O, T, I, C]` and the final state `[N, I, C]`."""
        ...

    def gated_scan_backward(
        self, scan: Scan, h: Tensor, grad_h: Tensor, grad_final: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, gate, theta and initial_state; zeros for what was not given.

        h is what `gated_scan` returned.
        """
        ...

    # What only some engines have (`has_kernel`). Without one, PyTorch computes the operation.
    def gla_scan(self, scan: GlaScan) -> tuple[Tensor, Tensor]:
        """y `[B, T, H, V]` in v's dtype, and the final state `[N, H, K, V]`."""
        ...

    def gla_scan_backward(
        self, scan: GlaScan, grad_y: Tensor, grad_final: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of q, k, v, log_f and initial_state; zeros for what was not given."""
        ...

    gated_norm: Callable[..., tuple[Tensor, Tensor, Tensor]]
    gated_norm_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    gated_unit: Callable[..., Tensor]
    gated_unit_backward: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    int8_linear: Callable[..., Tensor]
    hgrn2_inputs: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    hgrn2_inputs_backward: Callable[..., tuple[Tensor, Tensor]]


ENGINE_OF_DEVICE = {"cpu": "numba", "cuda": "triton"}
_MODULES = {
    "reference": "hgrn.ops.reference",
    "numba": "hgrn.ops.cpu.launch",
    "triton": "hgrn.ops.triton.launch",
}


@cache
def _load(engine: str) -> Engine:
    # By name and late, because numba and triton take seconds to import.
    return cast(Engine, importlib.import_module(_MODULES[engine]))


def engine_for(engine: str, x: Tensor) -> Engine:
    """The engine of that name; "auto" is the fastest one that works on x's device."""
    return _load(_fastest(x.device.type) if engine == "auto" else engine)


@cache
def why_not(engine: str) -> str | None:
    """Why an engine cannot be used, with the remedy; or None if it can."""
    try:
        _load(engine)
    except ModuleNotFoundError as error:
        return f"install {error.name or engine} for a fast one"
    except (ImportError, OSError) as error:
        # OSError: the package is there, but the system cannot load one of its libraries.
        return str(error)
    return None


def _fastest(device_type: str) -> str:
    engine = ENGINE_OF_DEVICE.get(device_type, "reference")
    return engine if why_not(engine) is None else "reference"


@torch.compiler.assume_constant_result
def has_kernel(engine: str, name: str, device_type: str) -> bool:
    """Whether `engine` has a kernel for an operation that not every engine has.

    With "auto" it is the fastest engine of the device, and the reference's loops are no kernels.
    """
    if engine == "auto":
        engine = _fastest(device_type)
        if engine == "reference":
            return False
    return hasattr(_load(engine), name)


def available_engines(device: str | torch.device = "cpu") -> tuple[str, ...]:
    """The engines that work on `device`, fastest first; "reference" works everywhere."""
    fastest = _fastest(torch.device(device).type)
    return (fastest,) if fastest == "reference" else (fastest, "reference")


@cache
def _warn_once_of_reference(device_type: str) -> None:
    engine = ENGINE_OF_DEVICE.get(device_type)
    remedy = why_not(engine) if engine else f"no fast engine exists for {device_type}"
    warnings.warn(
        f"hgrn runs its reference loop on {device_type}, which is slow: {remedy}", stacklevel=4
    )


@torch.compiler.assume_constant_result
def choose(engine: str | None, device_type: str) -> str:
    """The engine that an operator is asked for: a named one, or "auto", settled when it runs.

    Raises:
        ValueError: the engine is unknown or cannot run on this device.
        ImportError: it cannot be loaded. A named engine never falls back to another.
    """
    if engine is None:
        if device_type != "meta" and _fastest(device_type) == "reference":
            _warn_once_of_reference(device_type)
        return "auto"
    if engine not in _MODULES:
        raise ValueError(
            f"engine must be one of 'reference', 'numba', 'triton' or None, got {engine!r}"
        )
    if engine == "reference" or device_type == "meta":
        return engine
    if ENGINE_OF_DEVICE.get(device_type) != engine:
        raise ValueError(
            f"engine {engine!r} cannot run on {device_type}: numba runs on cpu, triton on cuda; "
            "leave engine=None to choose by device"
        )
    if (problem := why_not(engine)) is not None:
        raise ImportError(
            f"engine {engine!r} was asked for, but cannot be used: {problem}; "
            "engine='reference' always works"
        )
    return engine
