"""The speed check of `hgrn doctor`: its numbers, and what it says of them."""

import pytest

from hgrn.cli import doctor, main, speed


@pytest.fixture
def quick(monkeypatch):
    """A check that takes a moment: its numbers are of the right kind, and mean nothing."""
    monkeypatch.setattr(speed, "_PRODUCT", (8, 16, 16))
    monkeypatch.setattr(speed, "_SCAN", (1, 16, 8))
    monkeypatch.setattr(speed, "_REPEATS", 3)


def test_all_numbers_are_measured(quick):
    seen = []
    found = speed.measure_speed(lambda *progress: seen.append(progress))
    for number in (found.bandwidth, found.products, found.scan, found.backward, found.of_layer):
        assert number > 0
    # Four things are measured, each warmed up once and called three times.
    assert seen == [(done, 16) for done in range(1, 17)]


def test_the_share_of_the_bandwidth(quick, monkeypatch):
    """With the same time for everything, the shares are those of the bytes."""
    same = speed.Times(2.0, 2.0, 2.0, 1)
    monkeypatch.setattr(
        speed, "round_robin", lambda functions, *_, **__: dict.fromkeys(functions, same)
    )
    found = speed.measure_speed()
    moved = 3 * 64 * 2**20
    assert found.bandwidth == pytest.approx(moved / 2e-3)
    assert found.products == pytest.approx(2 * 8 * 16 * 16 / 2e-3)
    # 16 steps of 8 channels in float32: candidate and h have two numbers each, the gate one.
    channels = 16 * 8 * 4
    assert found.scan == pytest.approx(5 * channels / moved)
    assert found.backward == pytest.approx((5 + 10) * channels / moved)


@pytest.mark.parametrize(
    "scan, backward, verdict",
    [(0.7, 0.6, "fast"), (0.7, 0.3, "fair"), (0.3, 0.7, "fair"), (0.1, 0.7, "slow")],
)
def test_the_worse_share_decides(scan, backward, verdict):
    assert speed.Speed(1e10, 1e11, scan, backward, 0.1).verdict.startswith(f"{verdict}: ")


def test_the_report_ends_with_the_verdict(quick, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("hgrn", "here", True)])
    monkeypatch.setattr("hgrn.memory.keep_freed_memory", lambda: True)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "GB/s" in lines[1] and "GFLOP/s" in lines[2]
    assert lines[-1].split()[0] == "verdict" and len(lines) == 7
    assert main(["doctor", "--no-speed"]) == 0
    assert capsys.readouterr().out == "ok hgrn                       here\n"
