"""What every rank makes of its stretches, for the tests that compare it with one process.

    python -m tests.parallel.processes FOLDER     writes FOLDER/WORLD-RANK.pt for worlds of 2, 3 and
    4

Everything is imported once and every rank is a fork.
"""

import copy
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from hgrn.modules import HGRN
from hgrn.parallel import (
    context_scan,
    last_state,
    local_cu_seqlens,
    local_stretch,
    parallelize,
    scan,
    whole_sequences,
    window,
)
from tests.conftest import ROOT
from tests.parallel.cases import (
    CONVOLUTION,
    DTYPES,
    SCANS,
    STACKS,
    WORLDS,
    StackCase,
    language_model,
    rows_of,
    weights_of,
)
from tests.training.processes import in_ranks

# Where one of these is left out, some case must come out wrong: the rotation of a state by the
# steps that it passes through, the end of a state at a border, the steps that are masked, the
# inputs in front of a convolution.
BREAKS = {
    "no phase": (scan, "_turned", lambda state, steps, theta: state, "extreme"),
    "no border": (scan, "passes", lambda cu_seqlens: True, "packed, on cuts"),
    "masks counted": (
        scan,
        "_counts",
        lambda x, cu_seqlens, mask: x.new_full((x.shape[0],), x.shape[1], dtype=torch.long),
        "extreme, mask, reverse",
    ),
    "no halo": (window, "moved", lambda window, by: torch.zeros_like(window), "convolution"),
}
LENGTHS = tuple({0, 1, 2, 3, 7, 1001, *(case.candidate.shape[1] for case in SCANS.values())})
COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "gather",
    "isend",
    "irecv",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "send",
)


def stretch_of_scan(
    name: str, dtype: torch.dtype, stretches: list[slice], engine: str | None = None
) -> dict[str, Tensor]:
    """This rank's part of a case: states, and gradients where it has them."""
    case = SCANS[name]
    rank = dist.get_rank()
    group = dist.group.WORLD
    mine = stretches[rank]
    rows = rows_of(case, stretches)[rank]
    candidate, forget, lower_bound, theta, initial = [
        None if x is None else x.detach() for x in case.inputs(dtype)
    ]
    # What follows is split over the ranks; all other options go to every rank as they are.
    options = {k: v for k, v in case.options.items() if k not in ("mask", "cu_seqlens")}
    if "mask" in case.options:
        options["mask"] = case.options["mask"][:, mine]
    if "cu_seqlens" in case.options:
        options["cu_seqlens"] = local_cu_seqlens(case.options["cu_seqlens"], group)
        initial = None if initial is None else initial[rows]
    inputs = [candidate[:, mine], forget[:, mine], lower_bound, theta, initial]
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    h, final = context_scan(*leaves, group=group, engine=engine, **options)
    weight, weights = weights_of(case, stretches)
    ((h * weight[:, mine]).sum() + (final * weights[rank]).sum()).backward()
    names = ("candidate", "forget", "lower_bound", "theta", "initial_state")
    grads = {f"gradient of {key}": x.grad for key, x in zip(names, leaves) if x is not None}
    return {"h": h.detach(), "final": final.detach(), **grads}


def stretch_of_stack(
    case: StackCase, dtype: torch.dtype, model: HGRN | None = None
) -> dict[str, Tensor]:
    """This rank's part of a stack's output, state and gradients."""
    group = init_device_mesh("cpu", (dist.get_world_size(),))
    if model is None:
        model = case.model(dtype)
        parallelize(model, group)
    x, weight, where = case.inputs(dtype)
    mine = local_stretch(case.steps, group)
    if "mask" in where:
        where["mask"] = where["mask"][:, mine]
    if "cu_seqlens" in where:
        where["cu_seqlens"] = local_cu_seqlens(where["cu_seqlens"], group)
    x = x[:, mine].clone().requires_grad_()
    y, state = model(x, **where)
    (y * weight[:, mine]).sum().backward()
    kept = where.get("mask", torch.ones(x.shape[:2], dtype=torch.bool))
    final = (
        {}
        if state is None
        else {
            f"state {i} {j}": part.detach() for i, s in enumerate(state) for j, part in enumerate(s)
        }
    )
    grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {
        "y": torch.where(kept[..., None], y.detach(), 0),
        "gradient of x": x.grad,
        **final,
        **grads,
    }


def even(length: int) -> list[slice]:
    """The stretches of all ranks."""
    mine = local_stretch(length, dist.group.WORLD)
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, (mine.start, mine.stop))
    return [slice(*each) for each in found]


def uneven(length: int, world: int) -> list[slice]:
    """Stretches unlike `local_stretch`'s: the first has nearly all, the second nothing."""
    cut = length - length // 5
    return [slice(0, cut), *[slice(cut, cut)] * (world - 2), slice(cut, length)]


@contextmanager
def recorded():
    """Every collective that is called inside, with the bytes that this rank sends."""
    calls = []
    before = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}

    def recorder(name):
        def record(*args, **kwargs):
            sent = args[1] if name.startswith("all_gather") else args[0]
            calls.append((name, sent.numel() * sent.element_size()))
            return before[name](*args, **kwargs)

        return record

    for name in before:
        setattr(dist, name, recorder(name))
    try:
        yield calls
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def messages(steps: int, options: dict) -> dict[str, list]:
    """The collectives of one layer, forward and backward; 2 sequences of 5 channels."""
    torch.manual_seed(0)
    model = HGRN(5, 1, **options)
    parallelize(model, dist.group.WORLD)
    x = torch.randn(2, steps, 5)[:, local_stretch(steps, dist.group.WORLD)].requires_grad_()
    with recorded() as forward:
        y, _ = model(x)
    with recorded() as backward:
        y.sum().backward()
    return {"forward": forward, "backward": backward}


def on_its_own(dtype: torch.dtype) -> Tensor:
    """What a rank makes of the whole sequence while the others wait."""
    case = STACKS["convolution"]
    model = case.model(dtype)
    parallelize(model, dist.group.WORLD)
    with recorded() as calls, whole_sequences(model):
        y, _ = model(case.inputs(dtype)[0])
    assert not calls
    return y.detach()


def two_calls(dtype: torch.dtype) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """A sequence read in two calls with a carried state: both outputs, and the last state."""
    case = STACKS["convolution"]
    group = dist.group.WORLD
    model = case.model(dtype)
    parallelize(model, group)
    x, _, _ = case.inputs(dtype)
    mine = local_stretch(12, group)
    first, state = model(x[:, :12][:, mine])
    second, state = model(x[:, 12:][:, mine], last_state(state, group))
    return first.detach(), second.detach(), [list(layer) for layer in last_state(state, group)]


def step_on_page() -> dict[str, Tensor]:
    """Loss and gradients by the loop in docs/scaling.md."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL
    )
    exec(code, names := {})
    model, ids, borders = language_model()
    parallelize(model, dist.group.WORLD)
    loss = names["loss_of_step"](model, ids, borders, dist.group.WORLD)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def work(folder: Path) -> None:
    """All of one rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    rank = dist.get_rank()
    found = {
        "even": {length: [(each.start, each.stop) for each in even(length)] for length in LENGTHS}
    }
    for name, case in SCANS.items():
        length = case.candidate.shape[1]
        found[name] = {dtype: stretch_of_scan(name, dtype, even(length)) for dtype in DTYPES}
        if "cu_seqlens" not in case.options:
            found[name]["uneven"] = stretch_of_scan(name, torch.float64, uneven(length, world))
        found[name]["reference"] = stretch_of_scan(
            name, torch.float64, even(length), engine="reference"
        )
    for name, case in STACKS.items():
        found[name] = {dtype: stretch_of_stack(case, dtype) for dtype in DTYPES[:2]}
    for name, (room, attribute, broken, case) in BREAKS.items():
        whole = getattr(room, attribute)
        setattr(room, attribute, broken)
        if case in SCANS:
            found[name] = stretch_of_scan(case, torch.float64, even(SCANS[case].candidate.shape[1]))
        else:
            found[name] = stretch_of_stack(STACKS[case], torch.float64)
        setattr(room, attribute, whole)
    found["messages"] = {
        name: [messages(steps, options) for steps in (8, 80)]
        for name, options in {
            "complex": {},
            "real": dict(complex_state=False),
            "both directions": dict(bidirectional=True),
            "convolution": CONVOLUTION,
        }.items()
    }
    found["two calls"], found["on its own"] = two_calls(torch.float64), on_its_own(torch.float64)
    found["page"] = step_on_page()
    if world == 2:
        case = STACKS["convolution, packed"]
        model = case.model(torch.float64)
        parallelize(model, dist.group.WORLD)
        found["copied"] = stretch_of_stack(case, torch.float64, copy.deepcopy(model))
        compiled = torch.compile(case.model(torch.float64), backend="aot_eager")
        parallelize(compiled, dist.group.WORLD)
        found["compiled"] = stretch_of_stack(case, torch.float64, compiled)
    torch.save(found, folder / f"{world}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    for world in WORLDS:
        ended = in_ranks(world, lambda: work(Path(sys.argv[1])))
        assert not any(ended), ended
