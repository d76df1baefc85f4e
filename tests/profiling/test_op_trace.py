"""Traces that are read, shown, and taken of a real fit."""

import json
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from planes import PROFILE, seconds, text, without

from tfaccel.profiling.traces import _op_kinds, _xplane, op_trace
from tfaccel.profiling.traces.op_trace import OpCost, OpProfile, OpTrace, TraceError, read_ops


def write(space, folder, run="2026_11_21_02_00_00"):
    path = folder / "plugins" / "profile" / run / "host.xplane.pb"
    path.parent.mkdir(parents=True)
    path.write_bytes(space.SerializeToString())
    return path


def test_reading_adds_up_and_sorts(space, host, tmp_path):
    host.line(
        "tf_Compute/1",
        ("m/A:MatMul", 0, 1),
        ("m/B:MatMul", 2, 2),
        ("m/C:Mul", 5, 2),
        ("adam/D:Mul", 8, 9),
    )
    write(space, tmp_path)
    assert read_ops(tmp_path) == [
        OpCost("Mul", "optimizer", 1, pytest.approx(0.009)),
        OpCost("MatMul", "matmul", 2, pytest.approx(0.003)),
        OpCost("Mul", "elementwise", 1, pytest.approx(0.002)),
    ]


@pytest.mark.parametrize(
    ("onednn", "plain"),
    [
        ("_MklMatMul", "MatMul"),
        ("_MklNativeFusedMatMul", "_FusedMatMul"),
        ("_MklFusedBatchMatMulV2", "_FusedBatchMatMulV2"),
        ("_MklNativeConv2D", "Conv2D"),
        ("_MklNativePadWithConv2D", "Conv2D"),
        ("_MklNativePadWithFusedConv2D", "_FusedConv2D"),
        ("_MklNativeConv2DBackpropFilterWithBias", "Conv2DBackpropFilter"),
        ("_MklNativeConv3DBackpropInputV2", "Conv3DBackpropInputV2"),
        ("_MklNativeDepthwiseConv2dNative", "DepthwiseConv2dNative"),
        ("_MklNativeFusedBatchNormGradV3", "FusedBatchNormGradV3"),
        ("_MklFusedBatchNormEx", "_FusedBatchNormEx"),
        ("_MklQuantizedConv2DWithBiasAndRelu", "QuantizedConv2DWithBiasAndRelu"),
    ],
)
def test_onednn_s_ops_and_plain_ones_are_one(host, space, onednn, plain):
    """The profile adds up one op under one name, whichever kernel a CPU takes."""
    host.line("tf_Compute/1", (f"model/a:{onednn}", 0, 2), (f"model/b:{plain}", 5, 3))
    assert seconds(space) == {(plain, _op_kinds.op_kind(plain)): 5.0}


def test_the_newest_trace_is_read(space, host, tmp_path):
    write(space, tmp_path, "2026_11_21_02_00_00")
    host.line("tf_Compute/1", ("m/A:MatMul", 0, 1))
    write(space, tmp_path, "2026_11_21_02_00_01")
    assert [op.name for op in read_ops(str(tmp_path))] == ["MatMul"]


def test_no_trace(tmp_path):
    with pytest.raises(TraceError, match="`log_dir` must hold a profiler trace .*Received: '"):
        read_ops(tmp_path)


def test_a_damaged_trace(space, tmp_path):
    write(space, tmp_path).write_bytes(b"\xff\xff\xff no trace")
    with pytest.raises(TraceError, match="host.xplane.pb is no profiler trace"):
        read_ops(tmp_path)


def test_a_tensorflow_without_the_reader(space, tmp_path, monkeypatch):
    write(space, tmp_path)
    without(monkeypatch, "tensorflow.tsl.profiler.protobuf.xplane_pb2")
    with pytest.raises(TraceError, match=f"TensorFlow {tf.__version__} has no tensorflow.tsl"):
        read_ops(tmp_path)


def test_the_record():
    record = json.loads(json.dumps(PROFILE.to_record("baseline", steps=10)))
    assert {key: record[key] for key in ("kind", "plan", "steps")} == {
        "kind": "ops",
        "plan": "baseline",
        "steps": 10,
    }
    assert record["seconds"] == pytest.approx(0.03)
    assert record["ops"][0] == {"name": "MatMul", "op_kind": "matmul", "count": 30, "seconds": 0.02}
    assert list(record["kinds"]) == ["matmul", "optimizer", "elementwise"]
    assert record["kinds"]["optimizer"] == pytest.approx(0.007)
    assert set(record["kinds"]) <= set(op_trace.KINDS)


def rows(table):
    return [line.split() for line in text(table).splitlines() if line.strip("─ ")]


def test_the_table_of_ops():
    assert rows(op_trace.ops_table(PROFILE, steps=10, limit=3)) == [
        ["op", "kind", "runs/step", "ms/step", "share"],
        ["MatMul", "matmul", "3", "2.00", "67%"],
        ["Mul", "optimizer", "4", "0.60", "20%"],
        ["Mul", "elementwise", "0.5", "0.30", "10%"],
    ]


def test_the_table_of_kinds():
    assert rows(op_trace.kinds_table(PROFILE, steps=10)) == [
        ["kind", "ms/step", "share"],
        ["matmul", "2.00", "67%"],
        ["optimizer", "0.70", "23%"],
        ["elementwise", "0.30", "10%"],
    ]


def test_before_and_after():
    after = OpProfile(
        (OpCost("MatMul", "matmul", 60, 0.02), OpCost("ResourceApplyAdam", "optimizer", 40, 0.007),
         OpCost("Cast", "casts and layout", 9, 0.003))
    )  # fmt: skip
    assert rows(op_trace.kinds_table(PROFILE, 10, after, 20)) == [
        ["kind", "ms/step", "before", "after", "ratio"],
        ["matmul", "2.00", "1.00", "2.00x"],
        ["optimizer", "0.70", "0.35", "2.00x"],
        ["elementwise", "0.30", "0.00"],
        ["casts", "and", "layout", "0.00", "0.15"],
        ["all", "3.00", "1.50", "2.00x"],
    ]


def test_an_empty_profile_makes_a_table():
    empty = OpProfile(())
    assert rows(op_trace.kinds_table(empty, 1))[1:] == []
    assert empty.to_record("xla", 1)["seconds"] == 0


def test_another_profiler_is_running(tmp_path):
    tf.profiler.experimental.start(str(tmp_path / "theirs"))
    try:
        with pytest.warns(UserWarning, match="takes no trace in .*Another profiler is running"):
            trace = OpTrace(tmp_path / "ours")
            assert not trace.start()
        assert trace.stop() is None
    finally:
        tf.profiler.experimental.stop()  # theirs still runs
    assert list((tmp_path / "theirs").rglob("*.xplane.pb"))


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    trace = OpTrace(tmp_path / "file" / "logs")
    with pytest.warns(UserWarning, match="takes no trace in .*file/logs"):
        assert not trace.start()
    assert trace.stop() is None


def test_a_trace_that_can_not_be_written(tmp_path, monkeypatch):
    def start(folder):
        pass

    def stop():
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.profiler.experimental, "start", start)
    monkeypatch.setattr(tf.profiler.experimental, "stop", stop)
    trace = OpTrace(tmp_path)
    assert trace.start()
    with pytest.warns(UserWarning, match="No space left on device"):
        assert trace.stop() is None


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A real trace of a small model's training: three steps."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.ones((24, 16, 16, 3), "float32"), np.zeros(24, "int32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, shuffle=False, verbose=0)
    folder = tmp_path_factory.mktemp("trace")
    trace = OpTrace(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace.start()
        begin = time.perf_counter()
        model.fit(data, shuffle=False, verbose=0)
        wall = time.perf_counter() - begin
        profile = trace.stop()
    return profile, wall, folder


def count(profile, op_kind, ending):
    return sum(op.count for op in profile.ops if op.op_kind == op_kind and op.name.endswith(ending))


def test_a_real_trace_has_the_ops_of_the_model(traced):
    profile, _, _ = traced
    assert count(profile, "convolution", "Conv2D") == 3
    assert count(profile, "convolution", "Conv2DBackpropFilter") == 3
    assert count(profile, "matmul", "MatMul") == 3 + 2 * 3
    assert count(profile, "normalisation", "SquaredDifference") == 3
    assert count(profile, "optimizer", "AssignSubVariableOp") == 6 * 3  # Adam: one a variable
    assert count(profile, "input", "IteratorGetNext") >= 3
    assert count(profile, "other", "PartitionedCall") == 0


def test_a_real_trace_adds_up(traced):
    """No more than the threads could do in the time, so that nothing is counted twice."""
    profile, wall, folder = traced
    (file,) = folder.rglob("*.xplane.pb")
    (plane,) = (p for p in _xplane.read_space(file).planes if p.name == "/host:CPU")
    threads = sum(line.name.startswith(("python", "tf_Compute")) for line in plane.lines)
    busy = sum(op.seconds for op in profile.ops if op.op_kind != "input")
    assert 0 < busy <= wall * threads
    assert profile.seconds == pytest.approx(sum(profile.kinds.values()))
    assert all(op.seconds >= 0 for op in profile.ops)
