"""Whether ProfilerCallback tells the truth: its live speedup, and what it says that it costs.

For each model, all in one process:

- offline: stock Keras against the plan, by the independent A/B of training.py;
- live: one long `fit` under the plan with ProfilerCallback, whose speedup comes from
  the user's own steps amid the accelerated ones;
- overhead: in turns with the blocks of that `fit`, blocks of another one under the same
  plan without ProfilerCallback.

    python benchmarks/live_speedup.py --models mlp,conv_lstm --plan xla
"""

import gc
import pathlib
import statistics
import tempfile
from typing import Any

import _common
import keras
import models
import training
from absl import app, flags

import tfaccel
from tfaccel.measure.timing import median_interval

_LIVE_BLOCKS = flags.DEFINE_integer("live_blocks", 25, "blocks of the live run", lower_bound=7)
flags.adopt_module_key_flags(training)
flags.FLAGS.set_default("models", ["mlp"])
flags.FLAGS.set_default("plan", ["xla"])

_QUIET = {"verbose": 0, "shuffle": False}


def live(benchmark: models.Benchmark, plan: tfaccel.Plan, steps: int) -> dict[str, Any]:
    """One long fit with ProfilerCallback, in turns with another without it."""
    measured, plain = benchmark.model(0), benchmark.model(0)
    data = benchmark.dataset(0)
    # Untouched steps first: with a plan of the user's own nothing else would trace the
    # untouched step, and a run of a minute could not pay for that.
    measured.fit(data, steps_per_epoch=steps, **_QUIET)
    plain_clock = training.BlockClock()
    plain_accel = tfaccel.AccelCallback(plan, verbose=0)

    def plain_block(_: int) -> None:
        callbacks = [plain_accel, plain_clock]
        plain.fit(data, steps_per_epoch=steps, callbacks=callbacks, **_QUIET)

    with tempfile.TemporaryDirectory() as folder:
        profiler = tfaccel.ProfilerCallback(folder, verbose=0)
        clock = training.BlockClock(plain_block)
        accel = tfaccel.AccelCallback(plan, verbose=0)
        callbacks = [accel, profiler, clock]
        epochs = _LIVE_BLOCKS.value
        measured.fit(data, steps_per_epoch=steps, epochs=epochs, callbacks=callbacks, **_QUIET)
    # The first blocks trace both steps.
    ratios = [a / b - 1 for a, b in zip(clock.seconds, plain_clock.seconds, strict=True)][2:]
    return {"summary": profiler.summary(), "overhead": list(median_interval(ratios))}


def measure(benchmark: models.Benchmark, plan: tfaccel.Plan) -> dict[str, Any]:
    """The offline and the live speedup of a plan, and what the live one costs."""
    offline = training.compare(benchmark, plan)
    keras.backend.clear_session()
    gc.collect()
    seconds = statistics.median(offline.plan_seconds)
    found = live(benchmark, plan, max(20, round(2.0 / seconds)))
    summary = found["summary"]
    return {
        "plan": offline.applied,
        "offline": list(offline.speedup),
        "live": [summary[key] for key in ("speedup", "speedup_low", "speedup_high")],
        "comparisons": summary["comparisons"],
        "overhead_reported": summary["overhead_share"],
        "overhead_measured": found["overhead"],
        "summary": summary,
    }


def _interval(values: list[float | None]) -> str:
    return "none" if values[0] is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*values)


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("plan", lambda row: row["plan"], is_number=False),
    _common.Column("offline [95 %]", lambda row: _interval(row["offline"])),
    _common.Column("live [95 %]", lambda row: _interval(row["live"])),
    _common.Column("comparisons", lambda row: str(row["comparisons"])),
    _common.Column("cost reported", lambda row: f"{row['overhead_reported']:.1%}"),
    _common.Column(
        "cost measured [95 %]",
        lambda row: "{:+.1%} [{:+.1%}, {:+.1%}]".format(*row["overhead_measured"]),
    ),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "The live speedup of ProfilerCallback, and what it costs"
    folder = pathlib.Path(flags.FLAGS.output)
    results = _common.Results("live-speedup", title, COLUMNS, folder, flags.FLAGS.resume)
    console = _common.console()
    plan = tfaccel.core.plan.as_plan(flags.FLAGS.plan)
    for benchmark in models.chosen(flags.FLAGS.models):
        results.add({"model": benchmark.name} | measure(benchmark, plan))
        console.print(results)
        keras.backend.clear_session()
        gc.collect()


if __name__ == "__main__":
    app.run(main)
