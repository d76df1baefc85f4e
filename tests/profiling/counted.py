"""What a model is given whose products are counted."""

import tensorflow as tf

BATCH = 2


def specs(*shapes):
    made = [tf.TensorSpec((BATCH, *shape), tf.float32) for shape in shapes]
    return made[0] if len(made) == 1 else made
