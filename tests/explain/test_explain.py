"""explain in Python: what runs, and what passes would do."""

import dataclasses

import catalogue
import keras
import numpy as np
import pytest
from explained import CPU, make, row, rows

import tfaccel
from tfaccel.core import layer_note
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.explain import facts as layer_facts
from tfaccel.explain.api import explain
from tfaccel.passes import PASSES, XLA, FusedNorm, FusedOptimizer, MixedPrecision
from tfaccel.system.device import Device

layers = keras.layers


BFLOAT16_CPU = Device("CPU", "new CPU", flags=frozenset({"avx512_bf16"}))
GPU = Device("GPU", "some GPU", compute_capability=(8, 0))


@pytest.fixture(scope="module")
def workload():
    return catalogue.image_workload(CPU)


@pytest.mark.parametrize(
    ("layer", "device", "runs_as"),
    [
        (layers.Conv2D(8, 3), CPU, "convolution (oneDNN), float32, channels_last"),
        (layers.Conv2D(8, 3), GPU, "convolution (cuDNN), float32, channels_last"),
        (layers.Conv2D(8, 3, groups=2), CPU, "grouped convolution (XLA), float32, channels_last"),
        (layers.Dense(8, dtype="float64"), CPU, "matrix product (oneDNN), float64"),
        (
            layers.BatchNormalization(),
            CPU,
            "statistics and elementwise ops, float32",
        ),
        (layers.LayerNormalization(), CPU, "reductions and elementwise ops, float32"),
        (layers.MaxPooling2D(), CPU, "pooling, float32, channels_last"),
        (layers.Reshape((4, 64)), CPU, "another view, no copy, float32"),
        (layers.Lambda(lambda x: x), CPU, "ops of its own, float32"),
    ],
)
def test_what_runs(layer, device, runs_as):
    found = row(layer, device)
    assert (found.now, found.runs_as) == (runs_as, runs_as)


def test_a_kind_of_keras_with_a_call_of_its_own_is_not_taken_for_keras():
    class Own(layers.Dense):
        def call(self, inputs):
            return inputs

    assert row(Own(4)).now == "ops of its own, float32"


@pytest.mark.parametrize("is_on, library", [(False, " (Eigen)"), (None, "")])
def test_without_onednn(monkeypatch, is_on, library):
    monkeypatch.setattr(layer_note, "onednn_is_on", lambda: is_on)
    assert row(layers.Dense(8)).now == f"matrix product{library}, float32"
    model = make(layers.Dense(1))
    assert ("try TF_ENABLE_ONEDNN_OPTS=1" in str(explain(model, device=CPU).notes)) == bool(library)
    assert explain(model, device=GPU).notes == ()


@pytest.mark.parametrize(
    ("layer", "device", "said"),
    [
        (layers.Conv2D(30, 3), GPU, "filters=30 is no multiple of 8"),
        (layers.Dense(30), GPU, "32 may cost no more"),
        (layers.MaxPooling2D(data_format="channels_first"), CPU, "data_format='channels_last'"),
        (layers.Dense(8, dtype="float64"), CPU, "float64 runs at half the rate"),
        (layers.Conv2D(8, 3, groups=2), CPU, "grouped convolution by XLA"),
        (layers.RandomRotation(0.1), CPU, "xla: can't be compiled by XLA; move it out"),
        (
            layers.BatchNormalization(synchronized=True),
            CPU,
            "fused_norm: synchronizes its statistics; use synchronized=False",
        ),
    ],
)
def test_what_keeps_a_layer_slow(layer, device, said):
    assert said in "; ".join(row(layer, device).why_not)


@pytest.mark.parametrize(
    ("layer", "device"),
    [
        (layers.Conv2D(30, 3), CPU),
        (layers.Conv2D(30, 3), Device("GPU", "old GPU", compute_capability=(6, 1))),
        (layers.Conv2D(32, 3), GPU),
        (layers.MaxPooling2D(data_format="channels_first"), GPU),
    ],
)
def test_nothing_is_said_where_it_would_not_help(layer, device):
    assert row(layer, device).why_not == ()


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({}, None),
        ({"recurrent_dropout": 0.2}, "recurrent_dropout=0.2"),
        ({"activation": "relu"}, "activation is not tanh"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation is not sigmoid"),
        ({"unroll": True}, "unroll=True"),
        ({"use_bias": False}, "use_bias=False"),
        ({"use_cudnn": False}, "use_cudnn=False"),
    ],
)
def test_recurrent_layers_on_a_gpu(kind, arguments, cause):
    found = row(kind(8, return_sequences=True, **arguments), GPU, shape=(5, 4))
    if cause is None:
        assert found.now == "CudnnRNNV3 (cuDNN), float32"
        assert found.why_not == ()
    else:
        assert found.now == "a loop over time steps, float32"
        assert f"{cause} keeps it off cuDNN's kernel" in found.why_not


def test_a_gru_that_resets_before_is_off_cudnn():
    assert layer_facts.off_cudnn(layers.GRU(4, reset_after=False)) == ["reset_after=False"]


def test_recurrent_layers_on_a_cpu():
    found = row(layers.LSTM(8, return_sequences=True), CPU, shape=(5, 4))
    assert found.now == "a loop over time steps, float32"
    assert "fused_rnn" in found.would and found.why_not == ()
    kept = row(layers.LSTM(8, recurrent_dropout=0.2), CPU, shape=(5, 4))
    assert "fused_rnn" not in kept.would
    assert "a CPU has no kernel for the whole sequence" in kept.why_not


@pytest.mark.parametrize("kind", [layers.MultiHeadAttention, layers.GroupQueryAttention])
def test_attention_is_known_and_not_said_to_lack_what_a_pass_has(kind):
    heads = (
        {"num_heads": 2}
        if kind is layers.MultiHeadAttention
        else {"num_query_heads": 4, "num_key_value_heads": 2}
    )
    size = {"key_dim": 3} if kind is layers.MultiHeadAttention else {"head_dim": 3}
    x = keras.Input((5, 8))
    model = keras.Model(x, kind(name="attention", **heads, **size)(x, x))
    found = rows(model)["attention"]
    assert found.now == "two batched products around a softmax, float32"
    assert "fused_attention" in found.would
    assert not [text for text in found.why_not if "no fused attention" in text]


def test_a_large_dense_layer():
    model = make(layers.Dense(1000, name="large"), layers.Dense(1), shape=(2000,))
    assert "holds 100% of the model's weights" in rows(model)["large"].why_not[0]
    assert rows(model)["dense"].why_not == ()


def test_nested_layers_have_their_paths_and_shapes():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="a")], name="inner")
    wrapped = layers.TimeDistributed(layers.Dense(3, name="b"), name="each")
    model = make(wrapped, layers.Flatten(), layers.Dense(6), inner, shape=(2, 4))
    shapes = {name: found.output_shape for name, found in rows(model).items()}
    assert shapes["model"] == "?x5"
    assert shapes["each"] == "?x2x3"
    assert shapes["each/b"] == "?x3"
    assert shapes["inner"] == "?x5"
    assert shapes["inner/a"] == "?x5"
    assert not any("input" in name for name in shapes)


def test_a_subclassed_model_that_was_never_built():
    found = rows(catalogue.Subclassed(), device=CPU)
    assert [name.split("/")[-1].split("_")[0] for name in found][1:] == ["dense", "batch", "dense"]
    assert {row.output_shape for row in found.values()} == {""}


def test_what_passes_would_do():
    found = explain(
        make(
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.Softmax(),
            layers.Rescaling(2.0),
            layers.Flatten(),
            layers.Dense(1, name="head"),
        ),
        device=BFLOAT16_CPU,
    )
    by_kind = {row.kind: row for row in found.rows}
    assert by_kind["Conv2D"].would == {"mixed_precision": "bfloat16"}
    assert by_kind["BatchNormalization"].would == {
        "fused_norm": "loops by XLA",
        "mixed_precision": "bfloat16",
    }
    assert by_kind["Softmax"].would == {"mixed_precision": "bfloat16"}
    assert by_kind["Rescaling"].why_not == ("mixed_precision: is of a kind that stays in float32",)
    assert by_kind["Dense"].why_not == ("mixed_precision: makes an output of the model",)
    assert by_kind["Sequential"].would == {"xla": "compiled by XLA"}
    assert by_kind["Adam"].would == {"fused_optimizer": "one op for each of 6 variables"}
    for name in ("fused_norm", "fused_optimizer", "mixed_precision", "xla"):
        assert found.passes[name] == "can be tried"


def test_a_chip_that_refuses_a_pass_is_told_once():
    found = explain(make(layers.Dense(4), layers.Dense(1)), device=CPU)
    assert "refuses: this CPU (plain CPU)" in found.passes["mixed_precision"]
    assert not any("mixed_precision" in text for row in found.rows for text in row.why_not)


def test_an_activation_behind_a_normalization():
    body = [layers.BatchNormalization(), layers.ReLU(name="behind"), layers.Flatten()]
    found = rows(make(*body, layers.ReLU(name="other"), layers.Dense(1)), ["fused_norm"])
    assert found["behind"].runs_as == "part of the loops before it, float32"
    assert found["other"].now == found["other"].runs_as


def test_under_a_plan():
    body = [layers.Dense(4), layers.BatchNormalization(), layers.Dense(1)]
    plan = Plan((FusedNorm(), MixedPrecision("bfloat16")))
    found = rows(make(*body), plan)
    by_kind = {row.kind: row for row in found.values()}
    assert by_kind["BatchNormalization"].runs_as == "FusedBatchNormV3 (oneDNN), bfloat16"
    assert by_kind["BatchNormalization"].now == "statistics and elementwise ops, float32"
    assert found["dense"].runs_as == "matrix product (oneDNN), bfloat16"
    assert found["dense_1"].runs_as == "matrix product (oneDNN), float32"
    assert by_kind["Sequential"].runs_as == "a graph of TensorFlow ops"
    assert by_kind["Adam"].why_not == ("fused_optimizer is not in the plan",)


@pytest.mark.parametrize("device, library", [(CPU, "XLA"), (GPU, "cuBLAS")])
def test_xla_brings_kernels_of_its_own_to_a_cpu(device, library):
    def products(model, plan):
        found = rows(model, plan, device)
        return found["model"].runs_as, found["dense"].now, found["dense"].runs_as

    compiled = f"matrix product ({library}), float32"
    with_xla = make(layers.Dense(8), jit_compile=True)
    assert products(with_xla, Plan()) == ("compiled by XLA", compiled, compiled)
    keras.utils.clear_session(free_memory=False)
    usual = f"matrix product ({'oneDNN' if device is CPU else 'cuBLAS'}), float32"
    without = make(layers.Dense(8), jit_compile=False)
    # On a GPU what the user turned off stays off.
    step = "compiled by XLA" if device is CPU else "a graph of TensorFlow ops"
    assert products(without, [XLA()]) == (step, usual, compiled)


def test_a_plan_without_fused_norm():
    found = row(layers.LayerNormalization(), plan=["fused_optimizer"])
    assert found.why_not == ("fused_norm is not in the plan",)
    fused = row(layers.LayerNormalization(), plan=["fused_norm"])
    assert fused.runs_as == "reductions and elementwise ops, a shorter gradient, float32"


def test_a_plan_whose_passes_refuse():
    model = make(layers.Dense(1), optimizer="adagrad")
    found = explain(model, ["fused_optimizer", "fused_norm"], device=CPU)
    assert found.passes["fused_norm"].startswith("refuses: the model has no BatchNorm")
    assert found.rows[-1].runs_as == found.rows[-1].now
    assert "fused_optimizer: no fused op has the maths of Adagrad" in found.rows[-1].why_not[0]


@pytest.mark.parametrize("plan, served", [(["fused_optimizer"], True), (["xla"], False)])
def test_an_optimizer_that_xla_can_not_compile(plan, served):
    model = make(layers.Dense(1), optimizer=keras.optimizers.Adam(amsgrad=True))
    found = rows(model, [*plan, *([] if served else ["fused_optimizer"])])["optimizer adam"]
    assert (found.runs_as == "one op for each of 2 variables") == served
    assert served or "XLA lacks the op" in found.why_not[0]


def test_embeddings_keep_their_update():
    model = make(layers.Embedding(9, 4, name="words"), layers.Dense(1), shape=(3,))
    assert rows(model)["optimizer adam"].why_not == ("sparse gradients keep Keras's update: words",)


def test_an_eager_model_is_told_so():
    assert "run_eagerly" in explain(make(layers.Dense(1), run_eagerly=True), device=CPU).notes[0]


@dataclasses.dataclass(frozen=True)
class Quiet(tfaccel.Pass):
    """A pass of the user's own, which has no word on layers."""

    name = "quiet"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        raise AssertionError("explain enters no pass")


@dataclasses.dataclass(frozen=True)
class Choosy(Quiet):
    """A pass of the user's own that says which layers it leaves alone."""

    name = "choosy"

    def layers(self, workload):
        for layer in workload.layers:
            yield layer, tfaccel.Unsupported(f"layer {layer.name!r} is odd", "make it even")


def test_passes_of_the_users_own():
    found = explain(make(layers.Dense(1)), [Quiet(), Choosy()], device=CPU)
    assert found.passes == {"quiet": "in the plan", "choosy": "in the plan"}
    assert found.rows[1].why_not == ("choosy: is odd; make it even",)


@pytest.mark.skipif("layout" not in [item.name for item in PASSES], reason="no such pass yet")
def test_channels_first_under_the_pass_for_it():
    first = layers.MaxPooling2D(data_format="channels_first", name="first")
    assert row(first).would == {"layout": "channels_last"}
    keras.utils.clear_session(free_memory=False)
    first = layers.MaxPooling2D(data_format="channels_first", name="first")
    found = row(first, plan=["layout"])
    assert (found.now, found.runs_as) == (
        "pooling, float32, channels_first",
        "pooling, float32, channels_last",
    )


@pytest.mark.parametrize("item", [FusedNorm(), MixedPrecision("bfloat16"), FusedOptimizer()])
def test_it_tells_what_the_passes_really_do(item, workload):
    """What is changed while a step is traced is what the rows say."""
    targets = [*workload.layers, *workload.optimizers]

    def marks():
        dtypes = [str(getattr(t, "compute_dtype", "")) for t in targets]
        return [(dtype, sorted(vars(t))) for dtype, t in zip(dtypes, targets, strict=True)]

    before = marks()
    with item.applied(StepContext(workload)):
        during = marks()
    changed = {t.name for t, a, b in zip(targets, before, during, strict=True) if a != b}
    models = {layer.name for layer in workload.layers if isinstance(layer, keras.Model)}
    inputs = {t.name for t in targets if isinstance(t, layers.InputLayer)}
    found = explain(workload.model, Plan((item,)), device=CPU)
    told = {r.layer.removeprefix("optimizer ") for r in found.rows if item.name in r.would}
    assert told == changed - models - inputs
    assert told


def test_nothing_is_changed(workload):
    objects = [*workload.layers, *workload.optimizers]
    before = [(id(v), sorted(vars(v))) for v in objects]
    weights = [w.numpy() for w in workload.model.weights]
    explain(workload.model)
    explain(workload.model, ["fused_norm", "xla", "fused_optimizer"])
    assert [(id(v), sorted(vars(v))) for v in objects] == before
    for a, b in zip(weights, workload.model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_plans_that_are_none_are_told_so():
    with pytest.raises(ValueError, match="no such file"):
        explain(make(layers.Dense(1)), "nowhere.json")
