import dataclasses
import json

import keras
import pytest

import tfaccel
from tfaccel.autotune.priors import expected
from tfaccel.core.plan import as_plan
from tfaccel.core.workload import Workload
from tfaccel.passes import PASSES, XLA, FusedNorm, FusedOptimizer, MixedPrecision, StepBatching


def test_the_baseline_is_an_empty_plan():
    assert tfaccel.Plan().is_baseline
    assert str(tfaccel.Plan()) == "baseline"


@pytest.mark.parametrize(
    "plan",
    [
        tfaccel.Plan(),
        tfaccel.Plan((FusedNorm(), FusedOptimizer())),
        tfaccel.Plan((MixedPrecision("float16", keep=("head", "embedding")), XLA(False))),
    ],
    ids=str,
)
def test_a_plan_survives_json_and_files(plan, tmp_path):
    assert tfaccel.Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "plan.json")
    assert tfaccel.Plan.load(tmp_path / "plan.json") == plan
    assert as_plan(str(tmp_path / "plan.json")) == plan


def test_a_plan_from_names():
    assert as_plan(["xla", "fused_norm"]) == tfaccel.Plan((XLA(), FusedNorm()))
    assert as_plan("baseline") == tfaccel.Plan()
    assert as_plan([XLA()]) == tfaccel.Plan((XLA(),))


def test_without():
    plan = tfaccel.Plan((FusedNorm(), XLA()))
    assert plan.without("fused_norm") == tfaccel.Plan((XLA(),))


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("nowhere.json", ValueError, "no such file"),
        ("xla", ValueError, r"write \['xla'\]"),
        (["warp_drive"], ValueError, "No pass is called 'warp_drive'. Known:"),
        (3, TypeError, r"Received: 3 \(of type int\)"),
        ([3], TypeError, "must hold tfaccel.Pass objects"),
        (["xla", "xla"], ValueError, "must not hold a pass twice"),
    ],
)
def test_a_wrong_plan_is_told_so(argument, error, message):
    with pytest.raises(error, match=message):
        as_plan(argument)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"schema": 99, "passes": []}',
        '{"schema": 1}',
        '{"schema": 1, "passes": [3]}',
        '{"schema": 1, "passes": [{"name": "xla", "config": {"turbo": true}}]}',
    ],
)
def test_text_that_is_no_plan_is_told_so(text):
    with pytest.raises(ValueError, match=r"plan|pass"):
        tfaccel.Plan.from_json(text)


def test_a_pass_of_the_user_s_own_travels_too():
    @dataclasses.dataclass(frozen=True)
    class Own(tfaccel.Pass):
        name = "own_of_this_test"
        level: int = 1

        def unsupported(self, workload):
            return tfaccel.Unsupported("never serves")

        def applied(self, context):
            raise NotImplementedError

    workload = Workload(keras.Sequential())
    ((item, prior),) = expected(workload, ["own_of_this_test"])
    assert (item, prior.pays, item.cache_key(workload)) == (Own(), True, None)
    plan = tfaccel.Plan((Own(level=3),))
    assert tfaccel.Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["passes"][0]["config"] == {"level": 3}
    with pytest.raises(TypeError, match="is taken by"):

        class Other(Own):
            name = "own_of_this_test"


@pytest.mark.parametrize("name", [None, "two words", 3])
def test_a_pass_needs_a_name(name):
    with pytest.raises(TypeError, match="class attribute `name`"):
        type("Nameless", (tfaccel.Pass,), {"name": name})


def test_passes_are_expected_in_the_order_of_the_table():
    """Those of the user's own come last; a pass is configured for the workload."""

    @dataclasses.dataclass(frozen=True)
    class Last(FusedNorm):
        name = "last"

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=True)
    names = ["last", *reversed([item.name for item in PASSES])]
    found = [item for item, _ in expected(Workload(model, step_seconds=0.02), names)]
    assert [item.name for item in found] == [*reversed(names)]
    assert XLA(jit_compile=False) in found and StepBatching(steps=4) in found


def test_the_table_of_passes_has_each_once():
    names = [item.name for item in PASSES]
    assert len(set(names)) == len(names)
