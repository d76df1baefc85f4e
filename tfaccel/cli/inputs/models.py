"""What MODEL stands for on the command line."""

import argparse
import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfaccel.cli._command import UsageError, comma_list, positive_int
from tfaccel.cli.inputs.reference_models import REFERENCE_MODELS
from tfaccel.compat import keras_private
from tfaccel.data.findings import first_line

_FILE_ENDINGS = (".keras", ".h5", ".hdf5")
_OPTIMIZER = "adam"
# Losses by the activation that makes an output, as Keras's guides pair them.
_LOSSES = {
    "softmax": "sparse_categorical_crossentropy",
    "sigmoid": "binary_crossentropy",
}
_OTHER_LOSS = "mse"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A model, ready to train."""

    name: str  # as the user gave it
    model: keras.Model  # compiled
    input_shape: tuple[int, ...] | None = None  # of one sample, where the user gave it
    notes: tuple[str, ...] = ()  # what was chosen for the user, in sentences


def define_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and the flags that say more about it."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{', '.join(REFERENCE_MODELS)}, a name of keras.applications, or a .keras file",
    )
    parser.add_argument(
        "--input_shape", type=comma_list, help="shape of one sample, such as 96,96,3"
    )
    parser.add_argument("--classes", type=positive_int, help="how many classes a named model has")
    parser.add_argument("--optimizer", help="a Keras optimizer in place of the model's")
    parser.add_argument("--loss", help="a Keras loss in place of the model's")


def load_model(name: str, args: argparse.Namespace) -> Chosen:
    """The compiled model that MODEL and its flags stand for.

    Raises:
        UsageError: there is no such model, or it can't be built, loaded or compiled.
    """
    shape = _input_shape(args.input_shape)
    if _is_file(name):
        if args.classes is not None:
            raise UsageError(f"--classes is for named models; {name} brings its own")
        model = _loaded(pathlib.Path(name))
    else:
        model = _built(name, shape, args.classes)
    notes = _compiled(model, args.optimizer, args.loss)
    return Chosen(name, model, shape, notes)


def named_models() -> Mapping[str, Callable[..., keras.Model]]:
    """Functions that make models with random weights, by name."""
    found = vars(keras.applications).items()
    architectures = {name: make for name, make in found if name[0].isupper() and callable(make)}
    return {
        **REFERENCE_MODELS,
        **{name: functools.partial(make, weights=None) for name, make in architectures.items()},
    }


def _is_file(name: str) -> bool:
    """Whether MODEL is a path. A folder called `cnn` does not hide the model of that name."""
    path = pathlib.Path(name)
    if path.suffix.lower() in _FILE_ENDINGS or path.name != name:
        return True
    return path.exists() and _plain(name) not in map(_plain, named_models())


def _input_shape(words: list[str] | None) -> tuple[int, ...] | None:
    if words is None:
        return None
    if not words or not all(word.strip().isdecimal() and int(word) for word in words):
        raise UsageError(
            "--input_shape must be positive integers such as 96,96,3. "
            f"Received: {','.join(words)!r}"
        )
    return tuple(map(int, words))


def _built(name: str, shape: tuple[int, ...] | None, classes: int | None) -> keras.Model:
    make = _maker(name)
    given = {"input_shape": shape, "classes": classes}
    try:
        return make(**{key: value for key, value in given.items() if value is not None})
    except (ValueError, TypeError) as error:
        sizes = f" with --input_shape={','.join(map(str, shape))}" if shape else ""
        raise UsageError(f"{name} can't be built{sizes}: {first_line(error)}") from error


def _maker(name: str) -> Callable[..., keras.Model]:
    """The function that makes a named model; case, hyphens and underscores don't matter."""
    known = named_models()
    by_plain_name = {_plain(key): make for key, make in known.items()}
    if _plain(name) in by_plain_name:
        return by_plain_name[_plain(name)]
    near = difflib.get_close_matches(_plain(name), by_plain_name, cutoff=0.5)
    names = [key for plain in near for key in known if _plain(key) == plain]
    hint = f"Did you mean {', '.join(names)}?" if names else f"Such as {', '.join(known)}."
    raise UsageError(
        "MODEL must be a name of keras.applications, one of "
        f"{', '.join(REFERENCE_MODELS)}, or a .keras file. Received: {name!r}. {hint}"
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _loaded(path: pathlib.Path) -> keras.Model:
    if path.is_dir():
        raise UsageError(f"MODEL must be a .keras file. Received a folder: {path}")
    if not path.is_file():
        raise UsageError(f"there is no such file: {path}")
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # a file may fail in any way, down in h5py or a layer of its own
        raise UsageError(f"{path} can't be loaded: {first_line(error)}") from error
    if not isinstance(model, keras.Model):
        raise UsageError(f"{path} must hold a model. Received: {type(model).__name__}")
    return model


def _compiled(model: keras.Model, optimizer: str | None, loss: str | None) -> tuple[str, ...]:
    """Compiles the model if needed; returns sentences on what was chosen for the user."""
    if model.compiled and optimizer is None and loss is None:
        return ()
    own = (model.optimizer, model.loss) if model.compiled else (_OPTIMIZER, _default_loss(model))
    try:
        chosen = keras.losses.get(loss) if loss else own[1]
        model.compile(keras.optimizers.get(optimizer or own[0]), chosen)
    except ValueError as error:
        raise UsageError(f"--optimizer or --loss: {first_line(error)}") from error
    said = [] if optimizer else [f"the optimizer {type(model.optimizer).__name__}"]
    said += [] if loss else [f"the loss {chosen}"]
    return (f"Compiled with {' and '.join(said)}.",) if said else ()


def _default_loss(model: keras.Model) -> Any:
    """A loss that fits what makes each output."""
    losses = [_loss_of(layer) for layer in keras_private.output_layers(model)]
    return losses[0] if len(set(losses)) <= 1 and losses else losses or _OTHER_LOSS


def _loss_of(layer: keras.layers.Layer) -> str:
    if isinstance(layer, keras.layers.Softmax):
        return _LOSSES["softmax"]
    activation = getattr(layer, "activation", None)
    return _LOSSES.get(getattr(activation, "__name__", ""), _OTHER_LOSS)
