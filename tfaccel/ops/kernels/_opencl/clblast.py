"""CLBlast's matrix product, where its Python package is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfaccel.ops.kernels._opencl.runtime import Runtime


def is_installed() -> bool:
    """Whether pyclblast is, which has to be compiled with CLBlast's headers."""
    return importlib.util.find_spec("pyclblast") is not None


def matrices(at: Runtime, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a b` for batches of matrices of float32, `(batch, n, k)` and `(batch, k, m)`.

    Source: https://github.com/CNugteren/CLBlast/blob/master/doc/api.md

    Args:
        at: where.
        a, b: the operands.
    """
    (batch, n, k), m = a.shape, b.shape[-1]
    made = (batch, n, m)
    strides = {"a_stride": n * k, "b_stride": k * m, "c_stride": n * m}

    def begin(queue: Any, buffers: Sequence[Any]) -> None:
        import pyclblast
        import pyopencl.array

        # It takes matrices alone: those of a batch are below each other.
        wrapped = [
            pyopencl.array.Array(queue, (batch * rows, columns), a.dtype, data=buffer)
            for (_, rows, columns), buffer in zip((a.shape, b.shape, made), buffers, strict=True)
        ]
        edges = {"a_ld": k, "b_ld": m, "c_ld": m}
        if batch == 1:
            pyclblast.gemm(queue, n, m, k, *wrapped, **edges)
        else:
            pyclblast.gemmStridedBatched(queue, n, m, k, batch, *wrapped, **edges, **strides)

    return at.computed((a, b), made, begin)
