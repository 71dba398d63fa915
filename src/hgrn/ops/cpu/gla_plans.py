"""How calls of the kernels of HGRN2 are put together (see `hgrn.ops.cpu.plans`)."""

import torch
from torch import Tensor

from hgrn.ops import addresses
from hgrn.ops.cpu import threads
from hgrn.ops.cpu.gates import ACTIVATIONS
from hgrn.ops.cpu.gla import CHUNK, TILE
from hgrn.ops.cpu.hgrn2 import hgrn2_step
from hgrn.ops.cpu.language import Kernel
from hgrn.ops.cpu.plans import ROWS, Launch, addresses_of, groups, name_of, unit_last_stride
from hgrn.ops.gla_arguments import GlaScan


def gla_launch(
    kernel: Kernel,
    scan: GlaScan,
    dense: dict[str, Tensor],
    strided: dict[str, Tensor] | None = None,
    **states: Tensor | int,
) -> Launch:
    """A kernel of `gla` over all sequences and heads.

    Args:
        dense: contiguous tensors in the dtype of v.
        strided: tensors `[B, T, H, *]` in that dtype besides q, k and v. Strides of the first three
            axes are free.
        states: contiguous tensors in the dtype of states; 0 for what is absent.
    """
    sequences, heads, keys, values = scan.state_shape
    units = sequences * heads
    # A few tasks for each thread, so that none waits long for the last one.
    tasks = min(units, 4 * threads.count())
    bounds = scan.cu_seqlens
    longest = scan.q.shape[1]
    if bounds is not None:
        bounds = bounds.to(torch.int64).contiguous()
        longest = int(bounds.diff().max()) if sequences else 0
    most = max(1, groups(longest, CHUNK))

    def work(*shape: int) -> Tensor:
        return torch.empty(tasks, *shape, dtype=scan.log_f.dtype, device="cpu")

    if "grad_state" in states:
        states |= {
            "points": work(most, values, keys),
            "history": work(CHUNK + 1, TILE, keys),
            "keep": work(CHUNK, keys),
            "sums": work(2, CHUNK, keys),
        }
    else:
        states |= {"keep": work(keys), "total": work(values)}
    dtype = scan.v.dtype
    inputs = {"query": scan.q, "key": scan.k, "value": scan.v} | (strided or {})
    inputs = {name: unit_last_stride(x) for name, x in inputs.items()}
    log_f = unit_last_stride(scan.log_f)
    fields = addresses_of(dtype, dense, states)
    fields["log_f"] = addresses.address_of_rows(log_f, log_f.dtype)
    for name, x in inputs.items():
        fields[name] = addresses.address_of_rows(x, dtype)
    for name, x in (inputs | {"gate": log_f}).items():
        for axis, stride in zip(("batch", "time", "head"), x.stride()):
            fields[f"{name}_{axis}"] = stride
    # The rows that a kernel walks along have a width that is compiled in.
    if "grad_state" in states:
        fields |= {"most": most, "values": values}
        constant = {"keys": keys}
    else:
        fields["keys"] = keys
        constant = {"values": values}
    block = kernel.block(
        tasks,
        steps=scan.q.shape[1],
        heads=heads,
        units=units,
        bounds=addresses.optional(bounds, torch.int64),
        **fields,
    )
    tensors = (bounds, log_f, *inputs.values(), *dense.values(), *states.values())
    size = scan.q.numel() * values
    return Launch(kernel.address(name_of(dtype), **constant), block, size, tensors)


def hgrn2_launch(
    projected: Tensor,
    lower_bound: Tensor | None,
    state: Tensor,
    y: Tensor,
    *,
    scale: float,
    query_act: str,
    candidate_act: str,
) -> Launch:
    """One position of HGRN2; see `Program.hgrn2_step`."""
    sequences, heads, _, values = state.shape
    dtype = y.dtype
    states: dict[str, Tensor | int] = {
        name: y.new_empty(y.shape) for name in ("keep", "key", "query", "value", "total")
    }
    ones = y.new_ones(y.shape[-1])
    states |= {
        "complement": ones if lower_bound is None else ones - lower_bound,
        "scale": y.new_full((), scale),
        "state": state,
    }
    block = hgrn2_step.block(
        sequences * heads,
        heads=heads,
        keys=values,
        projected=addresses.address_of_rows(projected, dtype),
        projected_row=projected.stride(0),
        **addresses_of(dtype, {"y": y}, states),
    )
    address = hgrn2_step.address(
        name_of(dtype),
        values=values,
        query_act=ACTIVATIONS[query_act],
        candidate_act=ACTIVATIONS[candidate_act],
    )
    return Launch(address, block, state.numel(), (projected, y, *states.values()))


def inputs_launch(
    kernel: Kernel,
    rows: dict[str, Tensor],
    dense: dict[str, Tensor],
    query_act: str,
    candidate_act: str,
    **states: Tensor | int,
) -> Launch:
    """A kernel of `hgrn2` over rows of projections.

    Args:
        rows: tensors `[R, *]` in one dtype, `projected` `[R, 3 D]` among them; the stride from row
            to row is free.
        dense: contiguous tensors in that dtype.
        states: contiguous tensors in the dtype of states.
    """
    projected = rows["projected"]
    dtype = projected.dtype
    count = projected.shape[0]
    fields = addresses_of(dtype, dense, states)
    for name, x in rows.items():
        fields[name] = addresses.address_of_rows(x, dtype)
        fields[f"{name}_row"] = x.stride(0)
    block = kernel.block(
        groups(count, ROWS), rows=count, block=ROWS, width=projected.shape[1] // 3, **fields
    )
    address = kernel.address(
        name_of(dtype),
        query_act=ACTIVATIONS[query_act],
        candidate_act=ACTIVATIONS[candidate_act],
    )
    tensors = (*rows.values(), *dense.values(), *states.values())
    return Launch(address, block, projected.numel(), tensors)
