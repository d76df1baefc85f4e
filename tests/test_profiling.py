"""The numbers of ProfilerCallback, from scripted times: exact, without a model."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.measure.timing import Speedup
from tfaccel.profiling import sampling
from tfaccel.profiling.causes import Cause, leaves_of
from tfaccel.profiling.figures import Figures
from tfaccel.profiling.key_figures import key_figures
from tfaccel.profiling.ledger import Call, Ledger
from tfaccel.profiling.live import SHARE, TRACE_SHARE, LiveComparison
from tfaccel.profiling.meter import Meter
from tfaccel.profiling.records import Records
from tfaccel.profiling.tally import Tally, percentile
from tfaccel.profiling.words import sentence, verdict
from tfaccel.profiling.work import Work
from tfaccel.steps.taken_batches import TakenBatches

FAST = tfaccel.Plan((tfaccel.passes.FusedNorm(),))


def tallied(seconds, wait=None):
    tally = Tally()
    for value in seconds:
        tally.add(value, 1, 8, wait)
    return tally


def test_median_and_95th_percentile():
    tally = tallied([float(v) for v in np.random.default_rng(0).permutation(100) + 1])
    assert (tally.median_seconds, tally.p95_seconds) == (50.5, 95.0)


@pytest.mark.parametrize(
    "values, share, expected", [([7.0], 0.95, 7.0), ([1.0, 2.0], 0.5, 1.0), ([1.0, 2.0], 0.51, 2.0)]
)
def test_percentile_is_the_nearest_rank(values, share, expected):
    assert percentile(values, share) == expected


def test_a_call_of_many_batches_counts_as_one_time_per_batch():
    tally = Tally()
    tally.add(6.0, 3, 24, None)
    tally.add(1.0, 1, 5, None)
    assert list(tally.step_seconds) == [2.0, 1.0]
    assert (tally.batches, tally.samples) == (4, 29)


def test_an_unknown_batch_size_makes_samples_unknown_and_nothing_else():
    tally = tallied([1.0])
    tally.add_other(1, None)
    tally.wall_seconds = 4.0
    assert (tally.samples_per_second, tally.batches_per_second) == (None, 0.5)


@pytest.mark.parametrize("wait, bound", [(0.19, False), (0.2, True), (None, False)])
def test_input_bound_is_a_fifth_of_the_step(wait, bound):
    tally = tallied([1.0] * 4, wait)
    assert tally.input_wait_share == (None if wait is None else pytest.approx(wait))
    assert tally.is_input_bound is bound


def test_nothing_is_made_of_no_steps():
    tally = Tally()
    figures = tally.median_seconds, tally.p95_seconds, tally.input_wait_share
    assert figures == (None, None, None)
    assert tally.batches_per_second is None and tally.samples_per_second is None


class TestLive:
    def test_a_pair_is_an_own_step_and_the_mean_of_its_neighbours(self):
        live = LiveComparison(1)
        live.note_plan(1.0)
        assert live.is_due(0.0)
        assert live.note_own(1, 3.0) is None
        assert live.note_plan(2.0) is None  # it may be the epoch's last, and a small one
        pair = live.note_plan(9.0)
        assert (pair.step, pair.baseline_seconds, pair.plan_seconds) == (1, 3.0, 1.5)
        assert live.speedup == Speedup(2.0, 2.0, 2.0, 1)

    def test_the_last_steps_of_an_epoch_make_no_pair(self):
        live = LiveComparison(1)
        for step in (live.note_plan, lambda s: live.note_own(1, s), live.note_plan):
            step(1.0)
        live.note_irregular()
        live.note_plan(1.0)
        assert live.pairs == [] and live.speedup is None

    def test_auto_spends_its_share_and_no_more(self):
        live, elapsed = LiveComparison("auto"), 0.0
        for step in range(20_000):
            if live.is_due(elapsed):
                live.note_own(step, 1.5)
                elapsed += 1.5
            else:
                live.note_plan(1.0)
                elapsed += 1.0
        assert live.cost_seconds <= SHARE * elapsed
        assert live.cost_seconds == pytest.approx(SHARE * elapsed, rel=0.01)
        assert live.speedup == Speedup(1.5, 1.5, 1.5, len(live.pairs))

    @pytest.mark.parametrize("expected", [None, 1.0])
    def test_auto_waits_until_the_trace_of_an_own_step_that_never_ran_is_paid_for(self, expected):
        live = LiveComparison("auto")
        live.note_plan(1.0)
        assert not live.is_due(9.9 / TRACE_SHARE * 0.5, 5.0, expected)
        assert live.is_due(10.1 / TRACE_SHARE * 0.5, 5.0, expected)

    def test_a_long_training_pays_for_the_trace_at_once(self):
        live = LiveComparison("auto")
        live.note_plan(1.0)
        assert live.is_due(101.0, 5.0, expected_seconds=1001.0)
        live.note_irregular(5.0)
        live.note_plan(1.0)
        assert live.is_due(101.0)
        assert (live.trace_seconds, live.cost_seconds) == (5.0, 0.0)

    def test_a_count_is_a_count(self):
        live, own = LiveComparison(3), []
        for step in range(12):
            if live.is_due(0.0):
                live.note_own(step, 1.0)
                own.append(step)
            else:
                live.note_plan(1.0)
        assert own == [3, 7, 11]

    def test_none_is_never(self):
        live = LiveComparison(None)
        live.note_plan(1.0)
        assert not live.is_due(1e9)


def call(seconds, plan=FAST, began=0.0, comparison=False, waited=None, batches=1):
    samples = 8 * batches
    return Call(seconds, began, began + seconds, batches, samples, waited, plan, comparison)


class TestLedger:
    @pytest.fixture
    def ledger(self):
        self.records = []
        return Ledger(LiveComparison(1), self.records.append)

    def test_tracing_and_compiling_are_what_a_traced_step_took_longer(self, ledger):
        traced = call(5.0)
        leaves = leaves_of((tf.TensorSpec((None, 4)),))
        ledger.note_trace(traced, 1, False, leaves, Cause("first"))
        ledger.add_irregular(traced)
        for _ in range(3):
            ledger.add_regular(call(0.5))
        assert ledger.compile_seconds == 4.5
        assert ledger.first_step_seconds == 5.0
        assert ledger.elapsed_seconds == 6.5
        assert list(ledger.total.step_seconds) == [0.5] * 3
        (record,) = self.records
        assert (record["kind"], record["seconds"], record["traces"]) == ("trace", 5.0, 1)
        assert record["shapes"] == ["(None, 4) float32"]

    def test_throughput_counts_the_time_between_steps_and_own_steps(self, ledger):
        ledger.add_regular(call(1.0, began=0.0))
        ledger.add_regular(call(1.0, began=2.0))
        ledger.add_regular(call(2.0, began=3.0, plan=Plan(), comparison=True))
        assert ledger.interval.batches_per_second == 3 / 5.0
        assert list(ledger.interval.step_seconds) == [1.0, 1.0]

    def test_an_irregular_call_is_left_out_of_the_throughput(self, ledger):
        ledger.add_regular(call(1.0, began=0.0))
        ledger.add_irregular(call(7.0, began=1.0))
        ledger.add_regular(call(1.0, began=8.0))
        assert ledger.interval.batches_per_second == 1.0
        assert ledger.steps == 3

    def test_the_total_is_that_of_the_plan_in_use(self, ledger):
        ledger.add_regular(call(3.0, plan=Plan()))
        ledger.add_regular(call(1.0))
        assert ledger.total.median_seconds == 1.0
        assert ledger.interval.median_seconds == 2.0

    def test_a_comparison_is_told_of_with_the_step_it_was(self, ledger):
        ledger.add_regular(call(1.0))
        ledger.add_regular(call(2.0, plan=Plan(), comparison=True))
        ledger.add_regular(call(1.0))
        ledger.add_regular(call(1.0))
        assert self.records == [
            {
                "kind": "comparison",
                "plan": "fused_norm",
                "step": 1,
                "baseline_seconds": 2.0,
                "plan_seconds": 1.0,
            }
        ]


def figures_of(ledger, work=None, analysis_seconds=0.0):
    meter = types.SimpleNamespace(sampling=types.SimpleNamespace(cost_seconds=0.25))
    return Figures(meter, ledger, work or Work(), analysis_seconds)


@pytest.fixture
def compared():
    """A ledger with ten comparisons of 2 s against 1 s, waiting 0.1 s of each second."""
    ledger = Ledger(LiveComparison(1), lambda record: None)
    ledger.tuning_seconds = 30.5
    for began in range(0, 55, 5):
        ledger.add_regular(call(1.0, began=began, waited=0.1))
        ledger.add_regular(call(2.0, began=began + 1, plan=Plan(), comparison=True))
        ledger.add_regular(call(1.0, began=began + 3, waited=0.1))
        ledger.add_regular(call(1.0, began=began + 4, waited=0.1))
    return ledger


class TestFigures:
    def test_break_even_is_tuning_over_what_a_step_saves(self, compared):
        assert figures_of(compared).break_even_steps == 31

    def test_overhead_is_own_steps_and_sampling_and_analysis(self, compared):
        elapsed = 11 * 5.0
        share = figures_of(compared, analysis_seconds=1.0).overhead_share
        assert share == pytest.approx((11 * 1.0 + 0.25 + 1.0) / elapsed)

    def test_no_speedup_is_claimed_where_the_input_sets_the_pace(self, compared):
        assert figures_of(compared).summary()["speedup"] == 2.0
        for _ in range(100):
            compared.add_regular(call(1.0, waited=0.5))
        summary = figures_of(compared).summary()
        assert summary["input_bound"] is True
        assert (summary["speedup"], summary["break_even_steps"]) == (None, None)
        records = Records({}, summary=summary)
        assert verdict(records).startswith("Input-bound")
        assert key_figures(records)[0].value == "none claimed"

    def test_utilization_is_throughput_times_work_over_peak(self, compared):
        work = Work(flops_per_step=200, peak_flops_per_second=1000.0, peak_source="a test")
        summary = figures_of(compared, work).summary()
        assert summary["mfu"] == pytest.approx(0.2 * summary["batches_per_sec"])

    def test_the_line_of_an_epoch(self, compared):
        record = figures_of(compared).interval(2, compared.total)
        assert sentence(record) == (
            "tfaccel: epoch 3: 1,000 ms a step (95 % within 1,000), 6 samples/s, "
            "10% of it waiting for input, 2.00x [2.00-2.00] the speed of your own step"
        )


class TestMeter:
    """Meter with steps that move the clock, on a real iterator."""

    def fake(self, clock, own=2.0, fast=1.0):
        def step(seconds):
            def run(iterator):
                batch = next(iterator)
                clock.advance(seconds)
                return {"loss": tf.reduce_sum(batch)}

            return run

        function = types.SimpleNamespace(
            own=step(own),
            run_own=step(own),
            step=step(fast),
            plan=FAST,
            built=types.SimpleNamespace(),
            report=None,
            is_racing=False,
        )
        function.built.ahead = ()
        function.built.function = function.step
        model = types.SimpleNamespace(
            steps_per_execution=1,
            jit_compile=False,
            distribute_strategy=tf.distribute.get_strategy(),
        )
        function.taken = TakenBatches(model)
        ledger = Ledger(LiveComparison("auto"), lambda record: None)
        meter = Meter(function, model, ledger, None, clock)
        return meter, ledger, function

    def batches(self, count=10_000, size=4):
        return tf.data.Dataset.range(count * size).batch(size)

    def run(self, meter, iterator, steps):
        meter.begin_epoch(None)
        for _ in range(steps):
            meter(iterator)

    def test_the_live_speedup_is_exact_and_its_cost_is_bounded(self, clock, monkeypatch):
        # On this clock sampling costs nothing, and would be done at each of the steps.
        monkeypatch.setattr(sampling, "SHARE", -1.0)
        meter, ledger, _ = self.fake(clock)
        self.run(meter, iter(self.batches()), 1000)
        assert ledger.live.speedup == Speedup(2.0, 2.0, 2.0, len(ledger.live.pairs))
        assert len(ledger.live.pairs) == pytest.approx(10, abs=2)
        assert ledger.live.cost_seconds <= SHARE * ledger.elapsed_seconds
        assert set(ledger.total.step_seconds) == {1.0}
        assert ledger.steps == 1000

    def test_a_slow_input_pipeline_is_found_out(self, clock):
        def slow():
            while True:
                clock.advance(3.0)
                yield np.float32(1)

        spec = tf.TensorSpec((), tf.float32)
        dataset = tf.data.Dataset.from_generator(slow, output_signature=spec).batch(1)
        options = tf.data.Options()
        options.autotune.enabled = False
        meter, ledger, _ = self.fake(clock)
        self.run(meter, iter(dataset.with_options(options)), 40)
        assert ledger.total.is_input_bound
        assert figures_of(ledger).summary()["speedup"] is None

    def test_the_turns_of_a_race_are_no_retraces(self, clock):
        meter, ledger, function = self.fake(clock)
        function.is_racing, candidate, turns = True, function.built, iter(range(12))
        candidate.function.experimental_get_tracing_count = lambda: 1
        one_step = function.step

        def take_turns(iterator):
            function.built = candidate if next(turns) // 2 % 2 else None
            return one_step(iterator)

        function.step, function.built = take_turns, None
        self.run(meter, iter(self.batches()), 12)
        assert (ledger.traces, ledger.retraces.count) == (1, 0)

    def test_every_batch_comes_once_and_in_order(self, clock):
        meter, _, function = self.fake(clock)
        seen = []

        def noting(step, iterator):
            logs = step(iterator)
            seen.append(int(logs["loss"]))
            return logs

        function.run_own = functools.partial(noting, function.run_own)
        function.step = functools.partial(noting, function.step)
        with pytest.raises((StopIteration, tf.errors.OutOfRangeError)):
            self.run(meter, iter(self.batches(300)), 301)
        assert seen == [sum(range(4 * i, 4 * i + 4)) for i in range(300)]

    def test_samples_are_exact_where_the_length_is_known(self, clock):
        meter, ledger, _ = self.fake(clock)
        for samples in (26, 30):  # the first step of all is irregular
            iterator = iter(tf.data.Dataset.range(30).batch(4))
            meter.begin_epoch(8)
            for _ in range(8):
                meter(iterator)
            assert ledger.epoch.samples == samples

    def test_tuning_is_no_step(self, clock):
        meter, ledger, function = self.fake(clock)
        step, plan = function.step, function.plan
        report = tfaccel.Report((), plan, Speedup(2.0, 2.0, 2.0, 9), tuning_seconds=50.0)

        def tuning(iterator):
            clock.advance(50.0)
            function.step, function.plan, function.report = step, plan, report
            return step(iterator)

        function.plan, function.step = Plan(), tuning
        self.run(meter, iter(self.batches()), 10)
        assert ledger.tuning_seconds == 50.0
        assert ledger.elapsed_seconds == 10.0
        assert list(ledger.total.step_seconds) == [1.0] * 9
