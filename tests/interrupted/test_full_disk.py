"""A disk that is really full, as the folder of plans, records and traces: training is Keras's.

Where this user may mount a small file system.
"""

import contextlib
import errno
import pathlib
import subprocess
import warnings

import keras
import numpy as np
import pytest
from crossed import with_slow
from early import built_early
from fault_trainings import TRAININGS, as_measured, make_model, stock

import tfaccel
from tfaccel.core.plan import make_pass
from tfaccel.profiling.records import FILE_NAME, read_records

pytestmark = pytest.mark.usefixtures("unoptimised")

# What is free: nothing, or so much that a file is begun and not ended.
FREE = [0, 4096, 12_288]
PLANS = [tfaccel.Plan((make_pass(name),)) for name in ("xla", "fused_optimizer")]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(mounted):
    """The empty disk."""
    yield mounted
    for path in sorted(mounted.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def fill(disk: pathlib.Path, free: int = 0) -> pathlib.Path:
    """Leaves so many bytes; gives the file that takes all others."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(file.tell() - free)
    return filler


def trained(*callbacks: keras.callbacks.Callback):
    """State, History and warnings of a training with these callbacks, of which one searches."""
    model = built_early(make_model())
    with warnings.catch_warnings(record=True) as caught, as_measured():
        warnings.simplefilter("always")
        history = model.fit(**TRAININGS["trials"].arguments(), callbacks=list(callbacks))
    told = [str(w.message) for w in caught if str(w.message).startswith("tfaccel")]
    # Once of plans, records, traces and, where it is installed, what TensorBoard reads.
    assert len({text.partition(":")[0] for text in told}) == len(told)
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables], history.history, told


def assert_stock_s(state, history):
    expected = stock("trials")
    assert history == expected.history
    for ours, keras_s in zip(state, expected.state, strict=True):
        np.testing.assert_array_equal(ours, keras_s)


@pytest.mark.parametrize("free", with_slow(FREE, FREE[1:]))
def test_plans_and_records(free, disk):
    fill(disk, free)
    search = TRAININGS["trials"].callback(disk / "cache")
    profiler = tfaccel.ProfilerCallback(disk / "logs", update_freq=1, verbose=0)
    state, history, told = trained(search, profiler)
    assert_stock_s(state, history)
    assert told
    assert not list(disk.rglob("*.tmp"))


def test_traces(disk):
    fill(disk)
    profiler = tfaccel.ProfilerCallback(disk / "logs", profile_batch=(2, 3), verbose=0)
    state, history, told = trained(profiler)
    assert_stock_s(state, history)
    assert told


@pytest.mark.parametrize("free", with_slow(FREE[:2], FREE[1:]))
def test_records_go_on_when_there_is_room_again(free, disk):
    filler = fill(disk, free)
    room = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: filler.unlink() if epoch else None
    )
    profiler = tfaccel.ProfilerCallback(disk / "logs", update_freq=1, verbose=0)
    state, history, told = trained(room, profiler)
    assert_stock_s(state, history)
    assert told
    found = read_records(disk / "logs" / FILE_NAME)
    assert found.summary and found.skipped <= 1


def test_a_plan_that_is_saved_over_another(disk):
    path = disk / "plan.json"
    PLANS[0].save(path)
    before = path.read_text(encoding="utf-8")
    fill(disk)
    with pytest.raises(OSError) as raised:
        PLANS[1].save(path)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text(encoding="utf-8") == before
    assert sorted(p.name for p in disk.iterdir()) == ["filler", "plan.json"]
