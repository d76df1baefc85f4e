"""Every use of Keras API that is not public, each in one function.

Nothing public serves these purposes in Keras 3.10 to 3.15. Each function checks
that Keras still has what it needs and raises `KerasChangedError` when it has
not, so that a future Keras fails in one sentence and not in a strange place.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras

# Where an attention layer has the products of its inputs and of its result.
ATTENTION_PRODUCTS = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")


class KerasChangedError(RuntimeError):
    """A Keras version moved something that tfaccel needs."""

    def __init__(self, what: str):
        super().__init__(
            f"Keras {keras.__version__} has no {what}, which tfaccel needs. "
            "Use a tfaccel release that knows this Keras version."
        )


def needed(owner: Any, name: str) -> Any:
    """An attribute of an object of Keras's; `KerasChangedError` where it is gone."""
    found = getattr(owner, name, None)
    if found is None:
        raise KerasChangedError(f"{type(owner).__name__}.{name}")
    return found


def flatten_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model itself and every layer inside it, nested ones included, once each.

    `model.layers` is public, but shows the top level only.
    """
    return list({id(layer): layer for layer in needed(model, "_flatten_layers")()}.values())


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """The position of a trained variable in the optimizer's lists of slots."""
    return needed(optimizer, "_get_variable_index")(variable)


def slots(optimizer: keras.optimizers.Optimizer, name: str) -> list[Any]:
    """The optimizer's list of slot variables `name` (such as `"_momentums"`)."""
    return needed(optimizer, name)


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables that the optimizer was built for."""
    return list(needed(optimizer, "_trainable_variables"))


def flatten_optimizers(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """An optimizer and those inside it (LossScaleOptimizer, MultiOptimizer)."""
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    nested = [flatten_optimizers(one) for one in inner if one is not None]
    return [optimizer, *(part for parts in nested for part in parts)]


def losses_and_metrics(model: keras.Model) -> list[Any]:
    """What holds a compiled model's losses and metrics, and makes their variables by `build`."""
    found = []
    for name in ("_compile_metrics", "_compile_loss"):
        if not hasattr(model, name):
            raise KerasChangedError(f"Model.{name}")
        found.append(getattr(model, name))
    return [part for part in found if part is not None]  # a model may be compiled without


def output_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers that make the model's outputs (Functional and Sequential).

    A subclassed model has no graph to follow: its last layer is taken.
    """
    # What trains and is no keras.Model has neither outputs nor a list of layers.
    outputs, layers = getattr(model, "outputs", None), getattr(model, "layers", None)
    if isinstance(model, keras.Model) and outputs and not isinstance(model, keras.Sequential):
        made_by = [needed(x, "_keras_history").operation for x in keras.tree.flatten(outputs)]
    else:
        made_by = layers[-1:] if layers else []
    for maker in made_by:
        if isinstance(maker, keras.Model):
            yield from output_layers(maker)
        elif isinstance(maker, keras.layers.Layer):
            yield maker


def overridden(owner: Any, base: type, *names: str, by_user: bool = False) -> str | None:
    """The first of the methods `names` that `owner` does not take from the Keras class `base`.

    Methods are told apart by identity, so a subclass that leaves them alone has `base`'s. `names`
    may be private: one that `base` itself lacks in this Keras version is overridden by whoever
    has it. With `by_user`, those that a pass of tfaccel's has put there do not count.
    """
    for name in names:
        inherited = getattr(type(owner), name, None) is getattr(base, name, None)
        shadow = vars(owner).get(name)
        ours = by_user and (getattr(shadow, "__module__", "") or "").startswith("tfaccel.")
        if not inherited or (shadow is not None and not ours):
            return name
    return None


def trace_counter(train_function: Callable[..., Any]) -> Callable[[], int]:
    """Tells how often a model's train function was traced so far.

    Keras puts a plain function around its `tf.function`, which it holds in its
    closure; tfaccel's own loop around it counts its own traces. With
    `run_eagerly=True` there is none, and the count stays 0.

    Source: https://www.tensorflow.org/api_docs/python/tf/types/experimental/PolymorphicFunction
    """
    for function in _held(train_function):
        count = getattr(function, "experimental_get_tracing_count", None)
        if count is not None:
            return lambda: int(count())
    return lambda: 0


def traced_graph(train_function: Callable[..., Any], iterator: Any) -> Any | None:
    """The graph of a train function (or test function) for an iterator like those it ran on.

    It is traced where it was not yet, and runs nothing. None where the function is no
    `tf.function` and holds none.
    """
    for function in _held(train_function):
        concrete = getattr(function, "get_concrete_function", None)
        if concrete is not None:
            return concrete(iterator).graph
    return None


def _held(train_function: Callable[..., Any]) -> list[Any]:
    """A train function and what it holds in its closure."""
    cells = getattr(train_function, "__closure__", None) or ()
    return [train_function, *(cell.cell_contents for cell in cells)]


def mask_of(tensor: Any) -> Any:
    """The mask that Keras has attached to a tensor; None where there is none."""
    return getattr(tensor, "_keras_mask", None)


def recurrent_loop(layer: keras.layers.RNN) -> tuple[str, Callable[..., Any]]:
    """The name of the method that runs a recurrent layer's loop over time, and the method.

    It takes `(sequences, initial_state, mask, training)` and returns the last output, all
    outputs and the states; `RNN.call` is the code around it.
    """
    return "inner_loop", needed(layer, "inner_loop")


def dropout_masks(cell: Any, step_input: Any) -> list[Any]:
    """The masks that a recurrent cell puts on its inputs, which `RNN.call` has drawn.

    One for all gates, or (`implementation=1`) one for each. `step_input` are one step's inputs.
    """
    masks = needed(cell, "get_dropout_mask")(step_input)
    return masks if isinstance(masks, list) else [masks]


def reduction_axes(layer: Any, axes: list[int]) -> dict[str, list[int]]:
    """The attribute that says over what a built BatchNormalization takes its statistics."""
    needed(layer, "_reduction_axes")
    return {"_reduction_axes": axes}


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, for the layers that read `mask_of`."""
    tensor._keras_mask = mask


def running_callbacks(model: keras.Model) -> tuple[keras.callbacks.Callback, ...] | None:
    """All callbacks of the fit that begins, Keras's own too; to be asked in `on_train_begin`.

    A callback is never told of the others. The `keras.callbacks.CallbackList` that calls
    `on_train_begin` is in the stack of calls (several are, where a callback keeps a list of its
    own), and only those frames are looked at. None where there is no list: a caller of the user's
    own runs this training.
    """
    found: dict[int, keras.callbacks.Callback] = {}
    for frame in _frames_of("on_train_begin"):
        owner = frame.f_locals.get("self")
        for callback in getattr(owner, "callbacks", None) or ():
            if getattr(callback, "model", None) is model:
                found[id(callback)] = callback
    return tuple(found.values()) or None


def running_list() -> keras.callbacks.CallbackList | None:
    """The outermost list of callbacks of the fit that begins; to be asked in `on_train_begin`.

    It is a local variable of `fit`, so it goes when `fit` has ended, by whatever exception.
    """
    owners = [frame.f_locals.get("self") for frame in _frames_of("on_train_begin")]
    lists = [owner for owner in owners if isinstance(owner, keras.callbacks.CallbackList)]
    return lists[-1] if lists else None


def _frames_of(name: str) -> Iterator[FrameType]:
    """The frames in the stack of calls, the innermost first, of functions called so."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == name:
            yield frame
        frame = frame.f_back


def uses_train_function(model: keras.Model | None) -> bool:
    """Whether a fit begins, which calls `model.train_function`; to be asked in `on_train_begin`.

    Keras's `fit` is in the stack of calls then. A copy of it has made the train function, and
    has a `History` of its own among its callbacks; a loop around `train_on_batch` has not.
    """
    if model is None or getattr(model, "train_function", None) is None:
        return False
    for frame in _frames_of("fit"):
        from_keras = str(frame.f_globals.get("__name__", "")).startswith("keras.")
        if from_keras and frame.f_locals.get("self") is model:
            return True
    history = getattr(model, "history", None)
    return any(callback is history for callback in running_callbacks(model) or ())


def traces_batches(callback: keras.callbacks.TensorBoard) -> bool:
    """Whether a TensorBoard was made with `profile_batch`: it keeps no public note of it."""
    return bool(getattr(callback, "_should_trace", True))


@dataclasses.dataclass(frozen=True)
class AttentionParts:
    """A built attention layer's EinsumDense layers, its dropout, and its queries' scale."""

    query: Any
    key: Any
    value: Any
    output: Any
    dropout: Any
    scale: float


def attention_parts(layer: Any) -> AttentionParts:
    """The parts of a built MultiHeadAttention or GroupedQueryAttention."""
    grouped = isinstance(layer, keras.layers.GroupQueryAttention)
    scale = "_inverse_sqrt_head_dim" if grouped else "_inverse_sqrt_key_dim"
    names = (*ATTENTION_PRODUCTS, "_dropout_layer", scale)
    return AttentionParts(*(needed(layer, name) for name in names))


def wants_flash_attention(layer: Any) -> bool:
    """Whether an attention layer was made with `flash_attention=True`."""
    return bool(getattr(layer, "_flash_attention", False))


def is_from_keras(owner: Any) -> bool:
    """Whether the object's class is Keras's own, and no subclass of it."""
    return type(owner).__module__.startswith("keras.")


def trainer_class() -> Any:
    """The class that `keras.Model` has its `fit` from: that of the backend, which has no name."""
    for kind in keras.Model.__mro__:
        if "fit" in vars(kind):
            return kind
    raise KerasChangedError("Model.fit")


def joined_outputs(parts: list[Any]) -> Any:
    """One output of several batches as `predict` joins them, ragged where it has to be."""
    module = sys.modules[trainer_class().__module__]
    return needed(module, "potentially_ragged_concat")(parts)


def standardized_inputs(graph: Any, inputs: Any) -> list[Any]:
    """Inputs as a Functional model hands them to its graph: flat, of its dtypes and ranks."""
    return list(needed(graph, "_standardize_inputs")(inputs))
