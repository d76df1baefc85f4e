import importlib
import io
import json
import time
import warnings

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfaccel.profiling.traces import _op_kinds, _xplane, op_trace
from tfaccel.profiling.traces.op_trace import OpCost, OpProfile, OpTrace, TraceError, read_ops

MILLISECOND = 10**9  # in picoseconds


class Plane:
    """A plane of a trace, written by hand."""

    def __init__(self, space, name):
        self.plane = space.planes.add(name=name)
        self.keys = {}

    def key(self, table, name):
        key = self.keys.setdefault((id(table), name), len(self.keys) + 1)
        table[key].id, table[key].name = key, name
        return key

    def line(self, name, *events):
        """Events: name, start and duration in milliseconds, and stats."""
        line = self.plane.lines.add(name=name)
        for event, start, duration, *stats in events:
            added = line.events.add(
                metadata_id=self.key(self.plane.event_metadata, event),
                offset_ps=int(start * MILLISECOND),
                duration_ps=int(duration * MILLISECOND),
            )
            for stat, value in (stats[0] if stats else {}).items():
                self.stat(added.stats, stat, value)
        return self

    def stat(self, stats, name, value):
        key = self.key(self.plane.stat_metadata, name)
        if isinstance(value, bytes):
            stats.add(metadata_id=key, bytes_value=value)
        elif isinstance(value, int):
            stats.add(metadata_id=key, int64_value=value)
        elif value.startswith("ref:"):
            reference = self.key(self.plane.stat_metadata, value.removeprefix("ref:"))
            stats.add(metadata_id=key, ref_value=reference)
        else:
            stats.add(metadata_id=key, str_value=value)


@pytest.fixture
def space():
    return xplane_pb2.XSpace()


@pytest.fixture
def host(space):
    return Plane(space, "/host:CPU")


def seconds(space):
    """Milliseconds by name and kind."""
    total = {}
    for run in _xplane.work(space):
        key = run.name, run.op_kind
        total[key] = round(total.get(key, 0.0) + run.seconds * 1e3, 9)
    return total


def test_an_op_is_charged_without_what_it_runs(space, host):
    host.line(
        "tf_Compute/1",
        ("ExecutorState::Process", 0, 100),
        ("model/a/Outer:Bucketize", 10, 50),
        ("model/b/MatMul:MatMul", 20, 20),
        ("ThreadpoolListener::Record", 21, 5),
        ("model/c/Cast:Cast", 25, 5),
        ("model/d/Mul:Mul", 60, 10),
    )
    host.line("tf_Compute/2", ("model/b_1/MatMul:MatMul", 15, 30))
    assert seconds(space) == {
        ("Bucketize", "other"): 30.0,
        ("MatMul", "matmul"): 15.0 + 30.0,
        ("Cast", "casts and layout"): 5.0,
        ("Mul", "elementwise"): 10.0,
    }


def test_events_in_any_order_and_of_one_beginning(space, host):
    host.line(
        "tf_Compute/1",
        ("x/Inner:Mul", 10, 4),
        ("x/Outer:MatMul", 10, 10),
        ("x/Last:Sub", 20, 1),
        ("x/First:Add", 0, 10),
    )
    assert seconds(space) == {
        ("Mul", "elementwise"): 4.0,
        ("MatMul", "matmul"): 6.0,
        ("Sub", "elementwise"): 1.0,
        ("Add", "elementwise"): 10.0,
    }


@pytest.mark.parametrize(
    "event",
    [
        "ExecutorState::Process",
        "ExecutorState::ProcessAsync::Start",
        "ExecutorDoneCallback",
        "FunctionRun",
        "EagerLocalExecute: __inference_one_step_on_data_12",
        "TFE_Py_ExecuteCancelable",
        "ParallelFor",
        "PrefetchProduce",
        "StatefulPartitionedCall/sequential/call:PartitionedCall",
        "while:While",
        "MakeIterator::RootDataset",
        "",
    ],
)
def test_what_is_no_op(space, host, event):
    host.line("python", (event, 0, 10), ("a:Mul", 1, 2))
    assert seconds(space) == {("Mul", "elementwise"): 2.0}


def test_an_op_outside_of_graphs(space, host):
    host.line("python", ("EagerLocalExecute: MatMul", 0, 10), ("EagerKernelExecute", 1, 8))
    assert seconds(space) == {("MatMul", "matmul"): 10.0}


def test_the_input_pipeline(space, host):
    host.line(
        "tf_data_iterator_get_next/1",
        ("IteratorGetNextOp::DoCompute", 0, 10),
        ("Iterator::Root", 1, 8),
        ("Iterator::Root::Prefetch#id=3#", 2, 6),
    )
    host.line(
        "tf_data_iterator_resource/2",
        ("Iterator::Root::Prefetch::Batch", 0, 50),
        ("Iterator::Root::Prefetch::Batch::ParallelMapV2", 10, 30),
        ("Iterator::Root::Prefetch::Batch::ParallelMapV2::Zip[0]", 12, 3),
    )
    host.line("tf_data_private_threadpool/3", ("decode/Mul:Mul", 0, 7))
    host.line("tf_Compute/4", ("Iterator::Map", 0, 5), ("random/Mul:Mul", 1, 2))
    host.line("python", ("next:IteratorGetNextSync", 0, 4), ("Iterator::Root::ParallelMapV2", 1, 2))
    assert seconds(space) == {
        ("IteratorGetNext", "input"): 2.0,
        ("Iterator::Root", "input"): 2.0,
        ("Iterator::Prefetch", "input"): 6.0,  # the step waits
        ("Iterator::Batch", "input"): 20.0,  # the wait for ParallelMap is no work
        ("Iterator::Zip", "input"): 3.0,
        ("Mul", "input"): 9.0,
        ("Iterator::Map", "input"): 3.0,
        ("IteratorGetNextSync", "input"): 2.0,
        ("Iterator::ParallelMapV2", "input"): 2.0,  # the step waits for this one
    }


def program():
    """A compiled program of three instructions, as XLA describes it."""
    module = hlo_pb2.HloModuleProto(name="cluster")
    computation = module.computations.add(name="main")
    for name, opcode, op_type, op_name in (
        ("convolution.1", "convolution", "Conv2D", "model/conv/Conv2D"),
        ("fusion.2", "fusion", "AssignSubVariableOp", "adam/AssignSubVariableOp"),
        ("while.3", "while", "", ""),
        ("fusion.4", "fusion", "", "model/drop/StatelessRandomUniformV2_1"),
    ):
        added = computation.instructions.add(name=name, opcode=opcode)
        added.metadata.op_type, added.metadata.op_name = op_type, op_name
    return hlo_pb2.HloProto(hlo_module=module).SerializeToString()


@pytest.fixture
def compiled(space):
    plane = Plane(space, "/host:metadata")
    metadata = plane.plane.event_metadata[7]
    metadata.id, metadata.name = 7, "cluster(7)"
    plane.stat(metadata.stats, "Hlo Proto", program())
    return plane


def instruction(name, **stats):
    return {"hlo_op": f"ref:{name}", "hlo_module": "cluster", "program_id": 7, **stats}


def test_a_compiled_program_on_a_cpu(space, host, compiled):
    host.line(
        "tf_Compute/1",
        ("ExecutorState::ProcessAsync::Start", 0, 90, {"kernel_type": "StatefulPartitionedCall"}),
        ("convolution.1", 10, 1, instruction("convolution.1", _p=11)),
        ("while.3", 20, 60, instruction("while.3", _p=12)),
        ("end: while.3", 80, 0, {"_c": 12}),
        ("transpose_copy_fusion.5", 30, 2, instruction("transpose_copy_fusion.5")),
    )
    host.line(
        "tf_numa_-1_Eigen/2",
        ("end: convolution.1", 17, 0.5, {"_c": 11}),
        ("fusion.2", 20, 4, instruction("fusion.2", _p=13)),
        ("end: fusion.2", 24, 0, {"_c": 13}),
        ("fusion.4", 30, 3, instruction("fusion.4")),
    )
    assert seconds(space) == {
        ("Conv2D", "convolution"): 7.5,  # from its beginning to its end on another thread
        ("AssignSubVariableOp", "optimizer"): 4.0,
        ("StatelessRandomUniformV2", "elementwise"): 3.0,
        ("transpose_copy_fusion", "casts and layout"): 2.0,
    }


def test_instructions_go_by_their_own_names_without_a_reader(space, host, compiled, monkeypatch):
    without(monkeypatch, "tensorflow.compiler.xla.service.hlo_pb2")
    host.line("tf_Compute/1", ("dot.12", 10, 1, instruction("dot.12")))
    assert seconds(space) == {("dot", "matmul"): 1.0}


def test_a_compiled_program_that_can_not_be_taken_apart(space, host, compiled):
    """TensorFlow 2.16 on a CPU."""
    call = {"kernel_type": "StatefulPartitionedCall"}
    host.line(
        "tf_Compute/1",
        ("ExecutorState::ProcessAsync::Start", 0, 90, call),
        ("ExecutorState::ProcessAsync::Start", 90, 5, {"kernel_type": "IteratorGetNext"}),
    )
    assert seconds(space) == {("XLA program", "other"): 90.0}
    profile = OpProfile((OpCost("XLA program", "other", 1, 0.09),))
    table = text(op_trace.kinds_table(PROFILE, 10, profile, 10))
    assert "0.33x" in table
    assert table.count("x") == 1  # no ratios by kind: "matmul" has no x


def test_a_call_is_no_work_without_compiled_programs(space, host):
    call = {"kernel_type": "StatefulPartitionedCall"}
    host.line("tf_Compute/1", ("ExecutorState::ProcessAsync::Start", 0, 90, call))
    assert seconds(space) == {}


def test_a_gpu(space, host, compiled):
    """After TensorFlow's layout of a GPU's trace; written by hand, no GPU was at hand."""
    gpu = Plane(space, "/device:GPU:0")
    op = "ref:model/conv/Conv2D:Conv2D"
    gpu.line(
        "Stream #15(Compute)",
        ("sm80_xmma_fprop", 0, 4, {"tf_op": op, "correlation_id": 1}),
        ("splitKreduce", 4, 1, {"tf_op": op}),
        ("fusion_2", 5, 2, instruction("fusion.2", tf_op="cluster:#hlo_op=fusion.2#")),
        ("elementwise_kernel", 7, 1, {"tf_op": "adam/Mul_3:Mul"}),
        ("MemcpyH2D", 8, 3),
    )
    gpu.line("XLA Ops", ("fusion.2", 5, 2, instruction("fusion.2")))
    gpu.line("Steps", ("1", 0, 11))
    host.line("tf_Compute/1", ("model/conv/Conv2D:Conv2D", 0, 9))
    host.line("tf_data_iterator_get_next/1", ("IteratorGetNextOp::DoCompute", 0, 6))
    assert seconds(space) == {
        ("Conv2D", "convolution"): 5.0,
        ("AssignSubVariableOp", "optimizer"): 2.0,
        ("Mul", "optimizer"): 1.0,
        ("MemcpyH2D", "other"): 3.0,
        ("IteratorGetNext", "input"): 6.0,
    }


@pytest.mark.parametrize(
    ("op_type", "op_name", "kind"),
    [
        ("Conv2D", "", "convolution"),
        ("_FusedConv2D", "model/conv/Relu", "convolution"),
        ("_MklNativeConv2DBackpropFilter", "", "convolution"),
        ("_MklNativePadWithFusedConv2D", "", "convolution"),
        ("DepthwiseConv2dNativeBackpropInput", "", "convolution"),
        ("Conv3DBackpropInputV2", "", "convolution"),
        ("MatMul", "", "matmul"),
        ("_FusedMatMul", "", "matmul"),
        ("_MklFusedBatchMatMulV2", "", "matmul"),
        ("BatchMatMulV3", "", "matmul"),
        ("Einsum", "", "matmul"),
        ("CudnnRNNBackpropV3", "", "matmul"),
        ("FusedBatchNormV3", "", "normalisation"),
        ("FusedBatchNormGradV3", "", "normalisation"),
        ("_FusedBatchNormEx", "", "normalisation"),
        ("Mul", "model/batch_normalization_3/batchnorm/mul", "normalisation"),
        ("Sum", "gradient_tape/model/conv1_bn/moments/Sum", "normalisation"),
        ("MatMul", "model/spectral_normalization/dense/MatMul", "matmul"),
        ("AddV2", "", "elementwise"),
        ("_MklSwish", "", "elementwise"),
        ("BiasAddGrad", "", "elementwise"),
        ("Sum", "", "elementwise"),
        ("SparseSoftmaxCrossEntropyWithLogits", "", "elementwise"),
        ("ResourceApplyAdam", "", "optimizer"),
        ("AssignAddVariableOp", "", "optimizer"),
        ("Mul", "StatefulPartitionedCall/adam/Mul_7", "optimizer"),
        ("Mul", "SGD_1/Mul_7", "optimizer"),
        ("Mul", "loss_scale_optimizer/cond/then/_0/adamw/Mul", "optimizer"),
        ("Mul", "model/adam", "elementwise"),  # its name, not its scope
        ("Cast", "", "casts and layout"),
        ("Transpose", "", "casts and layout"),
        ("_MklToTf", "", "casts and layout"),
        ("ConcatV2", "", "casts and layout"),
        ("StridedSliceGrad", "", "casts and layout"),
        ("IteratorGetNextSync", "", "input"),
        ("MakeIterator", "", "input"),
        ("ParallelMapDatasetV2", "", "input"),
        ("DecodeJpeg", "", "input"),
        ("MaxPoolGrad", "", "other"),
        ("ReadVariableOp", "", "other"),
        ("GatherV2", "", "other"),
        ("_Send", "", "other"),
        ("NoSuchOp", "", "other"),
    ],
)
def test_kinds(op_type, op_name, kind):
    assert _op_kinds.op_kind(op_type, op_name) == kind


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("convolution.3", "convolution"),
        ("depthwise.1", "convolution"),
        ("cublas-gemm.2", "matmul"),
        ("gemm_fusion_dot.1", "matmul"),
        ("wrapped_convert.5", "casts and layout"),
        ("bitcast_copy_fusion.1", "casts and layout"),
        ("broadcast_add_fusion", "elementwise"),
        ("input_reduce_fusion.7", "elementwise"),
        ("custom-call.8", "other"),
        ("all-reduce-start.1", "other"),
        ("fusion.12", "other"),  # of what, its name doesn't say
    ],
)
def test_kinds_of_instructions(instruction, kind):
    assert _op_kinds.xla_kind(instruction) == kind


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


def without(monkeypatch, module):
    """A TensorFlow that lacks a module."""
    real = importlib.import_module

    def import_module(name):
        if name == module:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_a_tensorflow_without_the_reader(space, tmp_path, monkeypatch):
    write(space, tmp_path)
    without(monkeypatch, "tensorflow.tsl.profiler.protobuf.xplane_pb2")
    with pytest.raises(TraceError, match=f"TensorFlow {tf.__version__} has no tensorflow.tsl"):
        read_ops(tmp_path)


PROFILE = OpProfile(
    (
        OpCost("MatMul", "matmul", 30, 0.02),
        OpCost("Mul", "optimizer", 40, 0.006),
        OpCost("Mul", "elementwise", 5, 0.003),
        OpCost("AssignAddVariableOp", "optimizer", 40, 0.001),
    )
)


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


def text(table):
    console = rich.console.Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


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
