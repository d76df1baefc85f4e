"""What is in a profile.jsonl: every kind of record, with its keys."""

import dataclasses

SCHEMA = 1
FILE_NAME = "profile.jsonl"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a kind of record.

    Attributes:
        name: the key.
        unit: its unit, or its type where it has none.
        meaning: what it says, in a few words.
    """

    name: str
    unit: str
    meaning: str


RUN, TRACE, TUNING, COMPARISON = "run", "trace", "tuning", "comparison"
INTERVAL, OPS, SUMMARY = "interval", "ops", "summary"

_SPEEDUP = "how many times as fast a step is under the plan; null where no speedup is claimed"
_PEAK = "most memory used on the device so far; null on a CPU"
_HOST_PEAK = "most memory of the process so far"
_SCALE = "float16's loss scale; null for other dtypes"
_WAIT = "share of the time that is spent waiting for input"
_BOUND = "whether the input pipeline, not the step, sets the pace"

# The schema: every kind of record, with its keys. docs/report.md shows the same.
KINDS: dict[str, tuple[Key, ...]] = {
    RUN: (
        Key("schema", "integer", f"version of this schema, {SCHEMA}"),
        Key("started", "ISO 8601", "when the run began"),
        Key(
            "machine", "object", "the machine, as `tfaccel.system.machine.machine_facts()` tells it"
        ),
        Key("model", "object", "`name`, and `parameters`, how many it has"),
        Key("batch_size", "samples", "in the first batch"),
        Key("epochs", "epochs", "that `fit` was asked for"),
        Key("steps_per_epoch", "steps", "null where the length of the data is unknown"),
    ),
    TRACE: (
        Key("step", "steps", "steps of the run before this one"),
        Key("seconds", "s", "time of the step that traced or compiled"),
        Key("traces", "count", "traces so far, this one included"),
        Key("compiles", "count", "compilations by XLA so far, this one included"),
        Key("plan", "text", "the plan that the step ran under"),
        Key("shapes", "list of text", "shape and dtype of each tensor of the batch that caused it"),
    ),
    TUNING: (
        Key("step", "steps", "steps of the run before the trials"),
        Key("seconds", "s", "time that the training waited for its tuning"),
        Key("report", "object", "what `tfaccel.Report.to_json` says"),
    ),
    COMPARISON: (
        Key("step", "steps", "steps of the run before the untouched one"),
        Key("plan", "text", "the plan compared with the untouched step"),
        Key("baseline_seconds", "s", "time of the untouched step"),
        Key("plan_seconds", "s", "mean time of the plan's steps just before and just after it"),
    ),
    INTERVAL: (
        Key("epoch", "index", "from 0"),
        Key("step", "steps", "steps of the run at the interval's end"),
        Key("plan", "text", "the plan in use"),
        Key("seconds", "s", "length of the interval"),
        Key("steps", "steps", "in the interval"),
        Key("input_bound", "true or false", _BOUND),
        Key("throughput/batches_per_sec", "1/s", "batches trained on"),
        Key("throughput/samples_per_sec", "1/s", "samples trained on"),
        Key("throughput/device/mfu", "share", "model FLOP/s over the device's peak"),
        Key("time/step_ms", "ms", "the median step"),
        Key("time/step_ms_p95", "ms", "95 of 100 steps take no longer"),
        Key("time/input_wait_share", "share", _WAIT),
        Key("memory/peak_bytes", "bytes", _PEAK),
        Key("memory/host_peak_bytes", "bytes", _HOST_PEAK),
        Key("accel/speedup", "ratio", _SPEEDUP),
        Key("accel/speedup_low", "ratio", "lower end of its 95 % interval"),
        Key("accel/speedup_high", "ratio", "upper end of its 95 % interval"),
        Key("accel/loss_scale", "factor", _SCALE),
        Key("accel/traces", "count", "traces of the step so far"),
    ),
    OPS: (
        Key("plan", "text", "the plan that was traced by the TensorFlow profiler"),
        Key("steps", "steps", "in the trace"),
        Key("seconds", "s", "time of these steps"),
        Key("ops", "list of objects", "`name`, `op_kind`, `count` and `seconds` of each op"),
        Key("kinds", "object", "seconds by kind of op"),
    ),
    SUMMARY: (
        Key("steps", "steps", "of the run"),
        Key("seconds", "s", "time of the run"),
        Key("first_step_seconds", "s", "time of the first step"),
        Key("compile_seconds", "s", "what steps that traced took longer than others"),
        Key("step_ms", "ms", "the median step"),
        Key("step_ms_p95", "ms", "95 of 100 steps take no longer"),
        Key("batches_per_sec", "1/s", "batches trained on"),
        Key("samples_per_sec", "1/s", "samples trained on, by all replicas"),
        Key("replicas", "count", "how many train together; 1 without a strategy"),
        Key("one_replica_step_ms", "ms", "a step of one that trains alone; null if not timed"),
        Key("scaling_efficiency", "share", "that over a step of all together"),
        Key("input_wait_share", "share", _WAIT),
        Key("input_bound", "true or false", _BOUND),
        Key("mfu", "share", "model FLOP/s over the device's peak"),
        Key("flops_per_step", "FLOP", "of the model, forward and backward"),
        Key("peak_flops_per_second", "FLOP/s", "the most that the device can do"),
        Key("peak_source", "text", "where that figure is from"),
        Key("speedup", "ratio", _SPEEDUP),
        Key("speedup_low", "ratio", "lower end of its 95 % interval"),
        Key("speedup_high", "ratio", "upper end of its 95 % interval"),
        Key("comparisons", "count", "pairs that the speedup is made of"),
        Key("overhead_share", "share", "of the time that profiling took, comparisons included"),
        Key("peak_bytes", "bytes", _PEAK),
        Key("host_peak_bytes", "bytes", _HOST_PEAK),
        Key("loss_scale", "factor", _SCALE),
        Key("traces", "count", "traces of the step"),
        Key("compiles", "count", "compilations by XLA"),
        Key("plan", "text", "the plan in use at the end"),
        Key("break_even_steps", "steps", "after which tuning is paid back; null for never"),
        Key("tuning_seconds", "s", "time that the training waited for its tuning"),
    ),
}
