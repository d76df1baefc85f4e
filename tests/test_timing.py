import math

import pytest
import tensorflow as tf

from tfaccel.measure import racing, timing
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import Race


def scripted(clock, seconds):
    """A step that takes the given times, one after the other."""
    remaining = iter(seconds)

    def step():
        clock.advance(next(remaining))
        return tf.constant(0.0)

    return step


def test_timed_is_what_the_clock_says(clock):
    assert timing.timed(scripted(clock, [0.25]), clock) == 0.25


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4.0], (4.0, 4.0, 4.0)),
        ([1.0, 2.0, 3.0], (2.0, 1.0, 3.0)),
        # six values: their range covers the median with 1 - 2/64 = 97 %
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], (3.5, 1.0, 6.0)),
        # nine: one can be dropped at each end, 1 - 2 (1 + 9)/512 = 96 %
        ([float(n) for n in range(1, 10)], (5.0, 2.0, 8.0)),
    ],
)
def test_median_interval(values, expected):
    assert timing.median_interval(values) == expected


def test_median_interval_covers_the_median(rng):
    """Of many samples, at least 95 % have the true median inside."""
    inside = 0
    for _ in range(400):
        _, low, high = timing.median_interval(rng.exponential(size=12).tolist())
        inside += low <= math.log(2) <= high
    assert inside >= 0.94 * 400


def test_speedup_is_made_of_ratios_within_pairs():
    # The machine slows down tenfold half way: the ratio stays 2.
    baseline = [2.0, 2.0, 2.0, 20.0, 20.0, 20.0]
    candidate = [1.0, 1.0, 1.0, 10.0, 10.0, 10.0]
    assert timing.speedup(baseline, candidate) == timing.Speedup(2.0, 2.0, 2.0, 6)


def test_a_race_alternates_and_stops_when_it_is_clear(clock):
    order = []

    def step(name, seconds):
        def run():
            order.append(name)
            clock.advance(seconds)
            return tf.constant(0.0)

        return run

    race = racing.race(step("b", 3.0), step("c", 1.0), clock)
    assert (race.baseline_seconds, race.candidate_seconds) == ([3.0] * 6, [1.0] * 6)
    assert order == ["b", "c", "c", "b"] * 3


def test_a_race_looks_longer_where_it_is_not_clear(clock):
    noisy = [1.0, 2.0] * 20
    race = racing.race(scripted(clock, noisy), scripted(clock, noisy[::-1]), clock)
    assert len(race.baseline_seconds) == race.pairs == racing.LOOKS[-1]


def test_a_race_respects_the_deadline(clock):
    race = racing.race(
        scripted(clock, [1.0] * 50), scripted(clock, [1.0] * 50), clock, deadline=5.0
    )
    assert len(race.baseline_seconds) == race.pairs == 3


def test_a_race_ends_early_where_the_candidate_is_clearly_slower(clock):
    race = racing.race(scripted(clock, [1.0] * 50), scripted(clock, [1.6] * 50), clock)
    assert (race.pairs, race.is_clearly_slower) == (racing.FEWEST, True)
    # One quick turn of the candidate, or one slow turn of the baseline, and it goes on.
    busy = [1.0, 1.1, 1.0, 1.0, 1.0, 1.0]
    race = racing.race(scripted(clock, busy), scripted(clock, [1.6] * 50), clock)
    assert race.pairs == 6 and not race.gain.high >= 1.0


def test_a_race_elsewhere_is_told_each_time_and_says_whose_turn_it_is():
    race, turns = Race(), []
    while not race.is_decided:
        turns.append("c" if race.candidate_is_next else "b")
        race.note({"b": 3.0, "c": 1.0}[turns[-1]])
    assert "".join(turns) == "bccb" * 3
    assert race.gain == timing.Speedup(3.0, 3.0, 3.0, 6)
    race.note(1.0)
    assert not race.is_decided and race.pairs == 6  # amid a pair


@pytest.mark.parametrize(
    ("first", "again", "spent", "hopeless"),
    [
        (1.4, (), 1.4, False),
        (9.0, (1.0, 1.2), 11.2, False),  # it was busy for a moment
        (1.6, (1.2, 1.9), 4.7, False),  # so was the baseline
        (9.0, (1.0, 8.0), 18.0, True),
        (60.0, (), 60.0, True),  # no second chance in time
    ],
)
def test_a_second_chance_is_given_before_a_race(clock, first, again, spent, hopeless):
    def turns(*seconds):
        step = scripted(clock, seconds)
        return lambda: timing.timed(step, clock)

    found = racing.first_look(1.0, turns(*again[:1]), turns(first, *again[1:]), clock, 61.0)
    assert clock() == pytest.approx(spent)
    assert racing.seems_hopeless(*found) == hopeless


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [
        ((1.5, 1.4, 1.6), Outcome.FASTER),
        ((1.01, 1.005, 1.02), Outcome.SLOWER),
        ((1.5, 0.9, 1.6), Outcome.SLOWER),
        ((0.5, 0.4, 0.6), Outcome.SLOWER),
    ],
)
def test_what_a_gain_means(gain, outcome):
    found, why = racing.verdict(timing.Speedup(*gain, 6), 1.02)
    assert found is outcome and bool(why) == (outcome is Outcome.SLOWER)


@pytest.mark.parametrize(
    ("expected_seconds", "pairs"),
    [(0.0, 2), (4.0, 1), (6.0, 0)],
)
def test_no_pair_is_begun_that_would_end_after_the_deadline(clock, expected_seconds, pairs):
    """A pair takes two seconds; what was expected of one is believed until one took longer."""
    race = racing.race(
        scripted(clock, [1.0] * 50),
        scripted(clock, [1.0] * 50),
        clock,
        deadline=5.0,
        fewest=0,
        expected_seconds=expected_seconds,
    )
    assert (race.baseline_seconds, race.candidate_seconds) == ([1.0] * pairs, [1.0] * pairs)
    assert clock() <= 5.0


def test_speedup_in_words():
    assert str(timing.Speedup(1.5, 1.4, 1.62, 7)) == "1.50x [1.40-1.62]"
