"""How far arrays are apart, by sums over their elements in float64.

A model's arrays are larger than a processor's caches, and to copy one to float64 takes longer than
all that is computed from it. So arrays are gone through a few thousand elements at a time.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np

# Three of these in float64 fit into a core's own cache. OpenBLAS starts threads for products of
# more than 10,000 elements, and these wait for each other longer than they compute.
_PIECE = 8192


def _pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Elements of arrays of one shape, in float64, some thousand of each at a time."""
    flat = [array.reshape(-1) for array in np.broadcast_arrays(*arrays)]
    for start in range(0, flat[0].size, _PIECE):
        yield tuple(np.asarray(one[start : start + _PIECE], np.float64) for one in flat)


def square(array: np.ndarray) -> float:
    """The sum of an array's squares; not finite where an element is not."""
    return sum(float(np.dot(x, x)) for (x,) in _pieces(array))


def norm(array: np.ndarray) -> float:
    """The root of the sum of an array's squares; not finite where an element is not."""
    return math.sqrt(square(array))


def relative_error(reference: np.ndarray, candidate: np.ndarray, floor: float = 0.0) -> float:
    """The norm of the difference over the norm of the reference, or over `floor`.

    Two zeros, and NaN or Inf in the same places, count as equal.
    """
    return Apart.of(reference, candidate).relative(floor)


def update_error(
    value: np.ndarray, before: np.ndarray, other: np.ndarray, other_before: np.ndarray
) -> float:
    """How far two new values are apart, relative to the first or, if larger, to its change.

    Args:
        value, before: an array after an update, and before it.
        other, other_before: the same of the update that is compared.
    """
    off = change = size = 0.0
    with np.errstate(invalid="ignore"):
        for a, a_before, b, b_before in _pieces(value, before, other, other_before):
            moved = a - a_before
            apart = b - b_before - moved
            off += float(np.dot(apart, apart))
            change += float(np.dot(moved, moved))
            size += float(np.dot(a, a))
        if not math.isfinite(off + change + size):
            return relative_error(value - before, other - other_before, norm(value))
    scale = max(change, size)
    return 0.0 if not off else math.sqrt(off / scale) if scale else math.inf


@dataclasses.dataclass(frozen=True)
class Apart:
    """How far an array is from another of its shape: sums over all elements.

    What is not finite counts as 0, and so does a difference from it.

    Attributes:
        count: of elements.
        size, other: the sums of the squares of the two.
        off: that of their differences.
        along: the sum of the products of the first and of the differences.
        cosine: of the angle between them; 1.0 where either is zero or they are the same.
        is_alike: whether they are finite in the same places.
    """

    count: int
    size: float
    other: float
    off: float
    along: float
    cosine: float = 1.0
    is_alike: bool = True

    @classmethod
    def of(cls, reference: np.ndarray, candidate: np.ndarray) -> "Apart":
        """Compares two arrays."""
        size = other = off = along = 0.0
        with np.errstate(invalid="ignore"):
            for a, b in _pieces(reference, candidate):
                difference = b - a
                size += float(np.dot(a, a))
                other += float(np.dot(b, b))
                off += float(np.dot(difference, difference))
                along += float(np.dot(a, difference))
        if not math.isfinite(size + other + off + along):
            return cls._where_finite(reference, candidate)
        norms = math.sqrt(size) * math.sqrt(other)
        cosine = (size + along) / norms if norms and off else 1.0
        return cls(np.size(reference), size, other, off, along, cosine)

    @classmethod
    def _where_finite(cls, reference: np.ndarray, candidate: np.ndarray) -> "Apart":
        a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
        usable = np.isfinite(a)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = b - a
            right = np.where(usable, a, 0.0)
            error = np.where(np.isfinite(difference), difference, 0.0)
            off, along = square(error), float(np.vdot(right, error))
            sums = square(right), square(right + error), off, along
        # Infinite numbers have no angle.
        same = np.array_equal(a, b, equal_nan=True) or bool(np.any(np.isnan(a)))
        alike = bool(np.array_equal(usable, np.isfinite(b)))
        return cls(a.size, *sums, cosine=1.0 if same else -1.0, is_alike=alike)

    @property
    def norm(self) -> float:
        """That of the first array."""
        return math.sqrt(self.size)

    @property
    def error(self) -> float:
        """The norm of the difference."""
        return math.sqrt(self.off)

    def relative(self, floor: float = 0.0) -> float:
        """The difference relative to the first array's norm or, if larger, to `floor`."""
        if not self.is_alike:
            return math.inf
        scale = max(self.norm, floor)
        return 0.0 if self.off == 0.0 else self.error / scale if scale else math.inf


def overall(aparts: Iterable[Apart]) -> float:
    """The relative error of several arrays taken together, as far as they are finite."""
    found = list(aparts)
    off, size = sum(one.off for one in found), sum(one.size for one in found)
    return 0.0 if off == 0.0 else math.sqrt(off / size) if size else math.inf
