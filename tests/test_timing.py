import math

import pytest
import tensorflow as tf

from tfaccel.measure import timing


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


def test_compare_steps_alternates_and_stops_when_it_is_clear(clock):
    order = []

    def step(name, seconds):
        def run():
            order.append(name)
            clock.advance(seconds)
            return tf.constant(0.0)

        return run

    slow, fast = timing.compare_steps(step("b", 3.0), step("c", 1.0), clock)
    assert (slow, fast) == ([3.0] * 6, [1.0] * 6)
    assert order == ["b", "c", "c", "b"] * 3


def test_compare_steps_looks_longer_where_it_is_not_clear(clock):
    noisy = [1.0, 2.0] * 20
    slow, fast = timing.compare_steps(scripted(clock, noisy), scripted(clock, noisy[::-1]), clock)
    assert len(slow) == len(fast) == timing.LOOKS[-1]


def test_compare_steps_respects_the_deadline(clock):
    slow, fast = timing.compare_steps(
        scripted(clock, [1.0] * 50), scripted(clock, [1.0] * 50), clock, deadline=5.0
    )
    assert len(slow) == len(fast) == 3


@pytest.mark.parametrize(
    ("expected_seconds", "pairs"),
    [(0.0, 2), (4.0, 1), (6.0, 0)],
)
def test_no_pair_is_begun_that_would_end_after_the_deadline(clock, expected_seconds, pairs):
    """A pair takes two seconds; what was expected of one is believed until one took longer."""
    found = timing.compare_steps(
        scripted(clock, [1.0] * 50),
        scripted(clock, [1.0] * 50),
        clock,
        deadline=5.0,
        fewest=0,
        expected_seconds=expected_seconds,
    )
    assert found == ([1.0] * pairs, [1.0] * pairs)
    assert clock() <= 5.0


def test_speedup_in_words():
    assert str(timing.Speedup(1.5, 1.4, 1.62, 7)) == "1.50x [1.40-1.62]"
