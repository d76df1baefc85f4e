"""AcceleratedModel: a model's predictions under a plan."""

import collections
import contextlib
import os
import threading
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.report import Report
from tfaccel.compat.patching import SharedContext, instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.workload import shapes
from tfaccel.data.findings import Findings
from tfaccel.data.watching import Watch, is_finite
from tfaccel.inference.engines import ServedFunction
from tfaccel.inference.predict_function import PredictFunction, own_function, save
from tfaccel.inference.predicting import is_plain, predict_arrays
from tfaccel.inference.sample import as_arrays, as_tensors
from tfaccel.inference.saving.save import save as save_folder
from tfaccel.system import notices

# How often a batch of another size must come before it is worth compiling for.
_TIMES = 3


class AcceleratedModel:
    """What `tfaccel.accelerate` gives: the same predictions, faster.

    If something fails, the model's own function goes on, with one warning. Several threads may
    predict at once. A plan that XLA compiles for each size serves the sample's size at once, and
    another size from its third batch on; until then the model's own function predicts (so for
    the rest at the end of the data).

    Under a plan with `frozen_weights` the weights are those of the time of `accelerate`; under
    others they are the model's present ones. `refresh` always takes the present ones.

    Attributes:
        model: the model, as it was.
        report: what was tried, and what it won.
        findings: what the last `predict(validate=True)` found; None before.
    """

    def __init__(
        self,
        model: keras.Model,
        sample: Any,
        report: Report,
        own: Any,
        function: PredictFunction | ServedFunction | None,
    ):
        self.model = model
        self.report = report
        self.findings: Findings | None = None
        self._sample = sample
        self._own = own
        self._function = function
        self._times: collections.Counter[Any] = collections.Counter()
        self._lock, self._watching = threading.Lock(), threading.Lock()
        self._in_place = SharedContext(
            lambda: instance_attribute(self.model, "predict_function", self._run)
        )

    @property
    def plan(self) -> Plan:
        """The plan of the predictions; `Plan()` for the model's own function."""
        return Plan() if self._function is None else self._function.plan

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        *,
        validate: bool = False,
    ) -> Any:
        """What `model.predict` gives, in the same structure.

        It is Keras's own `predict` with another function inside or, for arrays where nothing
        else is asked, a loop without its overhead.

        Args:
            x, batch_size, verbose, steps, callbacks: as for `model.predict`.
            validate: whether to look for NaN and Inf in inputs and predictions. They are listed in
                `findings`, with a warning; no sample is left out. Batches whose predictions are
                finite by the model's own function alone are predicted by that.

        Example:

        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> x = np.ones((8, 2), "float32")
        >>> fast = tfaccel.accelerate(model, x, "baseline", verbose=0)
        >>> fast.predict(x, verbose=0, validate=True).shape, fast.findings.ok
        ((8, 1), True)
        """
        if not validate:
            return self._predict(x, batch_size, verbose, steps, callbacks)
        watch = Watch()

        def watched(data: Any) -> Any:
            outputs = self._checked(data, watch)
            watch.look([keras.utils.unpack_x_y_sample_weight(one)[0] for one in data], outputs)
            return outputs

        place = instance_attribute(self.model, "predict_function", watched)
        with self._watching, self._in_place, place:
            predicted = self.model.predict(x, batch_size, verbose, steps, callbacks)
        self.findings = watch.tell()
        return predicted

    def _predict(self, x: Any, batch_size: Any, verbose: Any, steps: Any, callbacks: Any) -> Any:
        """Predicts without Keras's loop if that suffices and works, else by its `predict`."""
        why, asked = None, (x, batch_size, verbose, steps, callbacks)
        with contextlib.ExitStack() as stack:
            try:
                if is_plain(self.model, *asked):
                    return predict_arrays(self._predict_batch, x, batch_size, verbose)
                stack.enter_context(self._in_place)
            except Exception as error:
                why = error
            # Raises what the user would see anyway, if the input is at fault.
            predicted = self.model.predict(*asked)
        if why is not None:
            notices.warn(
                f"tfaccel leaves a prediction to Keras: {type(why).__name__}: {why}",
                RuntimeWarning,
                stacklevel=4,
            )
        return predicted

    def __call__(self, x: Any) -> Any:
        """Predictions for one batch, as tensors.

        Args:
            x: inputs of the sample's structure, of any number of samples.

        Raises:
            ValueError: they do not fit the model, in Keras's own words.
        """
        try:
            return self._predict_batch(x)
        except Exception:
            if not tf.inside_function():
                # Says what is wrong with the inputs, where something is: TensorFlow names an op.
                self.model(as_tensors(x), training=False)
            raise

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes a SavedModel that predicts under the plan.

        `loaded = tf.saved_model.load(path)` with `loaded.serve(x)`, and
        `keras.layers.TFSMLayer(path, "serve")` take batches of any size, in a process without
        tfaccel. It is made for machines like this one: kernels were chosen here, and what XLA
        compiles needs a TensorFlow with XLA.
        An engine is no part of it: then it predicts as the model itself does.

        Args:
            path: a folder.
        """
        plain = self._function if isinstance(self._function, PredictFunction) else None
        save(self.model, plain, self._sample, path)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes what makes the predictions, for `tfaccel.load` and for programs without tfaccel.

        A SavedModel whose signature has the names of the model's inputs and outputs where
        TensorFlow predicts, an engine's own files where an engine does (docs/inference.md). The
        report then has its size. It is made for machines like this one.

        Args:
            folder: a new one, an empty one, or one that was saved to before.

        Raises:
            ValueError: the folder holds other files, or an input or output can't be saved.
            OSError: the folder can't be written.
        """
        written = save_folder(self.model, self._function, self._sample, self.report, folder)
        self.report = self.report.saved(written)

    def refresh(self) -> None:
        """Takes the model as it is now: its weights, and all else that was changed in it.

        Nothing is tried again: a model with other layers needs another `accelerate`.
        """
        self._own = own_function(self.model)
        if self._function is not None:
            self._function = self._function.again()
            self._times.clear()

    def _predict_batch(self, x: Any) -> Any:
        """Predicts one batch of any kind that `predict` takes, by arrays where that works."""
        function = self._function
        made = as_arrays if function is not None and function.takes_arrays else as_tensors
        return self._run([keras.utils.pack_x_y_sample_weight(made(x))])

    def _run(self, data: Any) -> Any:
        """Predicts a list of batches as Keras hands them over, by the plan if that serves them."""
        function = self._function
        if function is None:
            return self._run_own(data)
        try:
            if self._serves(function, data):
                return function(data)
        except Exception as error:
            # Raises what the user would see anyway, if the batch is at fault.
            outputs = self._run_own(data)
            self._abandon(function, error)
            return outputs
        return self._run_own(data)

    def _run_own(self, data: Any) -> Any:
        """The model's own predictions, for tensors or for arrays that were meant for an engine."""
        if any(isinstance(leaf, np.ndarray) for leaf in tf.nest.flatten(data)):
            data = [as_tensors(batch) for batch in data]
        return self._own(data)

    def _serves(self, function: PredictFunction | ServedFunction, data: Any) -> bool:
        if isinstance(function, ServedFunction):
            return function.accepts(data)
        if any(isinstance(leaf, tf.experimental.Optional) for leaf in tf.nest.flatten(data)):
            return False
        # XLA compiles the model's own function for each size, too, so that would be no better.
        if not function.compiles_sizes or self.model.jit_compile:
            return True
        sizes = shapes(data)
        if sizes == shapes([(self._sample,)]):
            return True
        with self._lock:
            self._times[sizes] += 1
            return self._times[sizes] >= _TIMES

    def _abandon(self, function: PredictFunction | ServedFunction, error: Exception) -> None:
        with self._lock:
            if self._function is not function:
                return  # another thread was here before
            self._function = None
        notices.warn(
            f"tfaccel goes on with the model's own function: {function.plan} failed: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _checked(self, data: Any, watch: Watch) -> Any:
        """Predictions; those of the model's own function where only they are finite."""
        outputs = self._run(data)
        if self._function is None or is_finite(outputs):
            return outputs
        own = self._own(data)
        if not is_finite(own):
            return outputs
        watch.repaired([keras.utils.unpack_x_y_sample_weight(one)[0] for one in data])
        return own
