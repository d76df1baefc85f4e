"""OpenCL: products on devices that TensorFlow can't use; the extra `opencl`.

pyopencl is imported only where it is installed and a device is looked for.
"""

from tfaccel.ops.kernels._opencl.devices import has_gpu, missing
from tfaccel.ops.kernels._opencl.runtime import is_full

__all__ = ["has_gpu", "is_full", "missing"]
