"""Variables made before a fit, so that Keras does not trace its first step twice."""

import keras
import numpy as np


def built_early(model, y=None):
    """The model with its optimizer's variables, and its metrics' where it has one output.

    Keras makes them while it traces the first step, and TensorFlow traces a function that
    makes variables once more. AccelCallback makes them itself, so this is for fits without.
    Targets that have not the shape of the outputs are given, a sample of each; then a model may
    have several outputs.
    """
    model.optimizer.build(model.trainable_variables)
    single = len(model.outputs) == 1
    if single or y is not None:
        found = model.outputs[0] if single else model.output
        found = keras.tree.map_structure(lambda t: np.zeros((1, *t.shape[1:]), "float32"), found)
        model.compute_metrics(None, found if y is None else y, found)
        model.reset_metrics()
    return model


def targets(x, y=None, **_):
    """A sample of the targets among the arguments of a fit.

    A dataset is not looked into, as one that shuffles would give the fit another order.
    """
    if y is not None:
        return keras.tree.map_structure(lambda values: values[:1], y)
    _, spec = x.element_spec
    return np.zeros((1, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
