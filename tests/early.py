"""Variables made before a fit, so that Keras does not trace its first step twice."""

import numpy as np


def built_early(model):
    """The model with its optimizer's variables, and its metrics' where it has one output.

    Keras makes them while it traces the first step, and TensorFlow traces a function that
    makes variables once more. AccelCallback makes them itself, so this is for fits without.
    """
    model.optimizer.build(model.trainable_variables)
    if len(model.outputs) == 1:
        sample = np.zeros((1, *model.outputs[0].shape[1:]), "float32")
        model.compute_metrics(None, sample, sample)
        model.reset_metrics()
    return model
