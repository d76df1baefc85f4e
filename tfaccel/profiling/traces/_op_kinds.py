"""The kind of work of an operation, by its type and its place in the model."""

import functools
import re

import keras

CONVOLUTION = "convolution"
MATMUL = "matmul"
NORMALISATION = "normalisation"
ELEMENTWISE = "elementwise"
OPTIMIZER = "optimizer"
LAYOUT = "casts and layout"
INPUT = "input"
OTHER = "other"
KINDS = (CONVOLUTION, MATMUL, NORMALISATION, ELEMENTWISE, OPTIMIZER, LAYOUT, INPUT, OTHER)

# Graph optimisers replace an op by one with such prefixes and suffixes that does the
# same: _FusedConv2D, _MklNativeFusedMatMul, _FusedBatchNormEx.
_REPLACEMENT = re.compile(r"^_(Mkl|Native|Fused|XlaHost)*(?=[A-Z])|Ex$")
# oneDNN's: _MklMatMul, _MklNativeConv2D, and those that do a neighbour's work with their own:
# _MklNativePadWithConv2D, _MklNativeConv2DBackpropFilterWithBias.
_ONEDNN = re.compile(r"_Mkl(Native)?(PadWith)?(?P<fused>Fused)?(?P<type>[A-Z]\w*)")
_WITH_BIAS = re.compile(r"(?<=^Conv2D)WithBias$|(?<=BackpropFilter)WithBias$")

# Calls of Python, of which only the name can tell what they compute. tfaccel's are named so:
# `opencl_conv2d`.
_CALLS_OF_PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
_OWN_CALL = re.compile(r"(?:.*/)?(?P<name>opencl_\w+?)(?:_\d+)?")

# A kind, and the beginnings of the op types that are of it.
_PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        CONVOLUTION,
        (
            *("Conv2D", "Conv3D", "DepthwiseConv2d", "QuantizedConv", "QuantizedDepthwise"),
            *("opencl_conv", "opencl_depthwise"),
        ),
    ),
    (
        MATMUL,
        (
            # Recurrent cells by cuDNN are matrix products for the most part.
            *("MatMul", "BatchMatMul", "Einsum", "CudnnRNN", "SparseMatMul", "SparseTensorDense"),
            "opencl_matmul",
        ),
    ),
    (NORMALISATION, ("FusedBatchNorm", "BatchNorm", "LayerNorm", "FusedLayerNorm", "LRN")),
    (OPTIMIZER, ("ResourceApply", "ResourceSparseApply", "ResourceScatter", "Assign")),
    (INPUT, ("Decode", "Parse", "ReadFile", "OptionalGetValue", "OptionalHasValue")),
    (
        LAYOUT,
        (
            *("Cast", "Transpose", "ConjugateTranspose", "InputConversion", "DataFormat"),
            "ToTf",  # oneDNN's blocked layouts: _MklToTf
            *("Reshape", "Pad", "MirrorPad", "Concat", "Split", "Slice", "StridedSlice", "Pack"),
            *("Unpack", "Tile", "Reverse", "ExpandDims", "Squeeze", "SpaceTo", "BatchToSpace"),
            *("DepthToSpace", "BroadcastTo", "Bitcast"),
        ),
    ),
)

# Keras's layers (batch_normalization_1, layer_normalization) and the functions that they
# call: tf.nn.batch_normalization, tf.nn.moments.
_NORMALISATION_SCOPES = ("normalization", "batchnorm", "moments")

# Arithmetic number by number, and sums over it: bound by memory, not by arithmetic.
_ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 All Any ApproximateEqual Asin Asinh Atan Atan2 Atanh BiasAdd
    BiasAddGrad BiasAddV1 BitwiseAnd BitwiseOr BitwiseXor
    Ceil ClipByValue Cos Cosh Cumsum Digamma Div DivNoNan Elu EluGrad Equal
    Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual Igamma Inv IsFinite
    IsInf IsNan L2Loss LeakyRelu LeakyReluGrad Less LessEqual Lgamma Log Log1p LogSoftmax
    LogicalAnd LogicalNot LogicalOr Max Maximum Mean Min Minimum Mod Mul MulNoNan Neg NotEqual
    OnesLike Pow Prod RandomStandardNormal RandomUniform RealDiv Reciprocal ReciprocalGrad Relu
    Relu6 Relu6Grad ReluGrad Rint Round Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Sigmoid
    SigmoidGrad Sign Sin Sinh Softmax SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad Softsign
    SoftsignGrad SparseSoftmaxCrossEntropyWithLogits Sqrt SqrtGrad Square SquaredDifference
    StatelessRandomNormalV2 StatelessRandomUniformV2 Sub Sum Swish Tan Tanh TanhGrad TruncateDiv
    TruncateMod Xdivy Xlog1py Xlogy ZerosLike
    """.split()  # noqa: SIM905 (a list of one word a line is no easier to read)
)

# Calls: the ops that they run have events of their own.
CALLS = frozenset(
    """
    Case If PartitionedCall RemoteCall StatefulPartitionedCall StatelessCase StatelessIf
    StatelessWhile SymbolicGradient TPUPartitionedCall While
    """.split()  # noqa: SIM905 (a list of one word a line is no easier to read)
)

# Words in the names of XLA's instructions: https://openxla.org/xla/operation_semantics
_XLA_NEUTRAL = frozenset({"", "fusion", "wrapped", "loop", "input", "start", "done"})
_XLA_CONVOLUTION = frozenset({"conv", "convolution", "depthwise"})
_XLA_MATMUL = frozenset({"dot", "gemm", "cublas", "matmul"})
_XLA_LAYOUT = frozenset(
    {"bitcast", "concatenate", "convert", "copy", "pad", "reshape", "reverse", "slice", "transpose"}
)
_XLA_OTHER = frozenset(
    {"all", "call", "collective", "conditional", "custom", "rng", "scatter", "sort", "while", "ynn"}
)


def op_kind(op_type: str, op_name: str = "") -> str:
    """One of `KINDS`.

    Its type decides, except in two places: every op inside an optimizer's name scope is the
    optimizer's, and the arithmetic inside a normalisation's is normalisation, fused or not.
    Updates of variables elsewhere (as of metrics) count as the optimizer's, reductions as
    elementwise.

    Args:
        op_type: the type of a TensorFlow op, as it runs: graph optimisers' replacements
            are known.
        op_name: its name in the graph, with scopes.

    >>> op_kind("_FusedConv2D"), op_kind("Mul"), op_kind("Mul", "StatefulPartitionedCall/adam/Mul")
    ('convolution', 'elementwise', 'optimizer')
    """
    scopes = [_plain(scope) for scope in op_name.split("/")[:-1]]
    if not _optimizer_scopes().isdisjoint(scopes):
        return OPTIMIZER
    kind = _type_kind(plain_type(op_type, op_name))
    normalises = any(scope.endswith(_NORMALISATION_SCOPES) for scope in scopes)
    return NORMALISATION if normalises and kind not in (CONVOLUTION, MATMUL) else kind


def plain_type(op_type: str, op_name: str = "") -> str:
    """The type that an op has where TensorFlow runs without oneDNN; so one op has one name.

    Of tfaccel's own calls of Python it is their name.

    >>> plain_type("_MklMatMul"), plain_type("_MklNativeFusedConv2D"), plain_type("Relu")
    ('MatMul', '_FusedConv2D', 'Relu')
    >>> plain_type("PyFuncStateless", "model/dense/opencl_matmul_3")
    'opencl_matmul'
    """
    if op_type in _CALLS_OF_PYTHON and (own := _OWN_CALL.fullmatch(op_name)):
        return own["name"]
    found = _ONEDNN.fullmatch(op_type)
    if found is None:
        return op_type
    plain = _WITH_BIAS.sub("", found["type"])
    if not found["fused"]:
        return plain
    # FusedBatchNorm is an op of its own; its fusion with an activation ends in "Ex".
    whole = plain.startswith("BatchNorm") and not plain.endswith("Ex")
    return f"Fused{plain}" if whole else f"_Fused{plain}"


def _type_kind(op_type: str) -> str:
    """The kind of a plain type."""
    plain = _REPLACEMENT.sub("", op_type)
    if "Iterator" in plain or "Dataset" in plain:
        return INPUT
    if plain in _ELEMENTWISE:
        return ELEMENTWISE
    for kind, prefixes in _PREFIXES:
        if plain.startswith(prefixes):
            return kind
    return OTHER


def xla_kind(instruction: str) -> str:
    """One of `KINDS` for an instruction of a compiled program, by its name alone.

    A fused instruction has the names of its parts. Without a product it is elementwise, unless

    >>> xla_kind("loop_add_fusion.3"), xla_kind("cublas-gemm.1"), xla_kind("transpose_copy_fusion")
    ('elementwise', 'matmul', 'casts and layout')
    """
    words = set(re.split(r"[^a-z]+", instruction.lower())) - _XLA_NEUTRAL
    if words & _XLA_CONVOLUTION:
        return CONVOLUTION
    if words & _XLA_MATMUL:
        return MATMUL
    if words and words <= _XLA_LAYOUT:
        return LAYOUT
    return ELEMENTWISE if words and not words & _XLA_OTHER else OTHER


def _plain(scope: str) -> str:
    """A scope in the form for comparison: `SGD_1` and `sgd` are the same."""
    return re.sub(r"_\d+$", "", scope).replace("_", "").lower()


@functools.cache
def _optimizer_scopes() -> frozenset[str]:
    """Keras names an optimizer's scope after its class."""
    return frozenset(
        name.lower()
        for name, found in vars(keras.optimizers).items()
        if isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)
    )
