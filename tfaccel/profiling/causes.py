"""Why a step was traced again: the part of its batch that differs from the trace before."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# The causes of traces. The first two are no needless traces.
FIRST, PLAN, STRUCTURE, DTYPE, SHAPE, VALUE = (
    "first",
    "plan",
    "structure",
    "dtype",
    "shape",
    "value",
)
_EXPECTED = (FIRST, PLAN)
# Keras's names of `fit`'s data.
_NAMES = ("x", "y", "sample_weight")


class Leaf(NamedTuple):
    """One tensor of a batch."""

    name: str  # its place, such as `x['image']`
    shape: tuple[int | None, ...] | None  # None for an unknown rank
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape_text} {self.dtype}"

    @property
    def shape_text(self) -> str:
        """The shape as Python writes it."""
        return "any shape" if self.shape is None else str(self.shape)


Leaves = tuple[Leaf, ...]


def leaves_of(batch: Any) -> Leaves:
    """The tensors of a batch, or of its spec, each with its place.

    >>> [str(leaf) for leaf in leaves_of((tf.zeros((8, 4)), {"a": tf.TensorSpec(None)}))]
    ['(8, 4) float32', 'any shape float32']
    """
    if isinstance(batch, tuple) and len(batch) <= len(_NAMES):
        pairs = zip(_NAMES, batch, strict=False)
        return tuple(leaf for name, part in pairs for leaf in _within(name, part))
    return tuple(_within("x", batch))


def _within(name: str, part: Any) -> Iterator[Leaf]:
    if isinstance(part, Mapping):
        for key in part:
            yield from _within(f"{name}[{key!r}]", part[key])
    elif hasattr(part, "shape") and hasattr(part, "dtype"):
        rank = getattr(part.shape, "rank", 0)
        yield Leaf(
            name,
            None if rank is None else tuple(part.shape),
            getattr(part.dtype, "name", str(part.dtype)),
        )
    elif isinstance(part, tuple | list):
        for index, item in enumerate(part):
            yield from _within(f"{name}[{index}]", item)


@dataclasses.dataclass(frozen=True)
class Cause:
    """The cause of a trace.

    Attributes:
        kind: `first`, `plan`, `structure`, `dtype`, `shape`, or `value`: no part of the batch.
        argument: the part of the batch; empty where no part is the cause.
        was, now: that part at the trace before, and at this one.
    """

    kind: str
    argument: str = ""
    was: str = ""
    now: str = ""

    @property
    def is_retrace(self) -> bool:
        """Whether a step had been traced already."""
        return self.kind not in _EXPECTED

    def to_dict(self) -> dict[str, str]:
        """The keys of a `trace` record."""
        return {"cause": self.kind} | {
            key: value for key, value in dataclasses.asdict(self).items() if key != "kind"
        }


def cause_of(before: Leaves | None, now: Leaves, expected: str = FIRST) -> Cause:
    """The difference between a batch and the one that the same step was last traced for.

    Args:
        before: the one before; None where there was none.
        now: the one at hand.
        expected: the kind where there was none.
    """
    if before is None:
        return Cause(expected)
    if [leaf.name for leaf in before] != [leaf.name for leaf in now]:
        return Cause(STRUCTURE, "the batch", _names(before), _names(now))
    for old, new in zip(before, now, strict=True):
        if old.dtype != new.dtype:
            return Cause(DTYPE, new.name, old.dtype, new.dtype)
        if old.shape != new.shape:
            return Cause(SHAPE, new.name, old.shape_text, new.shape_text)
    return Cause(VALUE)


def _names(leaves: Leaves) -> str:
    return ", ".join(leaf.name for leaf in leaves)


class Retraces:
    """Counts traces by cause, and keeps the last of each cause."""

    def __init__(self) -> None:
        self._times: collections.Counter[tuple[str, str]] = collections.Counter()
        self._last: dict[tuple[str, str], Cause] = {}

    def add(self, cause: Cause) -> None:
        """One more trace."""
        if cause.is_retrace:
            key = cause.kind, cause.argument
            self._times[key] += 1
            self._last[key] = cause

    @property
    def count(self) -> int:
        """How many retraces there were."""
        return self._times.total()

    def to_list(self) -> list[dict[str, Any]]:
        """The causes, the most frequent first, each with how many `times` it was one."""
        return [
            self._last[key].to_dict() | {"times": times} for key, times in self._times.most_common()
        ]


def retraces_in(traces: Iterable[Mapping[str, Any]]) -> Retraces:
    """The retraces in `trace` records."""
    found = Retraces()
    for record in traces:
        if record.get("cause") is not None:
            words = (str(record.get(key) or "") for key in ("cause", "argument", "was", "now"))
            found.add(Cause(*words))
    return found


def in_words(cause: Mapping[str, Any]) -> str:
    """The cause of a `trace` record, or one of a summary's, in a few words; empty for none.

    >>> in_words({"cause": "shape", "argument": "x", "was": "(8, 4)", "now": "(4, 4)"})
    "x's shape (8, 4) -> (4, 4)"
    """
    kind = cause.get("cause")
    if kind in (STRUCTURE, DTYPE, SHAPE):
        argument, was, now = (str(cause.get(key) or "") for key in ("argument", "was", "now"))
        return f"{argument}'s {kind} {was} -> {now}"
    return {
        FIRST: "the first batch",
        PLAN: "a new plan",
        VALUE: "no part of the batch: a Python value, or the model was compiled again",
    }.get(str(kind), "")


def remedy(causes: Iterable[Mapping[str, Any]]) -> str:
    """What to do about the first of some causes; empty where there is none."""
    cause = next(iter(causes), None)
    if cause is None:
        return ""
    return {
        SHAPE: "batch with drop_remainder=True, or pad to one shape, or to few "
        "(padded_batch, bucket_by_sequence_length)",
        DTYPE: "cast all data to one dtype",
        STRUCTURE: "give all batches the same parts in the same order",
        VALUE: "hand numbers to the step as tensors, and compile the model once",
    }.get(str(cause.get("cause")), "")
