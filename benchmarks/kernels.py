"""What tfaccel's kernels win on the products of real models, shape by shape.

    python benchmarks/kernels.py --models resnet50,mobilenet_v2

Each convolution and matrix product of each model is measured in its three directions, by
every kernel that serves it, on random data of the shapes that the model's layers see. The
table has TensorFlow's own time and that of the kernel which the pass `kernels` would use.

    python benchmarks/kernels.py --models cnn --families opencl

measures a kernel that may have to be asked for, and the table has its time, whoever wins.
"""

import collections
import dataclasses
import pathlib
import time

import _common
import keras
import models
from absl import app, flags

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.ops.kernels import DIRECTIONS, REFERENCE, Candidate, Ranking
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.passes.kernels._selection import Selection
from tfaccel.passes.kernels.kernels import Kernels

_MODELS = flags.DEFINE_list("models", None, "of models.py; all by default")
_SECONDS = flags.DEFINE_float("max_seconds", 600.0, "for one model; the largest products first")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the products")
_FAMILIES = flags.DEFINE_list("families", [], "kernels to measure that are else left out")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder of the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")


def measured(benchmark: models.Benchmark) -> Selection:
    """The kernels of a model's layers, measured (or known from an earlier run)."""
    policy = "float32" if _DTYPE.value == "float32" else f"mixed_{_DTYPE.value}"
    model = dataclasses.replace(benchmark, policy=policy).model()
    batch = next(iter(benchmark.dataset()))
    workload = Workload(model, (batch,))
    families = tuple(_FAMILIES.value)
    item = Kernels(_SECONDS.value, exhaustive=not families, families=families)
    # Its products are chosen, too, where the model has attention layers.
    before = (FusedAttention(),) if FusedAttention().unsupported(workload) is None else ()
    plan = Plan((*before, item))
    context = StepContext(workload)
    item.prepare(context, plan, time.perf_counter, time.perf_counter() + _SECONDS.value)
    return context.prepared[item.name]


def shown(ranking: Ranking) -> Candidate | None:
    """The kernel that was asked for, where it was timed, else the one that would be used."""
    if not _FAMILIES.value:
        return ranking.best(in_xla=False)
    return next((c for c in ranking.candidates if c.kernel in _FAMILIES.value and c.speedup), None)


def rows(name: str, selection: Selection) -> list[_common.Row]:
    """A row for each call and direction that was measured."""
    counts = collections.Counter(spec for specs in selection.seen.values() for spec in specs)
    found = []
    for spec, count in counts.items():
        for direction in DIRECTIONS:
            ranking = selection.ranking(spec.along(direction))
            if ranking is None:
                continue
            best = shown(ranking)
            seconds = ranking.reference_seconds
            gain = best.speedup if best else None
            found.append(
                {
                    "model": name,
                    "call": str(spec),
                    "layers": count,
                    "direction": direction.replace("_", " "),
                    "tensorflow_seconds": seconds,
                    "kernel": best.kernel if best else REFERENCE,
                    "seconds": seconds / gain.median if gain else seconds,
                    "speedup_interval": [gain.low, gain.high] if gain else [1.0, 1.0],
                    "others": [str(c) for c in ranking.candidates if c is not best and c.speedup],
                }
            )
    return found


def summary(found: list[_common.Row]) -> tuple[dict[str, float], tuple[str, ...]]:
    """What all products of a step take, before and after, model by model."""
    sentences, numbers = [], {}
    for name in dict.fromkeys(row["model"] for row in found):
        own = [row for row in found if row["model"] == name]
        before, after = (
            sum(row["layers"] * row[key] for row in own)
            for key in ("tensorflow_seconds", "seconds")
        )
        numbers |= {f"{name}_before_seconds": before, f"{name}_after_seconds": after}
        sentences.append(
            f"{name}: {1e3 * before:.0f} ms of products a step by TensorFlow's own kernels, "
            f"{1e3 * after:.0f} ms by those chosen ({before / after:.2f}x)."
        )
    return numbers, tuple(sentences)


def _speedup(row: _common.Row) -> str:
    low, high = row["speedup_interval"]
    gain = row["tensorflow_seconds"] / row["seconds"] if row["seconds"] else 1.0
    return "" if row["kernel"] == REFERENCE else f"{gain:.2f}x [{low:.2f}, {high:.2f}]"


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("product", lambda row: row["call"], is_number=False),
    _common.Column("layers", lambda row: str(row["layers"])),
    _common.Column("direction", lambda row: row["direction"], is_number=False),
    _common.Column("TensorFlow, ms", lambda row: f"{1e3 * row['tensorflow_seconds']:.2f}"),
    _common.Column("chosen, ms", lambda row: f"{1e3 * row['seconds']:.2f}"),
    _common.Column("speedup [95 %]", _speedup),
    _common.Column("kernel", lambda row: row["kernel"], is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    who = ", ".join(_FAMILIES.value) or "the chosen"
    title = f"Convolutions and matrix products in {_DTYPE.value}, TensorFlow's and {who}"
    dtype = () if _DTYPE.value == "float32" else (_DTYPE.value,)
    # priors.py reads those whose names begin with "kernels".
    name = "-".join((*_FAMILIES.value, "kernels", *dtype))
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results(name, title, COLUMNS, folder, _RESUME.value)
    console = _common.console()
    done = {row["model"] for row in results.rows}
    for benchmark in models.chosen(_MODELS.value):
        if benchmark.name in done:
            continue
        console.print(f"{benchmark.name} ...")
        for row in rows(benchmark.name, measured(benchmark)):
            results.add(row, summary)
        keras.backend.clear_session()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
