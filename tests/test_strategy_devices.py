"""What suits the devices of a strategy: policies, XLA, layouts, the memory of GPUs."""

import functools
import types

import keras
import pytest
import tensorflow as tf

from tfaccel.distribute import AccelStrategy, accel_strategy
from tfaccel.distribute.cluster import local_devices
from tfaccel.distribute.defaults import check_xla, model_defaults, policy_name
from tfaccel.distribute.gpu_memory import set_up_gpus
from tfaccel.system.device import Device

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


def of_replicas(count, here=None):
    """A strategy as far as XLA's obstacles go, with so many devices in this process."""
    extended = types.SimpleNamespace(worker_devices=("",) * (here or count))
    return types.SimpleNamespace(num_replicas_in_sync=count, extended=extended)


def test_xla_with_several_replicas_of_gpus():
    with pytest.warns(UserWarning, match="jit_compile=True with 8 replicas often fails: XLA"):
        check_xla(True, of_replicas(8), AMPERE)
    with pytest.raises(ValueError, match="does not work with 2 replicas on CPUs"):
        check_xla(True, of_replicas(2), CPU)


@pytest.mark.parametrize(
    ("here", "why"), [(1, "collective operations"), (2, "mirrored on several")]
)
def test_the_reason_is_that_of_the_devices_of_a_process(here, why):
    with pytest.raises(ValueError, match=why):
        check_xla(True, of_replicas(2, here), CPU)


@pytest.mark.parametrize("jit_compile", [True, False, "auto"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_where_nothing_is_wrong(jit_compile, replicas, recwarn):
    if (jit_compile, replicas) != (True, 2):
        check_xla(jit_compile, of_replicas(replicas), AMPERE)
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
