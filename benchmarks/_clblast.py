"""CLBlast's matrix product on the OpenCL device that tfaccel uses, and tfaccel's own beside it.

The library is called by its C interface, for which Debian's `libclblast1` is enough: its Python
package, pyclblast, has to be compiled.
https://github.com/CNugteren/CLBlast/blob/master/doc/api.md
"""

import ctypes
import ctypes.util
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from tfaccel.measure import racing
from tfaccel.ops.kernels._opencl import products
from tfaccel.ops.kernels._opencl.runtime import Runtime, in_pages, runtime
from tfaccel.ops.kernels._opencl.variants import Variant

# Relative error of a product of float32, by norms.
_TOLERANCE = 1e-5
# include/clblast_c.h
_ROW_MAJOR, _AS_IT_IS, _SUCCESS = 101, 111, 0
_NAMES = ("libclblast.so.1", "libclblast.dylib", "clblast.dll")


@dataclasses.dataclass(frozen=True)
class Times:
    """Of one product by one variant, fastest runs, from arrays to an array."""

    variant: Variant
    is_chosen: bool  # whether it is the one that the device uses
    seconds: float
    tensorflow_seconds: float
    speedup_interval: tuple[float, float]  # TensorFlow's time over the variant's, in turns
    clblast_seconds: float | None  # None without CLBlast
    share: float | None  # of CLBlast's speed: its time over the variant's, in turns


def library() -> ctypes.CDLL | None:
    """CLBlast, where it is installed."""
    for name in filter(None, (*_NAMES, ctypes.util.find_library("clblast"))):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def product(
    at: Runtime, clblast: ctypes.CDLL, a: np.ndarray, b: np.ndarray
) -> Callable[[], np.ndarray]:
    """A call of CLBlast's product, which hands over arrays as tfaccel's kernel does."""
    (n, k), m = a.shape, b.shape[1]
    size, handle = ctypes.c_size_t, ctypes.c_void_p

    def run() -> np.ndarray:
        made, pages = in_pages((n, m), np.dtype(np.float32))
        buffers = [at._input(a), at._input(b), at._output(pages)]
        first, second, out = (handle(buffer.int_ptr) for buffer in buffers)
        queue = handle(at._queue.int_ptr)
        code = clblast.CLBlastSgemm(
            *(_ROW_MAJOR, _AS_IT_IS, _AS_IT_IS, size(n), size(m), size(k), ctypes.c_float(1.0)),
            *(first, size(0), size(k), second, size(0), size(m), ctypes.c_float(0.0)),
            *(out, size(0), size(m), ctypes.byref(queue), None),
        )
        if code != _SUCCESS:
            raise RuntimeError(f"CLBlast's product of {a.shape} and {b.shape} failed: {code}")
        at._finish(buffers[2], made)
        return made

    return run


def _compare(found: np.ndarray, right: np.ndarray) -> None:
    # By norms: of sums of many terms some cancel, and have no digit left that is right.
    error = float(np.linalg.norm(found - right) / np.linalg.norm(right))
    if not error <= _TOLERANCE:
        raise RuntimeError(f"a product is off by {error:.1e} of its norm")


def measured(
    shape: tuple[int, int, int],
    tensorflow: Callable[[Any, Any], Any],
    seconds: float,
    variants: Collection[Variant] | None = None,
) -> Iterator[Times]:
    """Variants of tfaccel's product in turns with TensorFlow's and with CLBlast's.

    Args:
        shape: rows, what is summed over, and columns.
        tensorflow: its product, of arrays.
        seconds: for each race, three pairs at least.
        variants: None for the one that the device uses.
    """
    at, clblast = runtime(), library()
    n, k, m = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, k), np.float32), rng.standard_normal((k, m), np.float32)
    other = None if clblast is None else product(at, clblast, a, b)
    chosen = products.matrix_variant(at)

    def raced(baseline: Callable[[], Any], own: Callable[[], Any]) -> racing.Race:
        return racing.race(baseline, own, time.perf_counter, time.perf_counter() + seconds)

    for by in (chosen,) if variants is None else variants:

        def own(by: Variant = by) -> np.ndarray:
            return products.matrices(a[None], b[None], at, by)[0]

        _compare(own(), np.asarray(tensorflow(a, b)))
        against = raced(lambda: tensorflow(a, b), own)
        beside = None
        if other is not None:
            _compare(other(), own())
            beside = raced(other, own)
        yield Times(
            variant=by,
            is_chosen=by == chosen,
            seconds=min(against.candidate_seconds),
            tensorflow_seconds=min(against.baseline_seconds),
            speedup_interval=(against.gain.low, against.gain.high),
            clblast_seconds=min(beside.baseline_seconds) if beside else None,
            share=beside.gain.median if beside else None,
        )
