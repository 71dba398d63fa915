"""`gla_scan` on a GPU by flash-linear-attention, where it is installed and knows the case.

Its kernels are made for tensor cores and kept by many; ours would have to beat them first. Nobody
here has run this on a GPU: our test hands it a stand-in for the package, which checks what is
passed on. Their own tests allow a relative error of 5e-3 (`tests/ops/test_gla.py` there). Where
float32 has to be exact, `engine="triton"` asks for the products.
"""

import importlib
import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hgrn.ops.dispatch import is_transformed
from hgrn.ops.gla_arguments import GlaScan

log = logging.getLogger(__name__)


@cache
def _package() -> ModuleType | str:
    """Their operators, or why they cannot be imported."""
    try:
        return importlib.import_module("fla.ops.gla")
    except (ImportError, OSError, RuntimeError) as error:
        return f"flash-linear-attention is not there ({error})"


def why_not(scan: GlaScan) -> str | None:
    """Why their operator does not compute this scan; None if it does."""
    package = _package()
    if isinstance(package, str):
        return package
    if scan.q.dtype == torch.float64:
        return "flash-linear-attention has no float64"
    if is_transformed():
        return "flash-linear-attention has no forward mode, and no torch.func"
    if scan.q.shape[1] == 0 or not scan.q.numel():
        return "flash-linear-attention wants at least one position"
    if scan.cu_seqlens is not None and not bool((scan.cu_seqlens.diff() > 0).all()):
        return "flash-linear-attention wants no empty sequences"
    return None


@cache
def tell(reason: str) -> None:
    """Say once why the products of matrices are used in place of their kernels."""
    log.info("gla_scan is computed as products of matrices: %s", reason)


def gla_scan(scan: GlaScan) -> tuple[Tensor, Tensor]:
    """y like v, and the final state `[N, H, K, V]`; arguments as `hgrn.ops.gla_scan`."""
    package = _package()
    assert not isinstance(package, str)
    cu_seqlens = None if scan.cu_seqlens is None else scan.cu_seqlens.long()
    return package.chunk_gla(
        scan.q,
        scan.k,
        scan.v,
        scan.log_f,
        scale=1.0,
        initial_state=scan.initial_state,
        output_final_state=True,
        cu_seqlens=cu_seqlens,
    )
