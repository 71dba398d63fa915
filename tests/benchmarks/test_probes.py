"""Questions about memory, copying and parity, the models that are asked, and their commands."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.probes import command, memory_command
from benchmarks.probes.classics import Attention, Recurrent
from benchmarks.probes.command import COPYING, PARITY, Probe
from benchmarks.probes.memory import CANDIDATES, DEPTH, kept, reach, spread, unbounded
from benchmarks.probes.memory_command import best_rate
from benchmarks.probes.models import Answerer
from benchmarks.probes.questions import DELAYED, SELECTIVE, Questions
from benchmarks.probes.training import right_answers, until_solved
from benchmarks.rows import read_csv
from hgrn.modules import HGRN, HGRU

ASKS = 16  # the token of a question


def silent(done: int, of: int | None) -> None:
    """Shows no progress."""


def test_delayed_recall_asks_for_the_first_token_and_all_else_is_noise():
    asked = DELAYED.draw(20, 5, (0,))
    assert asked.tokens.shape == (5, 21) and asked.places.tolist() == [[20]] * 5
    assert torch.equal(asked.tokens[:, :1], asked.values)
    noise = asked.tokens[:, 1:20]
    assert noise.min() >= 8 and noise.max() < ASKS and (asked.tokens[:, 20] == ASKS).all()


def test_selective_copying_asks_for_four_symbols_in_their_order():
    asked = SELECTIVE.draw(30, 50, (0,))
    assert asked.tokens.shape == (50, 34) and asked.places[0].tolist() == [30, 31, 32, 33]
    for tokens, values in zip(asked.tokens.tolist(), asked.values.tolist()):
        assert [token for token in tokens if token < 8] == values
        assert all(token >= 8 for token in tokens[16:30]) and tokens[30:] == [ASKS] * 4
    # The places are not always the same.
    assert len({tuple((row < 8).tolist()) for row in asked.tokens}) > 40


def test_copying_and_parity_know_their_answers():
    asked = COPYING.draw(7, 3, (1,))
    assert torch.equal(asked.tokens[:, :7], asked.values) and (asked.tokens[:, 7:] == ASKS).all()
    assert asked.places.tolist() == [list(range(7, 14))] * 3
    asked = PARITY.draw(9, 4, (1,))
    for bits, answers in zip(asked.tokens.tolist(), asked.values.tolist()):
        assert answers == [sum(bits[: end + 1]) % 2 for end in range(9)]


def test_a_test_of_parity_counts_the_last_answers():
    probe = Probe(PARITY, 8, counted=8)
    asked = probe.tested_on(4, 2)
    assert asked.tokens.shape == (2, 32) and asked.places.tolist() == [list(range(24, 32))] * 2
    draw = Probe(COPYING, 16, shorter=True).trained_on(0, 2)
    lengths = {draw(number).values.shape[1] for number in range(200)}
    assert lengths == set(range(1, 17))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_recurrent_peer_has_at_most_the_parameters_of_an_hgru(kind):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert 0.95 * count(HGRU(32)) < count(Recurrent(32, kind=kind)) <= count(HGRU(32))


def test_gate_biases_are_set_for_a_distance():
    torch.manual_seed(0)
    for kind, gates in ((nn.GRU, 3), (nn.LSTM, 4)):
        rnn = Recurrent(32, kind=kind, horizon=1000).rnn
        input_gate, keeps, *_ = cast(torch.Tensor, rnn.bias_ih_l0).chunk(gates)
        # The share that is kept, sigmoid(bias), is that of horizons from 2 to 1000.
        horizons = 1 / (1 - keeps.double().sigmoid())
        assert horizons.min() >= 2 and 700 < horizons.max() <= 1000
        assert kind is nn.GRU or torch.equal(input_gate, -keeps)
        assert not cast(torch.Tensor, rnn.bias_hh_l0).any()


def test_attention_knows_distances_and_not_positions():
    torch.manual_seed(0)
    attention = Attention(8, head_dim=4).double()
    x = torch.randn(1, 6, 8, dtype=torch.double)
    y = attention.mix(x)
    earlier = x.clone()
    earlier[:, 4:] = 0
    torch.testing.assert_close(attention.mix(earlier)[:, :4], y[:, :4])
    # Turned by the same angle, query and key have the same product.
    query, key = torch.randn(2, 1, 1, 5, 4, dtype=torch.double)
    near, far = (start + torch.arange(5)[:, None] * attention.angle.double() for start in (0, 7))
    scores = [
        attention._rotated(query, turns) @ attention._rotated(key, turns).mT
        for turns in (near, far)
    ]
    torch.testing.assert_close(*scores)


def test_spread_bounds_have_horizons_from_one_to_the_distance():
    bounds = torch.stack([bound[0] for bound in spread(1024).lower_bounds()]).double()
    horizons = 1 / (1 - bounds.detach())
    expected = torch.tensor([4.0**layer for layer in range(DEPTH)], dtype=torch.double)
    torch.testing.assert_close(horizons, expected, rtol=1e-3, atol=0)


def test_a_gradient_reaches_as_far_as_was_calculated():
    torch.manual_seed(0)
    for build in (unbounded, spread):
        stack = build(64)
        found = reach(stack, 40, 4)
        # Far away the last layer alone decides how fast the gradient shrinks.
        slope = (found[35] / found[20]).log()
        expected = (kept(stack, 40)[35] / kept(stack, 40)[20]).log()
        assert abs(slope - expected) < 0.35 * abs(expected) + 1.5
    assert reach(unbounded(64), 40, 4)[35] < 1e-4 * reach(spread(64), 40, 4)[35]


def test_a_run_ends_when_its_task_is_solved_or_its_steps_are_done():
    torch.manual_seed(0)
    model = Answerer(HGRN(16, 1), ASKS + 1, slice(0, 8))

    def draw(number: int) -> Questions:
        return DELAYED.draw(1, 64, (0, number))

    end = until_solved(model, draw, 1e-2, 1000, silent)
    assert end.solved and 4 <= end.steps < 1000
    assert right_answers(model, DELAYED.draw(1, 100, (1,))).double().mean() > 0.95
    # Pure noise is never solved.
    end = until_solved(model, lambda number: DELAYED.draw(50, 4, (number,)), 1e-3, 5, silent)
    assert not end.solved and end.steps == 5


def test_the_best_rate_is_the_most_accurate_and_then_the_fastest():
    rows = [
        {"lr": "0.001", "accuracy": "1.0", "solved": "yes", "core_seconds": "9"},
        {"lr": "0.003", "accuracy": "0.995", "solved": "yes", "core_seconds": "5"},
        {"lr": "0.01", "accuracy": "1.0", "solved": "yes", "core_seconds": "8"},
        {"lr": "0.03", "accuracy": "0.2", "solved": "", "core_seconds": "1"},
    ]
    shared = {"task": DELAYED.name, "distance": "16", "model": "lstm", "seed": "0"}
    plan = replace(memory_command.QUICK, searched=16)
    assert best_rate([row | shared for row in rows], "lstm", plan) == 0.01


def test_memory_runs_once_and_beyond_a_failure_with_one_seed(tmp_path, capsys):
    arguments = ["memory", "--quick", "--share", "1/8", "--out", str(tmp_path)]
    assert main(arguments) == 0
    rows = read_csv(tmp_path / "memory.csv")
    told = {(row["task"], row["distance"], row["seed"]) for row in rows}
    assert {row["model"] for row in rows} == {CANDIDATES[0].name}
    assert ("delayed recall", "16", "1") in told and ("delayed recall", "32", "0") in told
    # Nothing is learned in so little time, so the second seed does not go on to 32 steps.
    assert ("delayed recall", "32", "1") not in told
    assert (tmp_path / "bench_memory.png").stat().st_size > 10_000
    assert (tmp_path / "bench_reach.png").stat().st_size > 10_000
    capsys.readouterr()
    assert main(arguments) == 0
    assert "% in" not in capsys.readouterr().out and read_csv(tmp_path / "memory.csv") == rows


def test_probes_run_once(tmp_path, capsys):
    arguments = ["probes", "--quick", "--out", str(tmp_path)]
    assert main([*arguments, "--share", "1/9"]) == 0
    rows = read_csv(tmp_path / "probes.csv")
    assert [row["length"] for row in rows[:5]] == ["32", "64", "128", "256", "512"]
    assert {row["task"] for row in rows} == {"parity", "copying", "recall"}
    assert {row["model"] for row in rows} == {command.MODELS[0].name}
    capsys.readouterr()
    assert main([*arguments, "--draw"]) == 0
    assert read_csv(tmp_path / "probes.csv") == rows
    assert (tmp_path / "bench_probes.png").stat().st_size > 10_000


def test_a_part_that_is_none_is_refused(capsys):
    for text in ("2/1", "0/2", "half"):
        with pytest.raises(SystemExit):
            main(["memory", "--share", text])
        assert f"like 1/2, the first of two parts, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("mixer", [Recurrent(8, kind=nn.GRU), Attention(8)])
def test_what_reads_whole_sequences_refuses_the_rest(mixer):
    with pytest.raises(ValueError, match="takes no state, mask or cu_seqlens"):
        cast(Any, mixer)(torch.zeros(1, 3, 8), None, (torch.zeros(1, 8),))


@pytest.mark.parametrize("name", ["memory", "probes"])
def test_what_has_no_rows_yet_is_drawn_empty(name, tmp_path, capsys):
    assert main([name, "--quick", "--draw", "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"bench_{name}.png").stat().st_size > 10_000
    assert not (tmp_path / f"{name}.csv").exists()
