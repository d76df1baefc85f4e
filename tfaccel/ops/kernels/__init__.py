"""Kernels: ways to compute convolutions and matrix products, chosen by measuring.

One file a kernel; files that begin with an underscore are the machinery. Adding one: its
file, a line in `_registry.KERNELS`, a row in docs/kernels.md. Its tests are made from the
table.
"""

from tfaccel.ops.kernels._kernel import TOLERANCES, Kernel
from tfaccel.ops.kernels._likely import Guess, Measured, guess, measured_text, shipped
from tfaccel.ops.kernels._measure import find, measure
from tfaccel.ops.kernels._opencl.devices import OpenCLDevice, opencl_devices
from tfaccel.ops.kernels._opencl.variants import Variant as OpenCLVariant
from tfaccel.ops.kernels._opencl.variants import known as opencl_variant
from tfaccel.ops.kernels._product import Choose, Chooser, input_gradient, product, weight_gradient
from tfaccel.ops.kernels._ranking import Candidate, Ranking
from tfaccel.ops.kernels._registry import (
    FAMILIES,
    KERNELS,
    REFERENCE,
    kernels,
    reference,
    register_kernel,
    unregister_kernel,
)
from tfaccel.ops.kernels._spec import DIRECTIONS, DTYPES, OPS, CallSpec, Direction
from tfaccel.ops.kernels._store import Store
from tfaccel.ops.kernels._validation import convolution_spec, data_format, matmul_spec, tensors

__all__ = [
    "DIRECTIONS",
    "DTYPES",
    "FAMILIES",
    "KERNELS",
    "OPS",
    "REFERENCE",
    "TOLERANCES",
    "CallSpec",
    "Candidate",
    "Choose",
    "Chooser",
    "Direction",
    "Guess",
    "Kernel",
    "Measured",
    "OpenCLDevice",
    "OpenCLVariant",
    "Ranking",
    "Store",
    "convolution_spec",
    "data_format",
    "find",
    "guess",
    "input_gradient",
    "kernels",
    "matmul_spec",
    "measure",
    "measured_text",
    "opencl_devices",
    "opencl_variant",
    "product",
    "reference",
    "register_kernel",
    "shipped",
    "tensors",
    "unregister_kernel",
    "weight_gradient",
]
