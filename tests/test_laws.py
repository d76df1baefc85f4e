"""The laws of DESIGN: every pass, every kind of model and feed."""

import ast
import dataclasses
import functools
import json
import pathlib

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.passes import PASSES, FusedNorm, FusedOptimizer, FusedRNN
from tfaccel.plan import Plan, make_pass
from tfaccel.probe import Probe
from tfaccel.state import Snapshot, known_variables
from tfaccel.trial import coarsest_dtype
from tfaccel.workload import Workload

ROOT = pathlib.Path(__file__).parent.parent
ROWS = pytest.mark.parametrize("row", catalogue.PASS_ROWS, ids=lambda row: row.item.name)
FITS = pytest.mark.parametrize("fit", catalogue.FITS, ids=lambda fit: fit.name)


def marks(workload):
    """Everything about the user's objects that a pass might leave a mark on."""
    objects = [*workload.layers, *workload.optimizers]
    seen = [(id(o), sorted(vars(o)), {k: id(v) for k, v in vars(o).items()}) for o in objects]
    policies = [layer.dtype_policy for layer in workload.layers]
    return seen, policies, workload.model.jit_compile, keras.config.dtype_policy()


@pytest.fixture(scope="module")
def built():
    """A row's workload, built once for all rows: the laws are that nothing stays on it."""
    return functools.cache(lambda row_workload: row_workload())


@ROWS
def test_leaving_a_pass_restores_everything(row, built):
    workload = built(row.workload)
    before = marks(workload)
    with row.item.applied(workload):
        assert (marks(workload) != before) == row.item.changes_step
    assert marks(workload) == before
    with pytest.raises(ZeroDivisionError), row.item.applied(workload):
        raise ZeroDivisionError
    assert marks(workload) == before


@ROWS
def test_refusing_changes_nothing(row, built):
    workload = built(row.workload)
    before = marks(workload), [v.numpy().tobytes() for v in known_variables(workload)]
    assert row.item.refusal(workload) is None
    after = marks(workload), [v.numpy().tobytes() for v in known_variables(workload)]
    assert after == before


@ROWS
def test_a_pass_survives_json(row):
    config = json.loads(json.dumps(row.item.to_config()))
    assert make_pass(row.item.name, config) == row.item


@pytest.fixture(scope="module")
def untouched(built):
    """A row's probe, and what it saw of the untouched step."""

    def observed(row_workload):
        workload = built(row_workload)
        probe = Probe(workload, Snapshot.of(workload))
        return probe, probe.observe(Plan())

    return functools.cache(observed)


@ROWS
def test_a_pass_is_faithful(row, built, untouched):
    """Loss, gradients, update and statistics against the untouched step."""
    workload = built(row.workload)
    probe, reference = untouched(row.workload)
    drift = tfaccel.numerics.compare(reference, probe.observe(Plan((row.item,)), reference))
    dtype = coarsest_dtype(Plan((row.item,)), workload)
    assert drift.violation(tfaccel.numerics.TOLERANCES[dtype]) is None


def test_every_pass_has_a_row_and_a_section():
    rows = [type(row.item) for row in catalogue.PASS_ROWS]
    assert rows == list(PASSES)
    text = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    for item in PASSES:
        assert f"`{item.name}`" in text, f"docs/passes.md has no section on {item.name}"


def assert_identical(left, right):
    assert len(left[0]) == len(right[0])
    for a, b in zip(left[0], right[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert left[1] == right[1]


@FITS
def test_the_baseline_plan_is_no_callback(fit):
    assert_identical(
        catalogue.stock_results(fit), catalogue.results(fit, tfaccel.AccelCallback("baseline"))
    )


@dataclasses.dataclass(frozen=True)
class Nothing(tfaccel.Pass):
    """Serves everything and changes nothing, so that whatever differs is the engine's doing."""

    name = "nothing"

    def refusal(self, workload):
        return None

    def applied(self, workload):
        return tf.name_scope("")


@FITS
def test_trials_leave_no_trace(fit):
    """Real trials, with their steps and probes, and then training as if they had not been."""
    accel = tfaccel.AccelCallback(
        includes=["nothing"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    assert_identical(catalogue.stock_results(fit), catalogue.results(fit, accel))
    assert len(accel.report.trials) == 2, accel.report.to_markdown()
    assert accel.report.trials[1].outcome.value in ("slower", "faster", "stopped")


@FITS
def test_an_accelerated_training_is_the_same_training(fit):
    """All float32 passes that serve the model: the same losses to rounding."""
    model, _ = fit.make()
    serving = [
        item
        for item in (FusedNorm(), FusedOptimizer(), FusedRNN())
        if not item.refusal(Workload(model))
    ]
    stock = catalogue.stock_results(fit)
    fast = catalogue.results(fit, tfaccel.AccelCallback(serving))
    for a, b in zip(stock[1], fast[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


# What each module may import from the package: itself excluded, everything before it.
LAYERS = (
    {
        "version",
        "scoped",
        "keras_private",
        "device",
        "empty_batch",
        "disk",
        "numerics",
        "timing",
        "tables",
        "records",
        "memory",
        "replicas",
        "rounding",
    },
    {"onednn", "workload", "machine", "strategy"},
    {"state", "hindrance", "plan", "feed", "consensus", "dataset_graph", "forward"},
    {"data"},
    {"loss_scale", "kernels", "attention", "chains"},
    {"batch_norm"},
    {"ops"},
    {"passes"},
    {"step_group", "probe", "guard", "priors"},
    {"step"},
    {"trial", "accelerated"},
    {"report", "layers", "bench"},
    {"rescue", "given_plan"},
    {"tuner", "validation", "train_function"},
    {"cache"},
    {"settings", "progress"},
    {"session", "profiling", "html_report"},
    {"workbench", "explain"},
    {"tune", "memory_search", "inference"},
    {"callbacks"},
    {"commands"},
    {"cli"},
    {"__main__"},
)


def test_imports_point_one_way():
    rank = {name: index for index, names in enumerate(LAYERS) for name in names}
    for path in sorted((ROOT / "tfaccel").rglob("*.py")):
        room = path.relative_to(ROOT / "tfaccel").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in rank, f"{path} has no place in the order of imports"
        for module in imported(path):
            if module in rank and module != room:
                assert rank[module] <= rank[room], f"{path} imports tfaccel.{module}"


def test_passes_never_import_each_other():
    files = {p.stem for p in (ROOT / "tfaccel" / "passes").glob("*.py")} - {"__init__"}
    for name in files:
        tree = ast.parse((ROOT / "tfaccel" / "passes" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "tfaccel.passes."
            ):
                assert node.module.rpartition(".")[2].startswith("_"), f"{name}: {node.module}"


def imported(path):
    """The rooms of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "tfaccel":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfaccel."):
            yield node.module.split(".")[1]
