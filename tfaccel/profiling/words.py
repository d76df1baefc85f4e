"""The records of a training, as a sentence and as a table."""

from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table

from tfaccel.measure.units import number, ratio, size


def sentence(record: Mapping[str, Any]) -> str:
    """An `interval` record in a line, to be read beside Keras's progress bar."""
    if record["time/step_ms"] is None:
        return f"tfaccel: epoch {record['epoch'] + 1}: no step without tracing or tuning"
    usual, most = number(record["time/step_ms"]), number(record["time/step_ms_p95"])
    parts = [f"{usual} ms a step (95 % within {most})"]
    if record["throughput/samples_per_sec"] is not None:
        parts.append(f"{record['throughput/samples_per_sec']:,.0f} samples/s")
    if record["time/input_wait_share"] is not None:
        bound = "input-bound, " if record["input_bound"] else ""
        parts.append(f"{bound}{record['time/input_wait_share']:.0%} of it waiting for input")
    if record["accel/speedup"] is not None:
        parts.append(f"{_speedup(record, 'accel/')} the speed of your own step")
    return f"tfaccel: epoch {record['epoch'] + 1}: " + ", ".join(parts)


def table(summary: Mapping[str, Any], shapes: list[str]) -> rich.table.Table:
    """The closing table: what was measured, in words that need no key."""
    made = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, title="tfaccel: what was measured", title_justify="left"
    )
    made.add_column("measure", no_wrap=True)
    made.add_column("value", overflow="fold")
    for name, value in rows(summary, shapes):
        made.add_row(name, value)
    return made


def rows(summary: Mapping[str, Any], shapes: list[str]) -> list[tuple[str, str]]:
    """The cells of the closing table; what is unknown is left out."""
    found = [
        ("plan", summary["plan"] if summary["plan"] != "baseline" else "your own step"),
        ("step", _step(summary)),
        ("throughput", _throughput(summary)),
        ("scaling", _scaling(summary)),
        ("waiting for input", _waiting(summary)),
        ("speedup", _gain(summary)),
        ("first step", _first(summary)),
        ("tuning", _tuning(summary)),
        ("work", _work(summary)),
        ("memory, at most", _memory(summary)),
        ("loss scale", "" if summary["loss_scale"] is None else f"{summary['loss_scale']:g}"),
        ("traces", _traces(summary, shapes)),
        ("cost of profiling", _share(summary["overhead_share"], "of the time")),
    ]
    return [(name, value) for name, value in found if value]


def _share(value: float | None, of: str) -> str:
    return "" if value is None else f"{value:.1%} {of}"


def _speedup(record: Mapping[str, Any], prefix: str = "") -> str:
    """The ratio, with its 95 % interval once there is one."""
    low, high = record[f"{prefix}speedup_low"], record[f"{prefix}speedup_high"]
    interval = "" if low is None else f" [{low:.2f}-{high:.2f}]"
    return f"{ratio(record[f'{prefix}speedup'])}{interval}"


def _step(summary: Mapping[str, Any]) -> str:
    if summary["step_ms"] is None:
        return ""
    usual, most = number(summary["step_ms"]), number(summary["step_ms_p95"])
    return f"{usual} ms (median; 95 % within {most} ms)"


def _throughput(summary: Mapping[str, Any]) -> str:
    if summary["batches_per_sec"] is None:
        return ""
    samples = summary["samples_per_sec"]
    first = "" if samples is None else f"{samples:,.0f} samples/s, "
    return f"{first}{number(summary['batches_per_sec'])} steps/s"


def _scaling(summary: Mapping[str, Any]) -> str:
    replicas, efficiency = summary["replicas"], summary["scaling_efficiency"]
    if replicas == 1:
        return ""
    if efficiency is None:
        return f"{replicas} replicas"
    alone = number(summary["one_replica_step_ms"])
    return (
        f"{efficiency:.0%} of {replicas} times one replica's throughput "
        f"(alone it takes {alone} ms a step)"
    )


def _waiting(summary: Mapping[str, Any]) -> str:
    share = _share(summary["input_wait_share"], "of a step")
    if not summary["input_bound"]:
        return share
    remedy = "prefetch, cache or parallelise the input pipeline"
    return f"{share}: input-bound. A faster step would only wait longer; {remedy}"


def _gain(summary: Mapping[str, Any]) -> str:
    if summary["speedup"] is not None:
        return f"{_speedup(summary)} (from {summary['comparisons']} comparisons with your own step)"
    if summary["input_bound"] and summary["comparisons"]:
        return "not claimed, as the input pipeline sets the pace"
    return ""


def _first(summary: Mapping[str, Any]) -> str:
    if summary["first_step_seconds"] is None:
        return ""
    compiling = f"tracing and compiling took {number(summary['compile_seconds'])} s in all"
    return f"{number(summary['first_step_seconds'])} s; {compiling}"


def _tuning(summary: Mapping[str, Any]) -> str:
    if not summary["tuning_seconds"]:
        return ""
    even = summary["break_even_steps"]
    paid = f", paid back after {even:,} steps" if even else ""
    return f"{number(summary['tuning_seconds'])} s{paid}"


def _work(summary: Mapping[str, Any]) -> str:
    if not summary["flops_per_step"]:
        return ""
    work = f"{number(summary['flops_per_step'] / 1e9)} GFLOP a step"
    if summary["mfu"] is None:
        return work
    peak = f"{number(summary['peak_flops_per_second'] / 1e12)} TFLOP/s ({summary['peak_source']})"
    return f"{work}, {summary['mfu']:.1%} of the peak of {peak}"


def _memory(summary: Mapping[str, Any]) -> str:
    device, host = summary["peak_bytes"], summary["host_peak_bytes"]
    parts = [f"{size(device)} on the device"] if device else []
    return ", ".join(parts + ([f"{size(host)} in the process"] if host else []))


def _traces(summary: Mapping[str, Any], shapes: list[str]) -> str:
    said = f"{summary['traces']}"
    if summary["compiles"]:
        said += f", and {summary['compiles']} compilations by XLA"
    causes = list(dict.fromkeys(shapes))
    return said if len(causes) < 2 else f"{said}, for batches of {'; '.join(causes)}"
