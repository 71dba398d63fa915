"""That a wrong kernel gets no number, what a case counts, and that peers compute the same thing."""

import pytest
import torch

from benchmarks.cpu import scan_peers, scans
from benchmarks.scan_cases import GivenOutputs, ScanCase, check
from hgrn.errors import UserError
from hgrn.ops.cpu import launch
from tests.tolerances import assert_close

SHAPE = (2, 20, 16)


@pytest.mark.parametrize("case", scans.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_our_kernels_pass_their_check(case, dtype):
    check(case, SHAPE, dtype)


@pytest.mark.parametrize(
    "kernel, gradient", [("hgru_scan", False), ("hgru_scan_backward", True), ("gated_scan", False)]
)
def test_a_wrong_kernel_is_refused(monkeypatch, kernel, gradient):
    right = getattr(launch, kernel)

    def wrong(*arguments):
        first, *others = right(*arguments)
        return first + 1e-3 * first.abs().max(), *others

    monkeypatch.setattr(launch, kernel, wrong)
    with pytest.raises(
        UserError, match=rf"{kernel.removesuffix('_backward')} real.*in float32 differs .* by 0.001"
    ):
        check(ScanCase(kernel.removesuffix("_backward"), False, gradient), SHAPE, torch.float32)


def test_a_kernel_that_gives_nan_is_refused(monkeypatch):
    right = launch.hgru_scan
    monkeypatch.setattr(
        launch,
        "hgru_scan",
        lambda *arguments: tuple(part * float("nan") for part in right(*arguments)),
    )
    with pytest.raises(UserError, match="nan of the largest"):
        check(ScanCase("hgru_scan", True, False), SHAPE, torch.float32)


def test_nothing_is_measured_after_a_refusal(monkeypatch):
    right = launch.hgru_scan
    monkeypatch.setattr(
        launch, "hgru_scan", lambda *arguments: tuple(2 * part for part in right(*arguments))
    )
    with pytest.raises(UserError, match="no time of it is reported"):
        scans.parts(quick=True)[0].measure(lambda done, total: None)


def test_a_kernel_that_is_wrong_only_in_used_memory_is_refused(monkeypatch):
    right = launch.hgru_scan
    seen = set()

    def wrong_where_it_was_before(*arguments):
        h, state = right(*arguments)
        again = h.data_ptr() in seen
        seen.add(h.data_ptr())
        return h + 1 if again else h, state

    monkeypatch.setattr(launch, "hgru_scan", wrong_where_it_was_before)
    with pytest.raises(UserError, match=r"\(kernel\), h"):
        check(ScanCase("hgru_scan", False, False), SHAPE, torch.float32)


def test_given_outputs_are_the_same_memory_in_every_call():
    case = ScanCase("hgru_scan", False, True)
    given = GivenOutputs()
    call = case.call(case.inputs(SHAPE, torch.float32))
    allocate = launch._empty
    first = [tensor.data_ptr() for tensor in given.wrap(call)()][
        :3
    ]  # h and the gradients of candidate and forget
    second = [tensor.data_ptr() for tensor in given.wrap(call)()][:3]
    assert first == second and len(set(first)) == 3
    assert launch._empty is allocate


@pytest.mark.parametrize(
    "kernel, complex_state, backward, numbers",
    [
        ("hgru_scan", False, False, 3),
        ("hgru_scan", False, True, 9),
        ("hgru_scan", True, False, 5),
        ("hgru_scan", True, True, 15),
    ],
)
def test_minimal_bytes(kernel, complex_state, backward, numbers):
    assert (
        ScanCase(kernel, complex_state, backward).minimal_bytes((2, 3, 4), torch.float16)
        == numbers * 24 * 2
    )


@pytest.mark.parametrize("peer", scan_peers.PEERS, ids=lambda peer: peer.name)
def test_peers_compute_the_same_recurrence(peer):
    generator = torch.Generator().manual_seed(0)
    x, grad, log_f = (torch.randn(2, 19, 4, generator=generator) for _ in range(3))
    a = torch.sigmoid(log_f)
    expected = scan_peers._loop(a.double(), x.double(), grad.double()).run()
    try:
        prepared = peer.prepare(a, x, grad)
    except ImportError:
        pytest.skip(f"{peer.package} is not installed")
    for name, actual, wanted in zip(
        ("h", "gradient of a", "gradient of x"), prepared.run(), expected, strict=True
    ):
        assert_close(prepared.back(actual), wanted, torch.float32, name)
