"""Quality for time: what is finished is not run again, how splits are read, and how runs end."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.cpu import quality
from benchmarks.cpu.models import build
from benchmarks.cpu.quality import COLUMNS, KEY, QUICK, Contestant, Run, bits_per_byte
from benchmarks.rows import Results, read_csv, write_csv
from hgrn.errors import UserError
from hgrn.training.tasks import language

PLAN = replace(
    QUICK,
    search_s=0.05,
    final_s=0.1,
    rates=(1e-3, 3e-3),
    tokens=300,
    contestants=(Contestant("HGRN", "HGRN"), Contestant("GRU", "GRU")),
)


def results_in(folder):
    return Results(folder / "quality.csv", COLUMNS, KEY)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Token files go to a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    results = results_in(tmp_path_factory.mktemp("quality"))
    quality.measure(results, PLAN)
    return results.path, results.rows()


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
    monkeypatch.setattr(quality, "train", lambda *_, **__: pytest.fail("trained again"))
    quality.measure(results_in(path.parent), PLAN)
    assert read_csv(path) == rows


def test_only_what_is_missing_is_run(finished, tmp_path, monkeypatch):
    _, rows = finished
    # As if the last run had been stopped.
    write_csv(tmp_path / "quality.csv", rows[0], rows[:-2])
    trained = []
    train = quality.train

    def noted(recipe, *arguments, **options):
        trained.append(recipe.optimizer.lr)
        return train(recipe, *arguments, **options)

    monkeypatch.setattr(quality, "train", noted)
    results = results_in(tmp_path)
    quality.measure(results, PLAN)
    again = results.rows()
    assert trained == [float(rows[-1]["lr"])]
    assert len(again) == len(rows) and again[:-2] == rows[:-2]


def test_a_file_with_other_columns_is_refused(tmp_path):
    old = {"model": "HGRN", "run": "search", "lr": "9", "budget_s": "1"}
    write_csv(tmp_path / "quality.csv", old, [old])
    with pytest.raises(UserError, match="other columns"):
        results_in(tmp_path)


class Text:
    """A split in memory, one byte a token."""

    vocab_size = 256
    first_token_bytes = 1

    def __init__(self, ids):
        self.ids = ids
        self.num_bytes = len(ids)

    def __len__(self):
        return len(self.ids)

    def read(self, start, length):
        return self.ids[start : start + length].numpy()


class Even(nn.Module):
    """Finds every byte equally likely."""

    class config:
        vocab_size = 256

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        return CausalLMOutputWithPast(logits=torch.zeros(*input_ids.shape, 256))


class Places(Even):
    """Gives the place in its window as the logit of every token."""

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        places = torch.arange(input_ids.shape[1]).float()[None, :, None]
        return CausalLMOutputWithPast(logits=places.expand(len(input_ids), -1, 256))


@pytest.mark.parametrize("length", [2, 5, 8, 9, 13, 64, 65])
@pytest.mark.parametrize("window", [None, 4, 8])
def test_every_byte_but_the_first_counts_once(length, window):
    assert bits_per_byte(Even(), Text(torch.arange(length)), window) == pytest.approx(8)


@pytest.mark.parametrize("chunk", [5, 8, 13, 30])
def test_windows_give_at_least_half_a_window_of_context(chunk):
    reader = quality.InWindows(Places(), 8)
    state = None
    context = []
    for ids in torch.arange(30).split(chunk):
        output = reader(ids[None], state)
        state = output.past_key_values
        assert output.logits.shape[1] == len(ids)
        context += output.logits[0, :, 0].tolist()
    first = min(8, chunk)
    assert context[:first] == list(range(first)) and len(context) == 30
    assert min(context[first:]) >= 4


def test_reading_in_chunks_is_reading_at_once(monkeypatch):
    ids = torch.randint(256, (200,), generator=torch.Generator().manual_seed(0))
    for kind in ("HGRN", "GRU", "LSTM"):
        model = build(kind, "tiny", 64)
        whole = bits_per_byte(model, Text(ids), None)
        with monkeypatch.context() as patch:
            patch.setattr(language, "CHUNK_TOKENS", 33)
            assert bits_per_byte(model, Text(ids), None) == pytest.approx(whole, rel=1e-5)


def test_the_steps_fit_into_the_time_and_the_rate_falls_to_their_end(monkeypatch):
    monkeypatch.setattr(quality, "_seconds_per_step", lambda contestant, budget: 0.3)
    run = Run(Contestant("GRU", "GRU"), "final", 1e-2, 60, (0.5, 1.0), "test")
    recipe = quality._recipe(run)
    assert recipe.training.steps == 200 and recipe.schedule.warmup_steps == 6
    assert recipe.schedule.name == "cosine" and recipe.schedule.total_steps is None
    assert recipe.schedule.min_lr == pytest.approx(1e-4)


def test_a_model_that_gives_nan_has_infinite_cost():
    model = build("GRU", "tiny", 64)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    assert bits_per_byte(model, Text(torch.arange(40)), None) == math.inf
    assert model.training


def test_a_run_that_diverges_costs_infinity_where_it_has_not_read(cache, monkeypatch):
    monkeypatch.setattr(quality, "_seconds_per_step", lambda contestant, budget: 0.25)
    calls = []

    def loss_of(model, ids, labels):
        calls.append(ids)
        scale = math.nan if len(calls) == 3 else 1.0
        return scale * next(model.parameters()).sum()

    monkeypatch.setattr(quality, "loss_of", loss_of)
    run = Run(Contestant("GRU", "GRU"), "final", 1e-3, 1, (0.5, 1.0), "test")
    first, second = quality._readings(run, 300, lambda done, total: None)
    assert (first["steps"], second["steps"]) == ("2", "4")
    assert math.isfinite(float(first["bits_per_byte"])) and second["bits_per_byte"] == "inf"
