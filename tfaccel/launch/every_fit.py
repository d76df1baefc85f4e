"""Adds tfaccel's callbacks to every `fit` of Keras, whoever calls it.

The class's method is replaced, only in processes that are meant for it: those of `tfaccel run`, and
of the runs of Keras's own tests (conformance/).
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras

from tfaccel.compat.keras_private import trainer_class
from tfaccel.compat.patching import class_attribute
from tfaccel.system import notices


class Beside(Protocol):
    """What goes along with one fit."""

    @property
    def callbacks(self) -> Sequence[keras.callbacks.Callback]:
        """Those to add at the end; may be none."""

    def end(self, raised: str) -> None:
        """The fit has ended: by an exception of that name, or by itself where the name is empty."""


# Is handed the model and the callbacks that its fit was given.
Begin = Callable[[Any, list[Any]], Beside | None]


def every_fit(begin: Begin) -> contextlib.AbstractContextManager[None]:
    """Asks `begin` at each `fit` what goes along with it, for the length of a `with` block.

    `begin` and `end` may raise: then the fit goes on without, and a warning says so.

    Args:
        begin: gives what goes along; None for nothing.
    """
    # The class that has the method, as other classes than keras.Model mix it in.
    trainer = trainer_class()
    original = trainer.fit
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(model, *args, **kwargs)
        except TypeError:  # Keras says what is wrong with them
            return original(model, *args, **kwargs)
        given = call.arguments.get("callbacks")
        beside = _guarded(lambda: _begun(begin, model, call.arguments))
        if beside is None:
            return original(model, *args, **kwargs)
        raised = ""
        try:
            return original(*call.args, **call.kwargs)
        except BaseException as error:
            raised = type(error).__name__
            raise
        finally:
            _guarded(lambda: parted(given, beside.callbacks))
            _guarded(lambda: beside.end(raised))

    return class_attribute(trainer, "fit", fit)


def _begun(begin: Begin, model: Any, arguments: dict[str, Any]) -> Beside | None:
    """What goes along with the fit; its callbacks are added to the arguments."""
    given = arguments.get("callbacks")
    beside = begin(model, listed(given))
    if beside is not None and beside.callbacks:
        arguments["callbacks"] = joined(given, beside.callbacks, model)
    return beside


def listed(callbacks: Any) -> list[Any]:
    """A list of the callbacks, which may have any form that `fit` takes."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return keras.tree.flatten(callbacks) if callbacks else []


def joined(callbacks: Any, added: Sequence[Any], model: Any) -> Any:
    """`callbacks`, in any form that `fit` takes, with those that are added at the end."""
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*listed(callbacks), *added]
    # Keras has set its list up already, and does not do so again.
    for callback in added:
        callback.set_params(callbacks.params)
        callback.set_model(model)
    callbacks.callbacks.extend(added)
    return callbacks


def parted(callbacks: Any, added: Sequence[Any]) -> None:
    """Takes the added callbacks out of a `CallbackList`, which is the user's."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks[:] = [c for c in callbacks.callbacks if not any(c is a for a in added)]


def _guarded(work: Callable[[], Any]) -> Any:
    """What `work` gives; None and a warning where it fails. The fit is the user's and goes on."""
    try:
        return work()
    except Exception as error:
        notices.warn(
            f"tfaccel: this fit is left as it is: {type(error).__name__}: {error}", stacklevel=3
        )
        return None
