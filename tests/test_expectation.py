"""What is expected of plans: priors where nothing is known, evidence where there is some."""

import contextlib
import dataclasses

import keras
import pytest

import tfaccel
from tfaccel import Plan, Speedup
from tfaccel.autotune.expected.candidates import Candidates
from tfaccel.autotune.expected.evidence import Evidence, evidence_of, shipped
from tfaccel.autotune.expected.expectation import Expectation
from tfaccel.autotune.expected.layer_mix import distance, layer_mix
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.passes import PASSES

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class First(tfaccel.Pass):
    name = "first_expected"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()

    def prior(self, workload):
        return Prior(gain=1.5)


class Second(First):
    name = "second_expected"

    def prior(self, workload):
        return Prior(gain=1.2, prepare_seconds=3.0)


A, B = First(), Second()


@pytest.fixture
def workload():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])
    model.compile("sgd", "mse")
    return Workload(model, first_step_seconds=2.0, step_seconds=0.1, steps_to_come=1000)


def expectation(workload, evidence=()):
    return Expectation(workload, [(A, A.prior(workload)), (B, B.prior(workload))], evidence)


def seen(workload, passes, gain, trace=1.0):
    machine = MachineClass.of(workload.device)
    return Evidence(machine, layer_mix(workload), tuple(p.name for p in passes), gain, trace)


def test_priors_stand_where_nothing_was_measured(workload):
    found = expectation(workload)
    assert found.gain(Plan((A, B))) == pytest.approx(1.5 * 1.2)
    # A later trace takes half of a first step, which readies much else.
    assert found.trace_seconds(Plan((A,))) == pytest.approx(1.0)
    assert found.cost_seconds(Plan((B,))) == pytest.approx(1.0 + 3.0 + 0.6)


def test_recording_gradients_takes_two_traces_more(workload):
    """As clipped ones are, which the optimizer's state does not show."""
    workload.model.compile(keras.optimizers.SGD(clipnorm=1.0), "mse")
    workload.model.optimizer.build(workload.model.trainable_variables)
    assert expectation(workload).cost_seconds(Plan((A,))) == pytest.approx(3 * 1.0 + 0.6)


def test_evidence_corrects_them(workload):
    many = [seen(workload, [A, B], 1.0, 3.0), seen(workload, [A], 1.0, 3.0)] * 30
    found = expectation(workload, many)
    assert found.gain(Plan((A, B))) == pytest.approx(1.0, abs=0.05)
    assert found.gain(Plan((A,))) == pytest.approx(1.0, abs=0.05)
    assert found.trace_seconds(Plan((A,))) == pytest.approx(6.0, rel=0.1)


def test_passes_may_win_more_together_than_alone(workload):
    """As kernels do in 16 bits; where one is left out, what they do to each other is, too."""
    alone = [seen(workload, [A], 1.2), seen(workload, [B], 1.1)]
    found = expectation(workload, [*alone, seen(workload, [A, B], 2.0)] * 20)
    assert found.gain(Plan((A, B))) == pytest.approx(2.0, rel=0.06)
    assert found.gain(Plan((A,))) == pytest.approx(1.2, rel=0.06)
    assert found.gain(Plan((B,))) == pytest.approx(1.1, rel=0.06)


def test_a_trial_of_this_training_counts_most(workload):
    found = expectation(workload, [seen(workload, [A], 1.5)] * 3)
    baseline = Trial(Plan(), Outcome.BASELINE, compile_seconds=1.0, step_seconds=0.1)
    trial = Trial(Plan((A,)), Outcome.SLOWER, "", 1.0, 0.12, Speedup(0.8, 0.7, 0.9, 6))
    found.note(baseline, trial)
    assert found.gain(Plan((A,))) == pytest.approx(0.8, rel=0.1)


def test_other_machines_and_other_models_count_less(workload):
    here = MachineClass.of(workload.device)
    mix = layer_mix(workload)
    other_kernels = MachineClass(here.kind, here.flags, not here.onednn)
    gpu = MachineClass("GPU", ("(9, 0)",), False)
    assert here.likeness(here) == 1.0
    assert 1.0 > here.likeness(other_kernels) > here.likeness(gpu) > 0.0
    like = seen(workload, [A], 2.0)
    unlike = dataclasses.replace(like, mix={"convolution": 1.0, "size": 9.0})
    assert like.weight(here, mix) == pytest.approx(1.0)
    assert unlike.weight(here, mix) < 0.1


def test_the_mix_tells_kinds_of_layers():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.Conv2D(16, 3)(image))))
    mix = layer_mix(Workload(model))
    assert mix["convolution"] > mix["product"] > 0.0
    assert sum(share for kind, share in mix.items() if kind != "size") == pytest.approx(1.0)
    dense = layer_mix(Workload(keras.Sequential([keras.Input((4,)), layers.Dense(2)])))
    assert distance(mix, mix) == 0.0 < distance(mix, dense)


def test_a_layer_outside_a_graph_counts_by_its_weights():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(keras.ops.zeros((1, 4)))
    assert layer_mix(Workload(model))["product"] > 0.0


@pytest.mark.parametrize(
    "steps, names", [(1000, ["first", "second"]), (150, ["first"]), (20, None)]
)
def test_the_largest_saving_less_its_cost_comes_first(workload, steps, names):
    best = expectation(workload).best(steps)
    found = best and [name.removesuffix("_expected") for name in best.plan.names]
    assert found == names


def test_what_costs_more_than_may_be_spent_is_not_tried(workload):
    assert expectation(workload).best(1000, most_seconds=1.0) is None
    assert expectation(workload).best(1000, any_cost=True) is not None


def test_the_next_candidate_must_be_better_than_what_runs(workload):
    found = expectation(workload)
    tried = [Plan((A, B))]
    assert found.best(10_000, present_gain=1.8, tried=tried) is None
    assert found.best(10_000, present_gain=1.3, tried=tried).plan == Plan((A,))


def candidates(workload, seconds=1e6):
    return Candidates(workload, [A.name, B.name], (), seconds)


def test_nothing_expected_is_said(workload):
    found = candidates(workload, 0.5)
    assert found.next(10) is None
    assert "too short to pay for a trial" in found.note
    assert found.least_seconds() == pytest.approx(1.0 + 0.6)


def test_a_check_that_took_too_long_leaves_the_race_its_time(workload):
    """A winning race loses nothing: it must not end as one that has lost more than it may."""

    class Bench:
        now = 0.0

        def clock(self):
            return self.now

        def check(self, plan, deadline, prepare_seconds):
            self.now += 100.0
            return Trial(plan, Outcome.FASTER, "", 99.0, 0.05)

    found = candidates(workload, 50.0)
    found.check(Bench(), found.next(1000))
    assert (found.spent_seconds, found.left_seconds) == (100.0, 0.0)


def test_a_search_ends_where_nothing_more_pays(workload):
    found = candidates(workload)
    first = found.next(1000)
    assert first.plan == Plan((A, B))
    found.take(Trial(first.plan, Outcome.FASTER, "", 2.0, 0.05, Speedup(1.8, 1.7, 1.9, 6)))
    assert found.next(900) is None
    report = found.report()
    assert (report.plan, report.speedup) == (first.plan, 1.8)


def test_a_layer_that_is_off_is_repaired_next(workload):
    plan = Plan((tfaccel.passes.MixedPrecision(dtype="bfloat16"),))
    found = Candidates(workload, ["mixed_precision"], [seen(workload, plan.passes, 2.0)] * 9, 1e6)
    layer = workload.model.layers[0]
    drift = dataclasses.replace(tfaccel.measure.numerics.Drift(), worst=layer.kernel.path)
    found.take(Trial(plan, Outcome.UNFAITHFUL, "", 1.0, drift=drift))
    assert found.next(100_000).plan.passes[0].keep == (layer.name,)


@dataclasses.dataclass(frozen=True)
class Update(tfaccel.Pass):
    """Changes how weights are updated, and nothing before."""

    name = "update_expected"
    serves_validation = False

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()

    def prior(self, workload):
        return Prior(gain=1.3)


@pytest.mark.parametrize(("worst", "next_plan"), [("loss", Plan((Update(),))), ("", Plan((A,)))])
def test_what_leaves_losses_alone_can_not_mend_them(workload, worst, next_plan):
    """Without the other update a plan has the same loss, which would be off again."""
    found = Candidates(workload, [A.name, Update.name], (), 1e6)
    assert found.next(1000).plan == Plan((A, Update()))
    drift = dataclasses.replace(tfaccel.measure.numerics.Drift(), worst=worst)
    found.take(Trial(Plan((A, Update())), Outcome.UNFAITHFUL, "", 1.0, drift=drift))
    assert found.next(1000).plan == next_plan


def test_every_pass_has_a_gain(workload):
    for kind in PASSES:
        prior = kind.suited(workload).prior(workload)
        assert prior.expected_gain > 0
        assert prior.pays or prior.expected_gain < 1


def test_the_package_ships_evidence():
    known = {kind.name for kind in PASSES}
    assert len(shipped()) > 20
    for one in shipped():
        assert set(one.passes) <= known and one.gain > 0
        assert Evidence.from_dict(one.to_dict()) == one


def test_the_cache_is_evidence_for_other_models(workload, tmp_path):
    trial = Trial(Plan((A,)), Outcome.FASTER, "", 2.0, 0.05, Speedup(2.0, 1.9, 2.1, 6))
    baseline = Trial(Plan(), Outcome.BASELINE, compile_seconds=2.0, step_seconds=0.1)
    report = Report((baseline, trial), trial.plan)
    machine, mix = MachineClass.of(workload.device), layer_mix(workload)
    cache = PlanCache(tmp_path)
    cache.save("some", report, evidence_of(report, machine, mix))
    (tmp_path / "broken.json").write_text("{")
    (found,) = cache.evidence()
    assert (found.passes, found.gain, found.trace) == ((A.name,), 2.0, 1.0)
    assert PlanCache(tmp_path / "none").evidence() == []
