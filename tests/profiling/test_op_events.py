"""What an op is charged with, event by event."""

import pytest
from planes import PROFILE, Plane, seconds, text, without
from tensorflow.compiler.xla.service import hlo_pb2

from tfaccel.profiling.traces import _op_kinds, op_trace
from tfaccel.profiling.traces.op_trace import OpCost, OpProfile


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
