"""Looking at arrays, chunk by chunk."""

from tfaccel.data._bounds import Bounds
from tfaccel.data._log import Log
from tfaccel.data._sources import Arrays
from tfaccel.data._values import examine
from tfaccel.data.findings import Fault, FaultKind
from tfaccel.data.rules import Rules


def look_at_arrays(
    arrays: Arrays, rules: Rules, bounds: Bounds, log: Log, path: str | None = None
) -> set[int]:
    """Looks at arrays, as far as the bounds go; returns the samples with a fault."""
    indices, bad, done = bounds.spread(arrays.length), set[int](), 0
    if not arrays.length:
        log.add(Fault(FaultKind.EMPTY, "there are no samples", path=path))
    for chunk in arrays.chunks(indices):
        if bounds.is_over:
            break
        # A slice is a view; indices would copy.
        whole = int(chunk[-1] - chunk[0]) == len(chunk) - 1
        batch = arrays.take(slice(chunk[0], chunk[-1] + 1) if whole else chunk)
        bad |= {int(chunk[row]) for row in examine(batch, rules, log, indices=chunk, path=path)}
        done += len(chunk)
    if path is None:
        log.count(samples=done)
    for said in bounds.left_out(done, len(indices), arrays.length, "samples"):
        log.not_looked_at(said if path is None else f"{said} in {path}")
    log.seconds = bounds.seconds
    return bad
