"""The questions of associative recall, and the token mixers that are asked beside ours."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.probes import recall_command as command
from benchmarks.probes.models import CONTESTANTS, Answerer, stack_of, state_bytes
from benchmarks.probes.peers import FixedDecay, Mamba, MinGRU
from benchmarks.probes.recall import FILLER, KEYS, VALUES, VOCABULARY, questions
from benchmarks.probes.recall_command import QUICK, accuracies, accuracies_of, best_rate, trained
from benchmarks.rows import read_csv
from hgrn.modules import HGRN, HGRU, Mixer

COUNTS = (4, 8, 16, 32)
PEERS = [
    (MinGRU, {}),
    (MinGRU, {"conv_size": 3}),
    (FixedDecay, {"head_dim": 4}),
    (FixedDecay, {"head_dim": 8, "conv_size": 3}),
    (Mamba, {"state_dim": 3}),
]


@pytest.mark.parametrize("pairs", COUNTS)
def test_each_question_has_the_answer_of_its_pair(pairs):
    asked = questions([pairs], 5, (0, 1))
    for tokens, places, values in zip(asked.tokens, asked.places, asked.values):
        keys = tokens[: 2 * pairs : 2].tolist()
        assert len(set(keys)) == pairs and max(keys) < KEYS
        known = dict(zip(keys, (tokens[1 : 2 * pairs : 2] - KEYS).tolist()))
        assert min(known.values()) >= 0 and max(known.values()) < VALUES

        questioned = tokens[places].tolist()
        assert [known[key] for key in questioned] == values.tolist()
        assert {questioned.count(key) for key in keys} == {32 // pairs}

        # All else behind the pairs is filler, so no answer stands behind a question.
        is_filler = torch.ones(len(tokens), dtype=torch.bool)
        is_filler[: 2 * pairs] = False
        is_filler[places] = False
        assert (places.diff() > 0).all() and places[0] >= 2 * pairs
        fillers = tokens[is_filler].tolist()
        assert fillers == [FILLER] * (128 - 2 * pairs - 32)


def test_most_questions_are_near_the_pairs():
    places = questions([4], 200, (0,)).places
    near = (places < 8 + 60).double().mean()
    # Half of the positions: with equal chances it would be a half.
    assert 0.6 < near < 0.8
    assert (places[:, 0] == 8).double().mean() > 0.95 and places.max() == 127


def test_questions_depend_on_the_seed_alone():
    first, same, other = (questions(COUNTS, 2, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert first.tokens.shape == (8, 128) and first.values.shape == first.places.shape == (8, 32)
    assert all(torch.equal(a, b) for a, b in zip(first, same))
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("counts", [[0], [3], [64]])
def test_questions_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="pairs and 32 questions do not fit"):
        questions(counts, 1, (0,))


@pytest.mark.parametrize(("mixer", "options"), PEERS)
def test_a_peer_reads_chunks_and_steps_as_it_reads_all(mixer, options):
    torch.manual_seed(0)
    rnn = HGRN(8, 2, mixer=mixer, **options).double()
    x = torch.randn(2, 11, 8, dtype=torch.double)
    whole, last = rnn(x)
    state = None
    pieces = []
    for chunk in x.split([5, 1, 1, 4], dim=1):
        y, state = rnn(chunk, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, last)
    mixers = [cast(Mixer, block.mixer) for block in rnn.blocks]
    start = tuple(each.initial_state(2) for each in mixers)
    assert [[a.shape for a in parts] for parts in start] == [
        [a.shape for a in parts] for parts in last
    ]
    torch.testing.assert_close(rnn(x, start)[0], whole)


@pytest.mark.parametrize(("mixer", "options"), PEERS)
def test_a_peer_skips_what_is_masked_and_keeps_packed_sequences_apart(mixer, options):
    torch.manual_seed(0)
    rnn = HGRN(8, 1, mixer=mixer, **options).double()
    x = torch.randn(1, 9, 8, dtype=torch.double)
    mask = torch.tensor([[True, False, True, True, False, True, True, True, False]])
    masked, masked_state = rnn(x, mask=mask)
    kept, kept_state = rnn(x[:, mask[0]])
    torch.testing.assert_close(masked[:, mask[0]], kept)
    torch.testing.assert_close(masked_state, kept_state)

    packed, _ = rnn(x, cu_seqlens=torch.tensor([0, 4, 9]))
    apart = [rnn(part)[0] for part in x.split([4, 5], dim=1)]
    torch.testing.assert_close(packed, torch.cat(apart, 1))


@pytest.mark.parametrize(("mixer", "options"), PEERS)
def test_a_peer_is_causal_and_its_gradients_are_finite(mixer, options):
    torch.manual_seed(0)
    rnn = HGRN(8, 2, mixer=mixer, **options)
    x = torch.randn(2, 12, 8, requires_grad=True)
    y, _ = rnn(x)
    # One channel: the sum over all channels behind a layer norm is constant.
    (past,) = torch.autograd.grad(y[:, 6, 0].sum(), x, retain_graph=True)
    assert past[:, :7].abs().sum() > 0 and past[:, 7:].abs().max() == 0
    y.square().sum().backward()
    own = {name for name, _ in rnn.named_parameters() if "mixer." in name}
    grads = {name: p.grad for name, p in rnn.named_parameters() if name in own}
    for name, grad in grads.items():
        assert grad is not None and grad.isfinite().all() and grad.abs().max() > 0, name


def test_a_peer_computes_its_equation():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, dtype=torch.double)
    peer = MinGRU(8).double()
    candidate, gate = peer.in_proj(x).chunk(2, -1)
    h = torch.zeros(1, 8, dtype=torch.double)
    for t in range(6):
        z = gate[:, t].sigmoid()
        h = (1 - z) * h + z * candidate[:, t]
    torch.testing.assert_close(peer(x)[0][:, -1], peer.out_proj(h))

    fixed = FixedDecay(8, head_dim=4).double()
    query, key, value = (part.view(6, 2, 4) for part in fixed.in_proj(x)[0].chunk(3, -1))
    memory = torch.zeros(2, 4, 4, dtype=torch.double)
    decay = torch.tensor([1 - 1 / 32, 1 - 1 / 64], dtype=torch.double)[:, None, None]
    for t in range(6):
        memory = decay * memory + key[t, :, :, None] * value[t, :, None]
    y = (query[-1, :, None] @ memory / 2).flatten()
    torch.testing.assert_close(fixed(x)[0][0, -1], fixed.out_proj(fixed.norm(y)))

    mamba = Mamba(8, state_dim=3).double()
    u, z = mamba.in_proj(x).chunk(2, -1)
    u = torch.nn.functional.silu(mamba.short_conv(u)[0])
    low, write, read = mamba.select(u).split([1, 3, 3], -1)
    dt = torch.nn.functional.softplus(mamba.step(low))
    h = torch.zeros(16, 3, dtype=torch.double)
    for t in range(6):
        step = dt[0, t, :, None]
        h = torch.exp(-step * mamba.log_a.exp()) * h + step * write[0, t] * u[0, t, :, None]
    y = (h @ read[0, -1] + mamba.skip * u[0, -1]) * torch.nn.functional.silu(z[0, -1])
    torch.testing.assert_close(mamba(x)[0][0, -1], mamba.out_proj(y))


def test_models_answer_for_the_places_that_are_asked():
    asked = questions([2], 3, (0,), length=24, asked=4)
    for contestant in CONTESTANTS:
        model = Answerer(stack_of(contestant, 64, 2), VOCABULARY, slice(KEYS, KEYS + VALUES))
        logits = model(asked.tokens, asked.places)
        assert logits.shape == (3, 4, VALUES), contestant.name
        y, _ = model.stack(model.embedding(asked.tokens[1:2]))
        names = model.embedding.weight[KEYS : KEYS + VALUES]
        torch.testing.assert_close(logits[1, 2], names @ y[0, asked.places[1, 2]])


def test_the_bytes_of_a_state():
    assert state_bytes(HGRU(8)) == 2 * 8 * 4
    assert state_bytes(Mamba(8)) == (16 * 16 + 3 * 16) * 4


def test_the_test_counts_right_answers():
    class Knows(torch.nn.Module):
        """Answers right in the sequences with fewer than 4 pairs."""

        def forward(self, tokens, places):
            known = {tuple(row): index for index, row in enumerate(asked.tokens.tolist())}
            rows = torch.tensor([known[tuple(row)] for row in tokens.tolist()])
            wrong = (rows >= 2 * 70).long()[:, None]
            answers = (asked.values[rows] + wrong) % VALUES
            return torch.nn.functional.one_hot(answers, VALUES).float()

    plan = replace(QUICK, counts=(1, 2, 4), tested=70, length=24, asked=4)
    asked = plan.questions(70, 3)
    assert accuracies(cast(Any, Knows()), plan, 3) == {1: 1.0, 2: 1.0, 4: 0.0}


def test_a_run_is_the_same_again_and_learns():
    plan = replace(QUICK, counts=(1,), steps=8, each=8)
    first, again = (trained(CONTESTANTS[-1], plan, 1e-2, 0, lambda *_: None) for _ in range(2))
    assert (first.validation, first.test) == (again.validation, again.test)
    easy = replace(plan, steps=100, each=32, length=6, asked=2, tested=100)
    # Of 32 values.
    assert trained(CONTESTANTS[-1], easy, 1e-2, 0, lambda *_: None).test[1] > 0.5


def rows_of(*cells: tuple[str, ...]) -> list[dict[str, str]]:
    names = ("mixer", "lr", "seed", "pairs", "validation_accuracy", "test_accuracy")
    return [dict(zip(names, row)) for row in cells]


def test_the_rate_is_chosen_by_the_first_seed_in_validation():
    rows = rows_of(
        ("a", "0.1", "2", "4", "0.5", "0.11"),
        ("a", "0.1", "10", "4", "0.0", "0.12"),
        ("a", "0.2", "2", "4", "0.4", "0.99"),
        ("b", "0.2", "2", "4", "0.9", "0.13"),
    )
    assert best_rate(rows, "a") == "0.1" and best_rate(rows, "b") == "0.2"
    assert accuracies_of(rows, "a") == {4: [0.11, 0.12]}


def test_the_command_trains_once_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)
    arguments = ["recall", "mingru", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    rows = read_csv(tmp_path / "recall.csv")
    # Two rates with the first seed and one with the second, for two numbers of pairs each.
    assert len(rows) == 6 and {row["budget"] for row in rows} == {QUICK.budget}
    assert [row["seed"] for row in rows] == ["0"] * 4 + ["1"] * 2
    assert rows[0]["state_bytes"] == "1024" and rows[0]["threads"] == "1"
    assert (tmp_path / "bench_recall.png").stat().st_size > 10_000

    capsys.readouterr()
    assert main(["recall", "mingru", "hgrn-real", "--quick", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("measured before") == 3
    assert read_csv(tmp_path / "recall.csv")[:6] == rows
    assert main(["recall", "--list", "--out", str(tmp_path)]) == 0
    assert "begun" in capsys.readouterr().out
    assert main(["recall", "mingro", "--quick", "--out", str(tmp_path)]) == 2
    assert "did you mean mingru" in capsys.readouterr().err
