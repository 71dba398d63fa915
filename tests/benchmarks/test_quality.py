"""Quality for time: what is finished is not run again, how splits are read, and the schedule in wall time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hgrn.bench import quality
from hgrn.bench.models import LanguageModel, build
from hgrn.bench.quality import QUICK, Contestant, bits_per_byte
from hgrn.bench.results import environment, read_csv, write_csv
from hgrn.errors import UserError

PLAN = replace(
    QUICK,
    search_s=0.05,
    final_s=0.1,
    rates=(1e-3, 3e-3),
    tokens=300,
    contestants=(Contestant("HGRN", "HGRN"), Contestant("GRU", "GRU")),
)


def silent(title):
    return lambda done, total: None


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Token files go to a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    path = tmp_path_factory.mktemp("quality") / "quality.csv"
    return path, quality.run(path, environment(), silent, PLAN)


def test_every_run_leaves_its_readings(finished):
    path, rows = finished
    assert rows == read_csv(path)
    assert [(row["model"], row["run"]) for row in rows] == [
        (model, run) for model in ("HGRN", "GRU") for run in ("search", "search", "final", "final")
    ]
    for row in rows:
        assert 0 < float(row["bits_per_byte"]) < 10 and int(row["steps"]) > 0
        assert row["split"] == ("validation" if row["run"] == "search" else "test")
    searches = {row["lr"]: float(row["bits_per_byte"]) for row in rows[:2]}
    assert rows[2]["lr"] == min(searches, key=searches.get)
    assert float(rows[2]["seconds"]) <= float(rows[3]["seconds"])


def test_finished_runs_are_skipped(finished, monkeypatch):
    path, rows = finished
    monkeypatch.setattr(quality, "_train", lambda *arguments: pytest.fail("trained again"))
    assert quality.run(path, environment(), silent, PLAN) == rows


def test_only_what_is_missing_is_run(finished, tmp_path, monkeypatch):
    path, rows = finished
    write_csv(tmp_path / "quality.csv", rows[:-2])  # as if the last run had been interrupted
    trained = []
    train = quality._train
    monkeypatch.setattr(
        quality, "_train", lambda *arguments: trained.append(arguments[3]) or train(*arguments)
    )
    again = quality.run(tmp_path / "quality.csv", environment(), silent, PLAN)
    assert trained == [PLAN.final_s] and len(again) == len(rows) and again[:-2] == rows[:-2]


def test_a_file_with_other_columns_is_refused(tmp_path):
    old = {"model": "HGRN", "run": "search", "lr": "9", "budget_s": "1"}
    write_csv(tmp_path / "quality.csv", [old])
    with pytest.raises(UserError, match="other columns"):
        quality.run(tmp_path / "quality.csv", environment(), silent, PLAN)


class Text:
    """A split in memory."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def read(self, start, length):
        return self.ids[start : start + length].numpy()


class FirstSeen(LanguageModel):
    """Predicts everything alike, but counts how many tokens it was shown before each one that it predicts."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, ids, state=None):
        return torch.zeros(*ids.shape, 256), None


@pytest.mark.parametrize("length", [2, 5, 8, 9, 13, 64, 65])
@pytest.mark.parametrize("window", [None, 4, 8])
def test_every_byte_but_the_first_counts_once(length, window):
    assert bits_per_byte(FirstSeen(), Text(torch.arange(length)), window) == pytest.approx(8)


def test_windows_give_at_least_half_a_window_of_context(monkeypatch):
    model = FirstSeen()
    context = []
    monkeypatch.setattr(
        model,
        "logits",
        lambda ids: torch.arange(ids.shape[1]).double()[None, :, None].expand(len(ids), -1, 256),
    )
    monkeypatch.setattr(
        quality, "_nats", lambda found, labels: context.extend(found[:, 0].tolist()) or 0.0
    )
    bits_per_byte(model, Text(torch.arange(31)), 8)
    assert context[:8] == list(range(8)) and len(context) == 30 and min(context[8:]) >= 4


def test_reading_in_chunks_is_reading_at_once(monkeypatch):
    ids = torch.randint(256, (200,), generator=torch.Generator().manual_seed(0))
    for kind in ("HGRN", "GRU", "LSTM"):
        model = build(kind, "tiny", 64)
        monkeypatch.setattr(quality, "_CHUNK", 1000)
        whole = bits_per_byte(model, Text(ids), None)
        monkeypatch.setattr(quality, "_CHUNK", 33)
        assert bits_per_byte(model, Text(ids), None) == pytest.approx(whole, rel=1e-5)


def test_the_rate_rises_then_falls_to_the_end_of_the_time():
    rates = [quality.schedule(k / 1000) for k in range(1001)]
    assert max(rates) == pytest.approx(1) and rates.index(max(rates)) == 30
    assert (
        rates[0] > 0
        and rates[-1] == pytest.approx(0.01)
        and quality.schedule(1.2) == pytest.approx(0.01)
    )
    assert all(a >= b for a, b in zip(rates[30:], rates[31:]))


def test_a_model_that_gives_nan_has_infinite_cost():
    model = build("GRU", "tiny", 64)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    assert bits_per_byte(model, Text(torch.arange(40)), None) == math.inf
