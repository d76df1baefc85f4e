"""AccelStrategy where there is one device, and the parts that choose and set up."""

import functools
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

from tfaccel.distribute import AccelStrategy, accel_strategy
from tfaccel.distribute.checkpoints import CheckpointPaths, packed, unpack
from tfaccel.distribute.cluster import find_cluster, local_devices
from tfaccel.distribute.defaults import check_xla, model_defaults, policy_name
from tfaccel.distribute.gpu_memory import set_up_gpus
from tfaccel.distribute.splitting import can_split, even_shares
from tfaccel.system.device import Device


def small_model(**arguments):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", **arguments)
    return model


# --- which strategy -----------------------------------------------------------------


def test_auto_on_one_device_is_the_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = AccelStrategy()
    assert strategy.strategy is tf.distribute.get_strategy()
    assert strategy.reason == "TensorFlow sees CPU:0 only"
    with strategy.scope():
        # So that Keras chooses XLA by itself, as it does under no strategy.
        assert not tf.distribute.has_strategy()
        model = small_model(jit_compile=strategy.jit_compile)
    x = np.ones((8, 4), "float32")
    assert model.fit(x, x[:, :1], verbose=0).history["loss"]


def test_a_strategy_is_taken_as_it_is():
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    strategy = AccelStrategy(one)
    assert strategy.strategy is one
    assert strategy.reason == "it was given"
    with strategy.scope():
        model = small_model()
    assert model.distribute_strategy is one
    x = np.ones((9, 4), "float32")
    assert model.fit(x, x[:, :1], batch_size=4, validation_data=(x, x[:, :1]), verbose=0)


@pytest.mark.parametrize("bad", ["mirored", 3, None])
def test_no_such_strategy(bad):
    with pytest.raises(ValueError, match="strategy must be a tf.distribute.Strategy or one of"):
        AccelStrategy(bad)


def test_several_workers_too_late(monkeypatch):
    tf.constant(1.0)
    task = {"type": "worker", "index": 0}
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    with pytest.raises(RuntimeError, match="only be joined before TensorFlow is used"):
        AccelStrategy()


def test_a_plain_multi_worker_strategy_cant_be_mended():
    plain = tf.distribute.MultiWorkerMirroredStrategy()
    assert AccelStrategy(plain).strategy is plain  # alone, it needs no mending
    several = types.new_class("Several", (tf.distribute.MultiWorkerMirroredStrategy,))
    several.num_replicas_in_sync = 2
    with pytest.raises(ValueError, match='Pass strategy="multi_worker"'):
        AccelStrategy(several())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed_precision": "float17"}, "`mixed_precision` must be"),
        ({"mixed_precision": True}, "`mixed_precision` must be"),
        ({"jit_compile": "yes"}, "`jit_compile` must be"),
        ({"data_format": "NHWC"}, "`data_format` must be"),
        ({"auto_shard_policy": "files"}, "`auto_shard_policy` must be one of"),
        ({"memory_growth": 1}, "`memory_growth` must be True or False"),
        ({"memory_limit_bytes": 4096}, "at least 1048576"),
        ({"memory_limit_bytes": 1.5e9}, "`memory_limit_bytes` must be an int"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AccelStrategy(**arguments)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "8"])
def test_bad_batch_sizes(bad):
    with pytest.raises(ValueError, match="`per_replica_batch_size` must be a positive"):
        AccelStrategy("default").global_batch_size(bad)


# --- datasets -----------------------------------------------------------------------


def test_bad_datasets():
    strategy = AccelStrategy("default")
    with pytest.raises(TypeError, match="Received: ndarray"):
        strategy.distribute(np.ones(3))
    with pytest.raises(ValueError, match="batch it by"):
        strategy.distribute(tf.data.Dataset.range(3))
    with pytest.raises(ValueError, match="auto, data, file, off.*Received: 'shard'"):
        strategy.distribute(tf.data.Dataset.range(3).batch(2), "shard")
    one = AccelStrategy("one_device")
    distributed = one.distribute(tf.data.Dataset.range(3).batch(2))
    with pytest.raises(TypeError, match="one that is distributed"):
        one.distribute(distributed)


@pytest.mark.parametrize("policy", ["auto", "data", "file", "off", None])
def test_one_device_gets_everything(policy):
    strategy = AccelStrategy("one_device", auto_shard_policy="data")
    batches = strategy.distribute(tf.data.Dataset.range(5).batch(2), policy)
    assert [batch.numpy().tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


def shares_of(dataset, replicas, fill=True):
    """By replica, what even_shares gives it, one worker for each."""
    return [list(even_shares(dataset, replicas, range(i, i + 1), fill)) for i in range(replicas)]


@crossed(("replicas", "samples"), [2, 3, 4], [24, 25, 28, 31])
def test_shares_are_even_and_whole(samples, replicas):
    dataset = tf.data.Dataset.range(samples).batch(12)
    shares = shares_of(dataset, replicas, fill=False)
    for step, batch in enumerate(dataset):
        parts = [share[step].numpy() for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("replicas", [3, 5])
def test_a_batch_too_small_is_filled(replicas):
    dataset = tf.data.Dataset.range(14).batch(12)
    last = [share[-1].numpy().tolist() for share in shares_of(dataset, replicas)]
    assert last == [[12], [13], [12], [13], [12]][:replicas]
    unfilled = [share[-1].numpy() for share in shares_of(dataset, replicas, fill=False)]
    assert np.concatenate(unfilled).tolist() == [12, 13]


def test_several_replicas_of_one_worker_in_turn():
    dataset = tf.data.Dataset.range(8).batch(4)
    shares = even_shares(dataset, 4, range(2, 4), fill=True)
    assert [share.numpy().tolist() for share in shares] == [[2], [3], [6], [7]]


def test_structures_ragged_and_sparse():
    ragged = tf.ragged.constant([[1], [2, 3], [], [4]])
    sparse = tf.sparse.from_dense([[0, 1], [2, 0], [0, 0], [3, 4]])
    data = ({"r": ragged, "s": sparse}, tf.range(4), None)
    dataset = tf.data.Dataset.from_tensors(data)
    first, second = (next(iter(share)) for share in shares_of(dataset, 2))
    assert first[0]["r"].to_list() == [[1], [2, 3]]
    assert second[0]["r"].to_list() == [[], [4]]
    assert tf.sparse.to_dense(second[0]["s"]).numpy().tolist() == [[0, 0], [3, 4]]
    assert second[1].numpy().tolist() == [2, 3]
    assert second[2] is None


def test_lengths_and_static_shapes_stay_known():
    dataset = tf.data.Dataset.range(24).batch(12, drop_remainder=True)
    shares = even_shares(dataset, 3, range(1), fill=True)
    assert shares.element_spec.shape == (4,)
    assert int(shares.cardinality()) == 2
    endless = even_shares(dataset.repeat(), 3, range(2), fill=True)
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY


def test_what_can_be_split():
    assert can_split(tf.data.Dataset.range(4).batch(2))
    assert not can_split(tf.data.Dataset.range(4))
    assert not can_split(tf.data.Dataset.from_tensors((tf.zeros((2, 2)), 1.0)))


# --- settings of new models ---------------------------------------------------------

CPU = Device("CPU", "chip", flags=frozenset({"avx512_bf16"}))
AMPERE = Device("GPU", "chip", compute_capability=(8, 0))
VOLTA = Device("GPU", "chip", compute_capability=(7, 0))
OLD = Device("GPU", "chip", compute_capability=(6, 1))


@pytest.mark.parametrize(
    ("asked", "device", "policy"),
    [
        ("auto", AMPERE, "mixed_bfloat16"),
        ("auto", VOLTA, "mixed_float16"),
        ("auto", OLD, None),
        ("auto", CPU, None),
        (False, AMPERE, None),
        ("bfloat16", CPU, "mixed_bfloat16"),
        ("float16", OLD, "mixed_float16"),
        ("float64", CPU, "float64"),
    ],
)
def test_the_policy_that_suits(asked, device, policy):
    assert policy_name(asked, device) == policy


def test_a_policy_of_the_users_stays():
    keras.config.set_dtype_policy("mixed_float16")
    assert policy_name("auto", AMPERE) is None


def test_xla_with_several_replicas_of_gpus():
    with pytest.warns(UserWarning, match="jit_compile=True with 8 replicas often fails: XLA"):
        check_xla(True, 8, AMPERE)
    with pytest.raises(ValueError, match="does not work with 2 replicas on CPUs"):
        check_xla(True, 2, CPU)


@pytest.mark.parametrize("jit_compile", [True, False, "auto"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_where_nothing_is_wrong(jit_compile, replicas, recwarn):
    if (jit_compile, replicas) != (True, 2):
        check_xla(jit_compile, replicas, AMPERE)
    assert not recwarn.list


def settings():
    return keras.config.dtype_policy(), keras.config.image_data_format()


@pytest.fixture
def _channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.usefixtures("_channels_first")
def test_scope_sets_and_restores():
    strategy = AccelStrategy("default", mixed_precision="bfloat16")
    before = settings()
    with strategy.scope() as entered:
        assert entered is strategy
        layer = keras.layers.Conv2D(1, 1)
        assert (layer.dtype_policy.name, layer.data_format) == ("mixed_bfloat16", "channels_last")
    assert settings() == before
    with pytest.raises(ZeroDivisionError), strategy.scope():
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.usefixtures("_channels_first")
def test_scopes_nest():
    before = settings()
    outer = AccelStrategy("default", mixed_precision="bfloat16", data_format=False)
    inner = AccelStrategy("default", mixed_precision="float16")
    with outer.scope():
        between = settings()
        assert between[1] == "channels_first"
        with inner.scope():
            assert settings()[0].name == "mixed_float16"
            assert settings()[1] == "channels_last"
        assert settings() == between
    assert settings() == before


def test_nothing_to_change():
    before = settings()
    with model_defaults(None, None):
        assert settings() == before
    with AccelStrategy("default", mixed_precision=False, data_format="channels_first").scope():
        assert keras.layers.Conv2D(1, 1).data_format == "channels_first"
    assert settings() == before


# --- GPUs, without one --------------------------------------------------------------


class FakeConfig:
    """`tf.config` of a machine with GPUs, used already or not."""

    def __init__(self, gpus=2, used=False, grown=False, devices=None):
        self.gpus = [f"gpu{i}" for i in range(gpus)]
        self.used = used
        self.grown = dict.fromkeys(self.gpus, grown)
        self.devices = dict.fromkeys(self.gpus, devices)
        self.experimental = types.SimpleNamespace(
            get_memory_growth=self.grown.get, set_memory_growth=self.set_memory_growth
        )

    def get_visible_devices(self, kind):
        return self.gpus if kind == "GPU" else ["cpu"]

    def set_memory_growth(self, gpu, growth):
        self.refuse_if_used()
        self.grown[gpu] = growth

    def get_logical_device_configuration(self, device):
        return self.devices.get(device)

    def set_logical_device_configuration(self, gpu, devices):
        self.refuse_if_used()
        self.devices[gpu] = devices

    def refuse_if_used(self):
        if self.used:
            raise RuntimeError("Physical devices cannot be modified after being initialized")


def limited(mib):
    return [tf.config.LogicalDeviceConfiguration(memory_limit=mib)]


def test_memory_growth():
    config = FakeConfig()
    set_up_gpus(config=config)
    assert config.grown == {"gpu0": True, "gpu1": True}


def test_gpus_left_as_they_are():
    config = FakeConfig()
    set_up_gpus(growth=False, config=config)
    assert config.grown == {"gpu0": False, "gpu1": False}


def test_a_memory_limit():
    config = FakeConfig()
    set_up_gpus(limit_bytes=3 * 2**30, config=config)
    assert [d[0].memory_limit for d in config.devices.values()] == [3072, 3072]
    assert not any(config.grown.values())  # TensorFlow refuses both at once


@pytest.mark.parametrize(
    ("memory", "argument"),
    [((True, None), "memory_growth=True"), ((True, 2**30), "memory_limit_bytes=107374182")],
)
def test_too_late_for_gpus(memory, argument):
    with pytest.raises(RuntimeError, match=f"{argument}.*before TensorFlow uses the GPUs"):
        set_up_gpus(*memory, FakeConfig(used=True))


def test_gpus_that_a_strategy_of_ones_own_has_started(monkeypatch):
    config = FakeConfig(used=True)
    set_up = functools.partial(set_up_gpus, config=config)
    monkeypatch.setattr(accel_strategy, "set_up_gpus", set_up)
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    assert AccelStrategy(one).strategy is one
    with pytest.raises(RuntimeError, match="before TensorFlow uses the GPUs"):
        AccelStrategy("one_device")
    with pytest.raises(RuntimeError, match="before TensorFlow uses the GPUs"):
        AccelStrategy(one, memory_limit_bytes=2**30)


def test_gpus_that_were_set_up_alike_before():
    set_up_gpus(config=FakeConfig(used=True, grown=True))
    set_up_gpus(config=FakeConfig(used=True, devices=limited(512)))
    set_up_gpus(limit_bytes=2**29, config=FakeConfig(used=True, devices=limited(512)))
    with pytest.raises(RuntimeError, match="memory_limit_bytes"):
        set_up_gpus(limit_bytes=2**30, config=FakeConfig(used=True, devices=limited(512)))


def test_devices():
    assert local_devices(FakeConfig(2)) == ("GPU:0", "GPU:1")
    assert local_devices(FakeConfig(1, devices=limited(1) * 3)) == ("GPU:0", "GPU:1", "GPU:2")
    assert local_devices(FakeConfig(0)) == ("CPU:0",)


# --- clusters -----------------------------------------------------------------------

WORKERS = {"worker": ["a:1", "b:1", "c:1"]}


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_a_cluster_by_tf_config():
    cluster = find_cluster(tf_config(WORKERS, index=2))
    assert (cluster.source, cluster.num_workers, cluster.task) == ("TF_CONFIG", 3, "worker 2")
    with_chief = find_cluster(tf_config({"chief": ["a:1"], "worker": ["b:1"]}, "chief"))
    assert (with_chief.num_workers, with_chief.task) == (2, "chief 0")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TF_CONFIG": " "},
        {"TF_CONFIG": "{}"},
        tf_config({"worker": ["a:1"]}),
        tf_config({**WORKERS, "evaluator": ["d:1"]}, "evaluator"),
        {"SLURM_JOB_ID": "7"},  # an allocation, and no step in it
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_no_cluster(environ):
    assert find_cluster(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TF_CONFIG": "{worker: 2}"}, "TF_CONFIG must be JSON"),
        ({"TF_CONFIG": "[1]"}, "must be a JSON object"),
        (tf_config(WORKERS, "trainer"), "task.type must be one of .*worker"),
        (tf_config(WORKERS, index=3), "task.index must be below 3"),
        (tf_config(WORKERS, index=None), "task.index must be below 3"),
        (tf_config({**WORKERS, "ps": ["d:1"]}), "parameter servers"),
        ({"TF_CONFIG": json.dumps({"cluster": WORKERS})}, "task.type must be one of"),
    ],
)
def test_bad_tf_config(environ, message):
    with pytest.raises(ValueError, match=message):
        find_cluster(environ)


def test_a_cluster_by_slurm(monkeypatch):
    step = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cluster = find_cluster(step)
    assert (cluster.source, cluster.num_workers, cluster.task) == ("Slurm", 3, "worker 2")
    hosts = cluster.resolver.cluster_spec().as_dict()["worker"]
    port = 12000 + 1234567 % 20000
    assert hosts == [f"node07:{port}", f"node07:{port + 1}", f"node08:{port}"]
    assert cluster.resolver.task_id == 2
    assert cluster.resolver.num_accelerators() == {"GPU": 0}
    # TF_CONFIG comes first.
    assert find_cluster({**step, **tf_config(WORKERS)}).source == "TF_CONFIG"


# --- checkpoints --------------------------------------------------------------------


def test_paths_without_other_workers(tmp_path):
    strategy = AccelStrategy("default")
    assert strategy.is_chief
    assert strategy.checkpoint_filepath(tmp_path / "a.keras") == str(tmp_path / "a.keras")
    assert strategy.backup_dir("backup") == "backup"


class Worker:
    """Stands for a MultiWorker of two; `shared` is what the chief shares."""

    num_workers = 2

    def __init__(self, is_chief, shared=b""):
        self.is_chief, self.shared = is_chief, shared

    def share_bytes(self, data):
        self.shared = data if self.is_chief else self.shared
        return self.shared


def test_others_write_elsewhere():
    paths = CheckpointPaths(Worker(is_chief=False))
    first, second = paths.filepath("/a/{epoch}.keras"), paths.filepath("/b/{epoch}.keras")
    assert first.endswith("/{epoch}.keras")
    assert not first.startswith("/a/")
    assert first != second
    assert CheckpointPaths(Worker(is_chief=True)).filepath("/a/b") == "/a/b"


def test_others_get_the_chiefs_backup(tmp_path):
    folder = tmp_path / "backup"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"\0\1\2")
    chief = Worker(is_chief=True)
    assert CheckpointPaths(chief).backup_dir(str(folder)) == str(folder)
    other = CheckpointPaths(Worker(False, chief.shared)).backup_dir(str(folder))
    assert other != str(folder)
    with open(f"{other}/deep/weights", "rb") as file:
        assert file.read() == b"\0\1\2"


def test_no_backup_yet(tmp_path):
    assert packed(tmp_path / "none") == b""
    unpack(b"", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_compression_is_of_one_kind():
    with pytest.raises(ValueError, match="compress_gradients"):
        AccelStrategy("default", compress_gradients="float16")
    AccelStrategy("default", compress_gradients="bfloat16")  # nothing is sent
