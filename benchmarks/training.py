"""How much faster tfaccel trains common models than stock Keras does.

For each model of models.py: tunes one copy of it, then measures the chosen plan
against stock Keras by an independent A/B of two other copies, in the same process,
in blocks of steps that take turns. Both sides train through `model.fit`.

    python benchmarks/training.py --models cnn,mlp
"""

import dataclasses
import gc
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import _common
import keras
import models
import tensorflow as tf
from absl import app, flags

import tfaccel
from tfaccel.core.plan import make_pass
from tfaccel.measure.timing import median_interval
from tfaccel.profiling.flops.counting import model_flops_per_step
from tfaccel.profiling.peaks import peak_flops
from tfaccel.system.device import current_device

_MODELS = flags.DEFINE_list("models", None, "names of models.py; all of them by default")
_SIZES = flags.DEFINE_enum("sizes", "cpu", ["cpu", "gpu"], "of batches and inputs: for what chip")
_TENSOR_FLOAT_32 = flags.DEFINE_bool(
    "tensor_float_32", True, "a GPU may round float32 products, as TensorFlow lets it by itself"
)
_PLAN = flags.DEFINE_list("plan", None, "passes to compare with stock Keras, without tuning")
_POLICY = flags.DEFINE_enum(
    "policy",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "that models are written in",
)
_MAX_TUNING_SECONDS = flags.DEFINE_float(
    "max_tuning_seconds", 600.0, "the most that tuning one model may take", lower_bound=0.0
)
_STATIC = flags.DEFINE_bool(
    "static", False, "measure Keras's own settings in the same turns: mixed policy, XLA"
)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file; failed models run again")
_BLOCKS = flags.DEFINE_integer("blocks", 10, "blocks of stock steps that are timed", lower_bound=6)
_BLOCK_SECONDS = flags.DEFINE_float(
    "block_seconds", 1.0, "about how long a block of stock steps is", lower_bound=0.01
)
_SEED = flags.DEFINE_integer("seed", 0, "decides weights and data", lower_bound=0)
_VERBOSE = flags.DEFINE_integer("verbose", 1, "what tune() prints", lower_bound=0)

_KNOWN = {model.name for model in (*models.MODELS, *models.GPU_MODELS)}
flags.register_validator(
    _MODELS,
    lambda names: not set(names or ()) - _KNOWN,
    f"must be names from {', '.join(sorted(_KNOWN))}",
)

# Blocks at the beginning that are not timed: tracing, compiling and filling caches.
_WARM_BLOCKS = 2
# Steps of a block: enough to be timed, few enough that two blocks meet the same machine.
_FEWEST_STEPS, _MOST_STEPS = 3, 200


class BlockClock(keras.callbacks.Callback):
    """Times blocks of steps, each of them an epoch, less its first step.

    The first step of an epoch is left out because the two sides begin an epoch
    differently: one `fit` goes on, the other begins. Only hooks that do not make
    Keras wait for every step's result are used.

    Attributes:
        seconds: per step, one entry for each block.
        first_step_seconds: the slowest step of the first block: with tracing.
    """

    def __init__(self, after_block: Callable[[int], None] | None = None):
        super().__init__()
        self.seconds: list[float] = []
        self.first_step_seconds = 0.0
        self._after_block = after_block
        self._begun: list[float] = []

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._begun = []

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        if batch == 1:
            self._wait()
        self._begun.append(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self._wait()
        ends = [*self._begun[1:], time.perf_counter()]
        if not self.seconds:
            steps = [end - begin for begin, end in zip(self._begun, ends, strict=True)]
            self.first_step_seconds = max(steps)
        self.seconds.append((ends[-1] - self._begun[1]) / (len(self._begun) - 1))
        if self._after_block is not None:
            self._after_block(epoch)

    def _wait(self) -> None:
        """Waits for the steps that a GPU may still have in its queue."""
        float(self.model.metrics[0].result())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Stock Keras and a plan, side by side.

    Attributes:
        stock_seconds, plan_seconds: a step's time, block by block. They took turns,
            and the plan's side has one block more: plan, stock, plan, ..., plan.
        stock_first_step_seconds, plan_first_step_seconds: with tracing and compiling.
        applied: the plan that the callback says it applied.
        static_seconds: the same of stock Keras's own settings, where they were asked for.
    """

    stock_seconds: list[float]
    plan_seconds: list[float]
    stock_first_step_seconds: float
    plan_first_step_seconds: float
    applied: str
    static_seconds: dict[str, list[float]]

    @property
    def speedup(self) -> tuple[float, float, float]:
        """The median of the blocks' ratios, with the ends of its interval."""
        return self._against(self.stock_seconds)

    @property
    def against_static(self) -> dict[str, tuple[float, float, float]]:
        """The plan's speed as a multiple of each of Keras's own settings."""
        return {name: self._against(seconds) for name, seconds in self.static_seconds.items()}

    def _against(self, seconds: list[float]) -> tuple[float, float, float]:
        """How often the plan is as fast as another side.

        Each of its blocks is compared with the mean of the plan's blocks before and after
        it, so that a machine that grows slower all the time favours neither side.
        """
        around = zip(self.plan_seconds, self.plan_seconds[1:], strict=False)
        pairs = zip(seconds, around, strict=True)
        return median_interval([other / statistics.mean(plan) for other, plan in pairs])


def compare(benchmark: models.Benchmark, plan: tfaccel.Plan) -> Comparison:
    """Trains two fresh models in turns: one by stock Keras, one under the plan."""
    others = {"stock": benchmark.model(_SEED.value)} | (_static(benchmark) if _STATIC.value else {})
    accelerated = benchmark.model(_SEED.value)
    data = benchmark.dataset(_SEED.value)
    clocks = {name: BlockClock() for name in others}
    stock_clock = clocks["stock"]
    # A dataset can't be shuffled by fit, which would say so at every call.
    quiet = {"verbose": 0, "shuffle": False}

    def other_blocks(steps: int) -> None:
        for name, model in others.items():
            model.fit(data, steps_per_epoch=steps, callbacks=[clocks[name]], **quiet)

    for _ in range(_WARM_BLOCKS):
        other_blocks(_FEWEST_STEPS)
    wanted = round(_BLOCK_SECONDS.value / stock_clock.seconds[-1])
    steps = min(max(wanted, _FEWEST_STEPS), _MOST_STEPS) + 1  # the first is not timed
    last = _WARM_BLOCKS + _BLOCKS.value
    plan_clock = BlockClock(
        lambda block: other_blocks(steps) if _WARM_BLOCKS <= block < last else None
    )
    accelerator = tfaccel.AccelCallback(plan, verbose=0)
    accelerated.fit(
        data,
        steps_per_epoch=steps,
        epochs=last + 1,
        callbacks=[accelerator, plan_clock],
        **quiet,
    )
    return Comparison(
        stock_clock.seconds[_WARM_BLOCKS:],
        plan_clock.seconds[_WARM_BLOCKS:],
        stock_clock.first_step_seconds,
        plan_clock.first_step_seconds,
        str(accelerator.plan),
        {name: clocks[name].seconds[_WARM_BLOCKS:] for name in others if name != "stock"},
    )


def _settings(policy: str) -> dict[str, tuple[str, str | bool]]:
    """Keras's own settings that may make a model faster: a dtype policy and `jit_compile`.

    On a GPU Keras turns XLA on by itself.
    """
    if current_device().kind == "GPU":
        return {
            "without XLA": (policy, False),
            "mixed_bfloat16": ("mixed_bfloat16", "auto"),
            "mixed_bfloat16 without XLA": ("mixed_bfloat16", False),
        }
    return {"mixed_bfloat16": ("mixed_bfloat16", "auto"), "jit_compile": (policy, True)}


def _static(benchmark: models.Benchmark) -> dict[str, keras.Model]:
    """The model with each of them."""
    found = {}
    for name, (policy, jit_compile) in _settings(benchmark.policy).items():
        model = dataclasses.replace(benchmark, policy=policy).model(_SEED.value)
        model.compile(
            optimizer=keras.optimizers.Adam(),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=jit_compile,
        )
        found[name] = model
    keras.config.set_dtype_policy(benchmark.policy)
    return found


def _tuned(benchmark: models.Benchmark) -> tfaccel.Report:
    with tempfile.TemporaryDirectory() as folder:
        # A fresh folder, so that no earlier run's choice is taken over.
        return tfaccel.tune(
            benchmark.model(_SEED.value),
            benchmark.dataset(_SEED.value),
            tuning_share=None,
            max_tuning_seconds=_MAX_TUNING_SECONDS.value,
            cache_dir=folder,
            verbose=_VERBOSE.value,
        )


def _given(names: list[str]) -> tfaccel.Report:
    """No trials, and the plan that was named."""
    return tfaccel.Report((), tfaccel.Plan(tuple(make_pass(name) for name in names)))


def measure(benchmark: models.Benchmark) -> dict[str, Any]:
    """Tunes the model (unless the plan is given), then compares the plan with stock Keras."""
    report = _tuned(benchmark) if _PLAN.value is None else _given(_PLAN.value)
    keras.backend.clear_session()
    gc.collect()
    compared = compare(benchmark, report.plan)
    median, low, high = compared.speedup
    drift = next((trial.drift for trial in report.trials if trial.plan == report.plan), None)
    shape = "x".join(map(str, benchmark.input_shape))
    step_seconds = statistics.median(compared.plan_seconds)
    return {
        "work": f"{benchmark.batch_size}, {shape}",
        "stock_step_seconds": statistics.median(compared.stock_seconds),
        "step_seconds": step_seconds,
        "samples_per_second": benchmark.batch_size / step_seconds,
        "mfu": _utilization(benchmark, step_seconds),
        "speedup": median,
        "speedup_interval": [low, high],
        "plan": str(report.plan),
        "plan_applied": compared.applied,
        "drift": None if drift is None else dataclasses.asdict(drift),
        "tuning_seconds": report.tuning_seconds,
        "stock_first_step_seconds": compared.stock_first_step_seconds,
        "first_step_seconds": compared.plan_first_step_seconds,
        "static": {
            name: {"step_seconds": statistics.median(seconds), "slower_by": list(ratio)}
            for (name, seconds), ratio in zip(
                compared.static_seconds.items(), compared.against_static.values(), strict=True
            )
        },
        "stock_blocks_seconds": compared.stock_seconds,
        "blocks_seconds": compared.plan_seconds,
        "tuning": json.loads(report.to_json()),
    }


def _utilization(benchmark: models.Benchmark, step_seconds: float) -> float | None:
    """Model FLOPs utilization, of the device's dense peak in 16 bits; on a GPU."""
    device = current_device()
    peak = peak_flops(device, "bfloat16") if device.kind == "GPU" else None
    if peak is None:
        return None
    batch = next(iter(benchmark.dataset(_SEED.value)))
    flops = model_flops_per_step(benchmark.model(_SEED.value), batch)
    return flops / step_seconds / peak.flops_per_second if flops else None


def _speedup(row: _common.Row) -> str:
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _settings_told(row: _common.Row) -> str:
    """Each of Keras's own settings, and how often tfaccel is as fast."""
    return ", ".join(
        f"{name} {_common.milliseconds(found['step_seconds'])} ({found['slower_by'][0]:.2f}x "
        f"[{found['slower_by'][1]:.2f}, {found['slower_by'][2]:.2f}])"
        for name, found in row.get("static", {}).items()
    )


def _column(title: str, cell: Callable[[_common.Row], str], is_number: bool = True):
    """A column that stays empty where the model failed."""
    return _common.Column(title, lambda row: "" if "error" in row else cell(row), is_number)


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("batch, input", lambda row: row.get("work", ""), is_number=False),
    _column("stock, ms", lambda row: _common.milliseconds(row["stock_step_seconds"])),
    _column("tfaccel, ms", lambda row: _common.milliseconds(row["step_seconds"])),
    _column("samples/s", lambda row: _or_dash(row.get("samples_per_second"), "{:.0f}")),
    _column("MFU", lambda row: _or_dash(row.get("mfu"), "{:.0%}")),
    _column("speedup [95 %]", _speedup),
    _column("Keras's own settings, ms", _settings_told),
    _column("drift", lambda row: f"{row['drift']['gradient']:.0e}" if row["drift"] else "-"),
    _column("tuning, s", lambda row: f"{row['tuning_seconds']:.0f}"),
    _column(
        "first step, s (stock)",
        lambda row: f"{row['first_step_seconds']:.1f} ({row['stock_first_step_seconds']:.1f})",
    ),
    _common.Column("plan", lambda row: row.get("error") or row["plan"], is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    tf.config.experimental.enable_tensor_float_32_execution(_TENSOR_FLOAT_32.value)
    written = "" if _POLICY.value == "float32" else f"-{_POLICY.value.replace('_', '-')}"
    exact = "" if _TENSOR_FLOAT_32.value else "-without-tf32"
    results = _common.Results(
        f"training{'' if _PLAN.value is None else '-with-plan'}{written}{exact}",
        f"A training step, stock Keras and tfaccel{written and f', models in {_POLICY.value}'}",
        COLUMNS,
        pathlib.Path(_OUTPUT.value),
        _RESUME.value,
    )
    chosen = (
        dataclasses.replace(m, policy=_POLICY.value)
        for m in models.chosen(_MODELS.value, _SIZES.value)
    )
    _common.measure_each(results, tuple(chosen), measure)


if __name__ == "__main__":
    app.run(main)
