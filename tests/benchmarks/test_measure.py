"""The timer: who is called when, what the quantiles are, and what happens to the slow."""

import gc
import time

import pytest

from hgrn.cli.speed import Times, round_robin


def test_functions_take_turns_after_a_warm_up():
    calls = []
    times = round_robin({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: reading.repeats for name, reading in times.items()} == {"a": 3, "b": 3}


def test_quantiles_are_those_of_the_readings_in_milliseconds():
    times = Times.of([k / 1000 for k in range(11)])
    assert (times.p10, times.median, times.p90, times.repeats) == pytest.approx((1, 5, 9, 11))
    part = times.over(2)
    assert (part.p10, part.median, part.p90, part.repeats) == pytest.approx((0.5, 2.5, 4.5, 11))


def test_a_slow_function_is_left_out_when_its_time_is_used_up_but_never_before_one_reading():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.02)

    times = round_robin({"slow": slow, "quick": lambda: calls.append("quick")}, 5, cap_s=0.01)
    assert calls == ["slow", "quick"] * 2 + ["quick"] * 4
    assert times["slow"].capped and times["slow"].repeats == 1 and times["slow"].median >= 20
    assert not times["quick"].capped and times["quick"].repeats == 5


def test_progress_ends_where_it_said_it_would():
    seen = []
    functions = {"quick": lambda: None, "slow": lambda: time.sleep(0.01)}
    round_robin(functions, 4, cap_s=0.005, on_call=lambda done, total: seen.append((done, total)))
    assert seen[0] == (1, 10) and seen[-1] == (7, 7)


def test_the_collector_rests_while_times_are_taken_and_works_again_when_one_fails():
    states = []
    round_robin({"a": lambda: states.append(gc.isenabled())}, 1)
    assert states == [True, False] and gc.isenabled()

    def fail():
        if not gc.isenabled():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        round_robin({"a": fail}, 1)
    assert gc.isenabled()


def test_a_clock_of_ones_own_and_more_warm_ups():
    calls = []

    def clock(function):
        function()
        return 0.5

    times = round_robin({"a": lambda: calls.append("a")}, 2, warm_ups=3, clock=clock)
    assert calls == ["a"] * 5 and times["a"].median == 500
