"""A sequence over several ranks against one process; processes.py makes the ranks."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from hgrn.modules import HGRN, HGRU, HGRU2d
from hgrn.ops import hgru_scan
from hgrn.parallel import (
    context_scan,
    last_state,
    local_cu_seqlens,
    local_stretch,
    next_labels,
    parallelize,
)
from tests.conftest import ROOT
from tests.parallel.cases import (
    DTYPES,
    SCANS,
    STACKS,
    WORLDS,
    language_model,
    rows_of,
    whole_scan,
    whole_stack,
)
from tests.parallel.processes import BREAKS, LENGTHS, uneven
from tests.tolerances import assert_close


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """For each size of the world what each rank found."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "tests.parallel.processes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in WORLDS
    }


def joined_scan(case, parts, stretches):
    """What the ranks found, put together as one process would have it."""
    whole = {
        key: torch.cat([part[key] for part in parts], dim=1)
        for key in ("h", "gradient of candidate", "gradient of forget")
    }
    whole["finals"] = [part["final"] for part in parts]
    for key in ("gradient of lower_bound", "gradient of theta"):
        if key in parts[0]:
            whole[key] = sum(part[key] for part in parts)
    key = "gradient of initial_state"
    if key in parts[0]:
        whole[key] = torch.zeros_like(case.initial_state, dtype=parts[0][key].dtype)
        rows = (
            rows_of(case, stretches)
            if "cu_seqlens" in case.options
            else [list(range(len(case.initial_state)))] * len(parts)
        )
        for part, row in zip(parts, rows, strict=True):
            whole[key].index_add_(0, torch.tensor(row), part[key])
    return whole


def check(found, expected, dtype):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        several = isinstance(value, list)
        for one, other in zip(found[key], value, strict=True) if several else [(found[key], value)]:
            assert_close(one, other, dtype, key)


def stretches_of(ranks, world, length):
    return [slice(*each) for each in ranks[world][0]["even"][length]]


def check_scan(ranks, world, name, key, dtype, stretches=None):
    case = SCANS[name]
    stretches = stretches or stretches_of(ranks, world, case.candidate.shape[1])
    found = joined_scan(case, [rank[name][key] for rank in ranks[world]], stretches)
    check(found, whole_scan(case, stretches, dtype), dtype)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SCANS)
def test_scans_and_all_their_gradients(ranks, name, dtype, world):
    check_scan(ranks, world, name, dtype, dtype)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SCANS)
def test_the_reference_engine(ranks, name, world):
    check_scan(ranks, world, name, "reference", torch.float64)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "name", [name for name, case in SCANS.items() if "cu_seqlens" not in case.options]
)
def test_stretches_may_have_any_length(ranks, name, world):
    stretches = uneven(SCANS[name].candidate.shape[1], world)
    check_scan(ranks, world, name, "uneven", torch.float64, stretches)


def joined_stack(parts):
    """As `joined_scan`, with the state of the sequence: the last rank's."""
    found = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if key in ("y", "gradient of x"):
            found[key] = torch.cat(values, dim=1)
        else:
            found[key] = sum(values) if key.startswith("gradient") else values[-1]
    return found


def check_stack(case, parts, dtype):
    found = joined_stack(parts)
    expected = whole_stack(case, dtype)
    if case.lengths is not None:
        for states in (found, expected):
            states |= {key: value[-1:] for key, value in states.items() if key.startswith("state")}
    check(found, expected, dtype)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", STACKS)
def test_stacks_and_all_their_gradients(ranks, name, dtype, world):
    check_stack(STACKS[name], [rank[name][dtype] for rank in ranks[world]], dtype)


@pytest.mark.parametrize(
    "world", WORLDS[1:]
)  # of two ranks, no state passes through a whole stretch
@pytest.mark.parametrize("broken", BREAKS)
def test_these_tests_can_fail(ranks, broken, world):
    *_, name = BREAKS[broken]
    parts = [rank[broken] for rank in ranks[world]]
    with pytest.raises(AssertionError, match="relative error"):
        if name in STACKS:
            check_stack(STACKS[name], parts, torch.bfloat16)
        else:
            stretches = stretches_of(ranks, world, SCANS[name].candidate.shape[1])
            check(
                joined_scan(SCANS[name], parts, stretches),
                whole_scan(SCANS[name], stretches, torch.float64),
                torch.bfloat16,
            )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["complex", "real", "both directions", "convolution"])
def test_one_all_gather_each_way_whatever_the_length(ranks, name, world):
    batch = 2
    channels = 5
    state = 5 if name == "real" else 10
    directions = 2 if name == "both directions" else 1
    forward = [4 * batch * (channels + 1 + directions * state)]
    backward = [4 * batch * directions * state]
    if name == "convolution":  # three inputs of candidate and forget gate, and how many have come
        forward = [4 * batch * (3 * (state + channels) + 1), *forward]
        backward = [*backward, 4 * batch * 3 * (state + channels)]
    for rank in ranks[world]:
        short, long = rank["messages"][name]
        assert short == long
        assert short["forward"] == [("all_gather", size) for size in forward]
        assert short["backward"] == [("all_gather", size) for size in backward]


@pytest.mark.parametrize("world", WORLDS)
def test_a_sequence_goes_on_in_another_call(ranks, world):
    expected = whole_stack(STACKS["convolution"], torch.float64)
    halves = [
        torch.cat([rank["two calls"][half] for rank in ranks[world]], dim=1) for half in (0, 1)
    ]
    assert_close(torch.cat(halves, dim=1), expected["y"])
    for rank in ranks[world]:
        for index, layer in enumerate(rank["two calls"][2]):
            for place, part in enumerate(layer):
                assert_close(part, expected[f"state {index} {place}"])


@pytest.mark.parametrize("world", WORLDS)
def test_the_loop_on_the_page_about_scaling(ranks, world):
    model, ids, borders = language_model()
    loss = model(input_ids=ids, labels=ids, cu_seqlens=borders).loss
    loss.backward()
    expected = {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    found = {key: sum(rank["page"][key] for rank in ranks[world]) for key in expected}
    check(found, expected, torch.float32)  # in which the models compute their losses


@pytest.mark.parametrize("world", WORLDS)
def test_whole_sequences_are_read_without_the_other_ranks(ranks, world):
    expected = whole_stack(STACKS["convolution"], torch.float64)
    for rank in ranks[world]:
        assert_close(rank["on its own"], expected["y"])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_local_stretches_tile_the_time_axis(ranks, world, length):
    stretches = stretches_of(ranks, world, length)
    assert [stretch.start for stretch in stretches] == [
        0,
        *(stretch.stop for stretch in stretches[:-1]),
    ]
    assert stretches[-1].stop == length
    sizes = [stretch.stop - stretch.start for stretch in stretches]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("form", ["copied", "compiled"])
def test_copies_and_compiled_models_read_stretches_too(ranks, form):
    parts = [
        {key.replace("_orig_mod.", ""): value for key, value in rank[form].items()}
        for rank in ranks[2]
    ]
    check_stack(STACKS["convolution, packed"], parts, torch.float64)


def test_labels_are_shifted_before_they_are_split():
    labels = torch.arange(8)[None]
    assert next_labels(labels).tolist() == [[1, 2, 3, 4, 5, 6, 7, -100]]
    borders = torch.tensor([0, 0, 3, 4, 4, 8, 8])
    assert next_labels(labels, borders).tolist() == [[1, 2, -100, -100, 5, 6, 7, -100]]
    assert next_labels(labels[:, :0]).shape == (1, 0)
    assert next_labels(labels[:, :1], torch.tensor([0, 1])).tolist() == [[-100]]


@pytest.fixture
def alone():
    """A group of one rank, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_rank_is_one_process(alone):
    rnn = HGRN(4, 2, conv_size=4)
    x = torch.randn(1, 9, 4)
    borders = torch.tensor([0, 4, 4, 9, 9])
    expected, _ = rnn(x, cu_seqlens=borders)
    parallelize(rnn, alone)
    assert local_stretch(9, alone) == slice(0, 9)
    assert torch.equal(local_cu_seqlens(borders, alone), borders)
    assert torch.equal(rnn(x, cu_seqlens=borders)[0], expected)
    candidate = torch.randn(1, 9, 8)
    forget = torch.randn(1, 9, 4)
    theta = torch.ones(4)
    h, _ = context_scan(candidate, forget, None, theta, group=alone, reverse=True)
    assert torch.equal(h, hgru_scan(candidate, forget, None, theta, reverse=True)[0])
    state = rnn(x)[1]
    assert last_state(state, alone) is state


def test_what_cannot_be_split_is_refused(alone):
    with pytest.raises(ValueError, match="HGRU2d scans a grid"):
        parallelize(torch.nn.ModuleList([HGRU(4), HGRU2d(4)]), alone)
    with pytest.raises(ValueError, match="must have an HGRU inside, got Linear"):
        parallelize(torch.nn.Linear(2, 2), alone)
    with pytest.raises(
        TypeError, match="group must be a ProcessGroup or a DeviceMesh of one dimension, got str"
    ):
        parallelize(HGRU(4), "context")
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "context"))
    with pytest.raises(ValueError, match="got a mesh of 2"):
        parallelize(HGRU(4), mesh)
    parallelize(HGRU(4), mesh["context"])
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        local_stretch(-1, alone)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0, never fall"):
        local_cu_seqlens(torch.tensor([0, 5, 3, 8]), alone)
    with pytest.raises(ValueError, match="boundaries .* of at least one sequence, got shape"):
        local_cu_seqlens(torch.tensor([0]), alone)
