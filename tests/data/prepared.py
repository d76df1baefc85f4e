"""What a dataset gives, and which samples of it are in order."""

import tensorflow as tf


def listed(dataset):
    return [tf.nest.map_structure(lambda t: t.numpy().tolist(), batch) for batch in dataset]


GOOD = [i for i in range(30) if i not in (4, 11, 29)]
