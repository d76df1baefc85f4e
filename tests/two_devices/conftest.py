"""These tests need two logical CPUs, which only a fresh process can have.

`make test` runs this folder by itself, with TFACCEL_TWO_DEVICES=1. Elsewhere it is not collected.
"""

import os

if os.environ.get("TFACCEL_TWO_DEVICES") == "1":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
else:
    collect_ignore_glob = ["*"]
