"""What tfaccel's kernels win on the products of real models, shape by shape.

    python benchmarks/kernels.py --models resnet50,mobilenet_v2

Each convolution and matrix product of each model is measured in its three directions, by
every kernel that serves it, on random data of the shapes that the model's layers see. The
table has TensorFlow's own time and that of the kernel which the pass `kernels` would use.

    python benchmarks/kernels.py --families opencl

measures a kernel that may have to be asked for, and the table has its time, whoever wins. All
models together then take no more than `--all_seconds`. Of matrix products it also has the time of
CLBlast on the same OpenCL device, where that is installed (Debian: `apt install libclblast1`), and
of square ones every variant of the kernel.
"""

import collections
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator

import _clblast
import _common
import keras
import models
import tensorflow as tf
from absl import app, flags

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.ops.kernels import DIRECTIONS, REFERENCE, Candidate, Ranking, matmul_spec
from tfaccel.ops.kernels._opencl.variants import VARIANTS
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.passes.kernels._selection import Selection
from tfaccel.passes.kernels.kernels import Kernels

_MODELS = flags.DEFINE_list("models", None, "of models.py; all by default")
_SECONDS = flags.DEFINE_float("max_seconds", 600.0, "for one model; the largest products first")
_ALL_SECONDS = flags.DEFINE_float("all_seconds", 480.0, "for all models with --families")
_SIZES = flags.DEFINE_list("sizes", ["256", "512", "1024"], "of square products with opencl")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the products")
_FAMILIES = flags.DEFINE_list("families", [], "kernels to measure that are else left out")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder of the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")
# For each race of a product with CLBlast's, and the largest that is raced: seconds on a CPU.
_RACE_SECONDS, _MOST_FLOPS = 0.5, 5e9
SQUARE = "square products"


def measured(benchmark: models.Benchmark, seconds: float) -> Selection:
    """The kernels of a model's layers, measured (or known from an earlier run)."""
    policy = "float32" if _DTYPE.value == "float32" else f"mixed_{_DTYPE.value}"
    model = dataclasses.replace(benchmark, policy=policy).model()
    batch = next(iter(benchmark.dataset()))
    workload = Workload(model, (batch,))
    families = tuple(_FAMILIES.value)
    item = Kernels(seconds, exhaustive=not families, families=families)
    # Its products are chosen, too, where the model has attention layers.
    before = (FusedAttention(),) if FusedAttention().unsupported(workload) is None else ()
    plan = Plan((*before, item))
    context = StepContext(workload)
    item.prepare(context, plan, time.perf_counter, time.perf_counter() + seconds)
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
            if spec.op == "matmul" and len(spec.w) == 2 and direction == "forward":
                found[-1] |= _beside_clblast(spec.x, spec.w)
    return found


def _beside_clblast(x: tuple[int, ...], w: tuple[int, ...]) -> _common.Row:
    """CLBlast's time of a product, and the share of its speed; nothing where nobody asked."""
    shape = (math.prod(x[:-1]), *w)
    is_asked = "opencl" in _FAMILIES.value and 2 * math.prod(shape) <= _MOST_FLOPS
    if not is_asked or _clblast.library() is None:
        return {}
    (times,) = _clblast.measured(shape, tf.matmul, _RACE_SECONDS)
    return {"clblast_seconds": times.clblast_seconds, "clblast_share": times.share}


def square(size: int) -> Iterator[_common.Row]:
    """A row for each variant of the OpenCL product."""
    spec = matmul_spec((size, size), (size, size), "float32")
    for times in _clblast.measured((size,) * 3, tf.matmul, _RACE_SECONDS, VARIANTS):
        yield {
            "model": SQUARE,
            "call": str(spec),
            "layers": 1,
            "direction": "forward",
            "tensorflow_seconds": times.tensorflow_seconds,
            "kernel": f"opencl: {times.variant}{' (chosen)' if times.is_chosen else ''}",
            "is_chosen": times.is_chosen,
            "is_tiled": times.variant.tiled,
            "seconds": times.seconds,
            "speedup_interval": list(times.speedup_interval),
            "clblast_seconds": times.clblast_seconds,
            "clblast_share": times.share,
            "others": [],
        }


def summary(found: list[_common.Row]) -> tuple[dict[str, float], tuple[str, ...]]:
    """What all products of a step take, before and after, model by model."""
    sentences, numbers = [], {}
    who = ", ".join(_FAMILIES.value) or "those chosen"
    for name in dict.fromkeys(row["model"] for row in found if row["model"] != SQUARE):
        own = [row for row in found if row["model"] == name]
        before, after = (
            sum(row["layers"] * row[key] for row in own)
            for key in ("tensorflow_seconds", "seconds")
        )
        numbers |= {f"{name}_before_seconds": before, f"{name}_after_seconds": after}
        sentences.append(
            f"{name}: {1e3 * before:.0f} ms of products a step by TensorFlow's own kernels, "
            f"{1e3 * after:.0f} ms by {who} ({before / after:.2f}x)."
        )
    for key, words in (("is_chosen", "the variant that is chosen"), ("is_tiled", "local memory")):
        shares = [row["clblast_share"] for row in found if row.get(key)]
        if shares and None not in shares:
            numbers[f"{key}_least_share_of_clblast"] = min(shares)
            sentences.append(
                f"Square products by {words}: {100 * min(shares):.0f} to {100 * max(shares):.0f} % "
                "of CLBlast's speed on the same device."
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


OF_CLBLAST = (
    _common.Column("CLBlast, ms", lambda row: _common.milliseconds(row.get("clblast_seconds"))),
    _common.Column(
        "of its speed",
        lambda row: f"{100 * row['clblast_share']:.0f} %" if row.get("clblast_share") else "",
    ),
)


def _measure_all(results: _common.Results) -> None:
    """Adds the rows of every model; with `--families` in so many seconds in all."""
    console, done = _common.console(), {row["model"] for row in results.rows}
    deadline = time.perf_counter() + _ALL_SECONDS.value
    if "opencl" in _FAMILIES.value and SQUARE not in done:
        for size in _SIZES.value:
            console.print(f"{size} x {size} ...")
            for row in square(int(size)):
                results.add(row, summary)
    wanted = [benchmark for benchmark in models.chosen(_MODELS.value) if benchmark.name not in done]
    for place, benchmark in enumerate(wanted):
        seconds = _SECONDS.value
        if _FAMILIES.value:
            left = deadline - time.perf_counter()
            seconds = min(seconds, left / (len(wanted) - place))
        if seconds <= 0:
            console.print(f"{benchmark.name}: out of time")
            continue
        console.print(f"{benchmark.name} ...")
        for row in rows(benchmark.name, measured(benchmark, seconds)):
            results.add(row, summary)
        keras.backend.clear_session()


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    who = ", ".join(_FAMILIES.value) or "the chosen"
    title = f"Convolutions and matrix products in {_DTYPE.value}, TensorFlow's and {who}"
    dtype = () if _DTYPE.value == "float32" else (_DTYPE.value,)
    # priors.py reads those whose names begin with "kernels".
    name = "-".join((*_FAMILIES.value, "kernels", *dtype))
    folder = pathlib.Path(_OUTPUT.value)
    columns = (*COLUMNS, *OF_CLBLAST) if "opencl" in _FAMILIES.value else COLUMNS
    results = _common.Results(name, title, columns, folder, _RESUME.value)
    _measure_all(results)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
