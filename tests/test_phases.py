"""The phases of a fit: which follow which, and that all processes ask each other alike."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.fit import session
from tfaccel.measure import racing, timing
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.training import choose, phases
from tfaccel.training.first_step import FirstStepFallback
from tfaccel.training.phases import TRANSITIONS, IllegalTransitionError, Phase, Phases


@dataclasses.dataclass(frozen=True)
class Idle(tfaccel.Pass):
    name = "idle_in_phases"

    def unsupported(self, workload):
        return None

    def applied(self, workload):
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Untraceable(Idle):
    name = "untraceable_in_phases"

    @contextlib.contextmanager
    def applied(self, workload):
        if tf.inside_function():
            raise ValueError("it never can")
        yield


def make_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def data(batches, known=True):
    x = np.random.default_rng(0).normal(size=(8 * batches, 4)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    return dataset if known else dataset.filter(lambda x, y: True)


def fit(batches=8, epochs=1, known=True, plan="auto", clock=None, model=None, **settings):
    settings = {
        "includes": ["idle_in_phases"],
        "tuning_share": None,
        "max_tuning_seconds": 1e6,
        "cache_dir": False,
    } | settings
    accel = tfaccel.AccelCallback(plan, verbose=0, clock=clock or FakeClock(step=0.1), **settings)
    model = model or make_model()
    model.fit(data(batches, known), epochs=epochs, verbose=0, callbacks=[accel])
    return accel


def path(accel):
    return [phase.name for phase in accel.session.path]


@pytest.fixture
def wins(monkeypatch):
    """Whatever is tried is twice as fast."""
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6)
    monkeypatch.setattr(timing, "speedup", lambda *_: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))


def test_every_phase_can_be_reached_and_stay_is_for_good():
    assert set(TRANSITIONS) == set(Phase)
    reached = {Phase.OBSERVE}
    for _ in Phase:
        reached |= {after for before in reached for after in TRANSITIONS[before]}
    assert reached == set(Phase)
    assert not TRANSITIONS[Phase.STAY]
    assert all(Phase.STAY in TRANSITIONS[phase] for phase in Phase if phase is not Phase.STAY)


def test_an_illegal_transition_changes_nothing():
    fresh = Phases()
    with pytest.raises(IllegalTransitionError, match="RACE may not follow OBSERVE"):
        fresh.enter(Phase.RACE)
    assert fresh.path == [Phase.OBSERVE]


def test_the_ways_of_a_fit(wins, tmp_path):
    assert path(fit(batches=2)) == ["OBSERVE", "STAY"]
    assert path(fit(plan=["idle_in_phases"])) == ["OBSERVE", "RUN"]
    assert path(fit(tuning_share=0.0)) == ["OBSERVE", "PREDICT", "STAY"]
    assert path(fit(cache_dir=tmp_path)) == ["OBSERVE", "PREDICT", "TRIALS", "RUN"]
    assert path(fit(40, cache_dir=tmp_path)) == ["OBSERVE", "PREDICT", "CHECK", "RUN"]


def test_a_length_is_awaited_for_one_epoch(wins):
    accel = fit(known=False, epochs=3, tuning_share=1.0, clock=FakeClock(step=10.0))
    assert path(accel)[:4] == ["OBSERVE", "PREDICT", "AWAIT_LENGTH", "PREDICT"]


def test_a_plan_that_fails_leads_back_with_one_notice(recwarn):
    accel = fit(plan=["untraceable_in_phases"])
    assert path(accel) == ["OBSERVE", "RUN", "STAY"]
    assert accel.plan.is_baseline
    assert sum(issubclass(w.category, RuntimeWarning) for w in recwarn) == 1


def straying(self):
    self.enter(Phase.RUN)
    self.enter(Phase.OBSERVE)


def test_an_illegal_transition_is_raised_in_tests(monkeypatch):
    monkeypatch.setattr(choose.PlanChooser, "choose", straying)
    with pytest.raises(IllegalTransitionError):
        fit()


def broken(*_):
    raise OSError("no such thing")


@pytest.mark.parametrize(
    ("failing", "expected"), [(straying, "may not follow"), (broken, "no such thing")]
)
def test_in_a_training_a_failure_is_one_notice(failing, expected, monkeypatch):
    monkeypatch.setattr(phases, "RAISES", False)
    monkeypatch.setattr(choose.PlanChooser, "choose", failing)
    keras.utils.set_random_seed(3)
    model = make_model()
    with pytest.warns(UserWarning, match=f"gave up and left the training as it is.*{expected}"):
        accel = fit(model=model)
    assert accel.session.phase is Phase.STAY and expected in accel.report.note
    keras.utils.set_random_seed(3)
    plain = make_model()
    plain.fit(data(8), verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["begin_step", "end_step", "feed"])
def test_a_failure_beside_a_timed_step_leaves_the_training_alone(name, monkeypatch):
    monkeypatch.setattr(session.FitSession, "is_at_most", lambda *_: True)  # no input watch
    monkeypatch.setattr("tfaccel.training.observed.Observed." + name, broken)
    with pytest.warns(UserWarning, match="gave up"):
        accel = fit(batches=6)
    assert path(accel) == ["OBSERVE", "STAY"] and not accel.session.holds_data


class Chief(WorkerAgreement):
    """Notes what was asked and decided."""

    is_alone = False

    def __init__(self):
        self.told = []

    def _note(self, kind, value):
        self.told.append((kind, value))
        return value

    def clock(self, clock):
        return lambda: self._note("clock", clock())

    def same(self, value):
        return self._note("same", value)

    def any(self, flag):
        return self._note("any", bool(flag))


class Follower(WorkerAgreement):
    """Another process: it is told what the chief was, as long as it asks for the same things."""

    is_alone = is_chief = False

    def __init__(self, chief):
        self.told = list(chief.told)

    def _next(self, kind):
        assert self.told, f"{kind}: the chief asked no more"
        chiefs, value = self.told.pop(0)
        assert kind == chiefs
        return value

    def clock(self, clock):
        return lambda: self._next("clock")

    def same(self, value):
        return self._next("same")

    def any(self, flag):
        return self._next("any")


ELSEWHERE = {"batches": 7, "known": True, "clock": FakeClock(step=50.0)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batches": 3},
        {"known": False, "epochs": 2, "tuning_share": 1.0, "clock": FakeClock(step=10.0)},
        {"tuning_share": 0.0},
        pytest.param({"includes": []}, marks=pytest.mark.slow),
        {"plan": ["idle_in_phases"]},
        pytest.param({"plan": ["untraceable_in_phases"]}, marks=pytest.mark.slow),
        {"includes": ["untraceable_in_phases"]},
        pytest.param({"cached": True}, marks=pytest.mark.slow),
        {"cached": True, "batches": 5, "epochs": 1},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_processes_ask_each_other_alike_whatever_each_knows(settings, wins, monkeypatch, tmp_path):
    """Else one waits for ever: the follower has other batches, another clock, no cache."""
    settings = dict(settings)
    cache = tmp_path if settings.pop("cached", False) else False
    if cache:
        fit(cache_dir=cache)
    chief = Chief()
    monkeypatch.setattr(session, "agreement_of", lambda strategy: chief)
    first = fit(cache_dir=cache, **settings)
    follower = Follower(chief)
    monkeypatch.setattr(session, "agreement_of", lambda strategy: follower)
    # As many calls as the chief makes: each step is one of all processes.
    here = ELSEWHERE | {"batches": settings.get("batches", 8)}
    there = fit(cache_dir=tmp_path / "none" if cache else False, **settings | here)
    assert follower.told == []
    assert path(there) == path(first) and there.plan == first.plan


@pytest.mark.filterwarnings("ignore")
def test_what_fails_in_one_process_is_given_up_in_all(wins, monkeypatch, tmp_path):
    """Only the chief writes the cache."""
    monkeypatch.setattr(PlanCache, "save", broken)
    chief = Chief()
    monkeypatch.setattr(session, "agreement_of", lambda strategy: chief)
    first = fit(cache_dir=tmp_path)
    follower = Follower(chief)
    monkeypatch.setattr(session, "agreement_of", lambda strategy: follower)
    there = fit(cache_dir=tmp_path)
    assert first.session.phase is there.session.phase is Phase.STAY
    assert follower.told == []


@dataclasses.dataclass(frozen=True)
class Rescuing(Idle):
    name = "rescuing_in_phases"

    def fallback_reason(self, error):
        return "no such kernel" if "no such kernel" in str(error) else ""


@pytest.mark.parametrize(
    ("said", "elsewhere", "goes_on"),
    [
        ("no such kernel", False, True),
        ("no such kernel", True, False),
        ("another", False, False),
        ("", True, False),
    ],
)
def test_whatever_the_first_step_did_its_fallback_is_agreed_on_once(said, elsewhere, goes_on):
    class Counts(WorkerAgreement):
        asked = 0

        def any(self, flag):
            self.asked += 1
            return flag or elsewhere

    saved, agreement = FirstStepFallback(lambda: [Rescuing()], None, Snapshot(())), Counts()
    report = saved.agree_on_report(RuntimeError(said) if said else None, agreement)
    assert agreement.asked == 1
    assert (report is not None) is goes_on


def test_a_workload_is_read_without_asking_anybody(monkeypatch):
    chief = Chief()
    monkeypatch.setattr(session, "agreement_of", lambda strategy: chief)
    asked = []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            before = len(chief.told)
            accel.session.workload()
            asked.append(len(chief.told) - before)

    accel = tfaccel.AccelCallback(includes=["idle_in_phases"], cache_dir=False, verbose=0)
    make_model().fit(data(5), verbose=0, callbacks=[accel, Reads()])
    assert asked == [0] * 5
