"""The turns of a race on real steps, side by side, by an exact clock."""

import pytest
from clocks import FakeClock
from timed import Side

from tfaccel.measure.racing import Race
from tfaccel.training.live_race import LiveRace


def race_of(candidate_seconds, lost=1e6, **settings):
    clock = FakeClock()
    own, candidate = Side(clock, 1.0), Side(clock, candidate_seconds)
    settings = {"steps_per_call": 1, "step_seconds": 1.0, "room": lambda: 100} | settings
    return LiveRace(own, candidate, clock, most_lost_seconds=lost, **settings)


def run(race, steps):
    for _ in range(steps):
        race(None)


def test_what_a_race_may_cost_is_bound():
    race = race_of(1.4, lost=1.0)
    steps = 0
    while not race.is_decided:
        race(None)
        steps += 1
    assert race.race.pairs == 3
    assert steps == 6


def test_a_turn_that_an_epoch_breaks_off_does_not_count():
    race = race_of(0.5, steps_per_call=4)
    run(race, 6)
    assert len(race.race.baseline_seconds) == 1
    race.begin_epoch()
    run(race, 4)
    assert race.race.candidate_seconds == [pytest.approx(2.0)]


def test_short_steps_make_longer_turns():
    assert race_of(0.001, step_seconds=0.001).calls == 20
    assert race_of(0.001, step_seconds=0.0).calls == 1
    assert race_of(0.001, step_seconds=0.01, steps_per_call=32).calls == 32


def test_steps_do_not_run_ahead_into_the_other_s_turn():
    race = race_of(0.5, steps_per_call=4)
    run(race, 4)
    assert race.candidate.room() == 4
    race(None)
    assert race.candidate.room() == 3


def test_a_race_goes_on_where_it_was():
    first = race_of(0.5)
    run(first, 6)
    second = race_of(0.5, race=first.race)
    run(second, 6)
    assert isinstance(second.race, Race) and second.is_decided
