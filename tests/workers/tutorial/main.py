# main.py of https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras
# (Apache-2.0, The TensorFlow Authors), with the strategy's line changed.
import json
import os

import mnist_setup

import tfaccel.distribute

per_worker_batch_size = 64
tf_config = json.loads(os.environ["TF_CONFIG"])
num_workers = len(tf_config["cluster"]["worker"])

strategy = tfaccel.distribute.AccelStrategy()

global_batch_size = per_worker_batch_size * num_workers
multi_worker_dataset = mnist_setup.mnist_dataset(global_batch_size)

with strategy.scope():
    # Model building/compiling need to be within `strategy.scope()`.
    multi_worker_model = mnist_setup.build_and_compile_cnn_model()


multi_worker_model.fit(multi_worker_dataset, epochs=3, steps_per_epoch=70)
