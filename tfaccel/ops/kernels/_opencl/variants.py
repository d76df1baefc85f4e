"""Which variant of the programs is the fastest on a device, measured once for each."""

import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
import time
from collections.abc import Callable, Sequence

from tfaccel.measure.timing import Clock
from tfaccel.ops.kernels._opencl.devices import OpenCLDevice
from tfaccel.system import notices
from tfaccel.system.cache_dir import default_directory
from tfaccel.system.json_files import parsed, replace_text, to_text

SCHEMA = 1
_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute a product: through local memory, or `high` rows in registers.

    Or by CLBlast, which computes matrix products alone.
    """

    tiled: bool = False
    high: int = 8  # one that products.cl has written out
    group: int = 16  # items of a work-group that is tiled, in each of two dimensions
    is_clblast: bool = False

    def __str__(self) -> str:
        """Such as `8 rows in registers`."""
        if self.is_clblast:
            return "CLBlast"
        if self.tiled:
            return f"local memory, work-groups of {self.group}x{self.group}"
        return f"{self.high} rows in registers"


# Some devices take no more than 64 items a group.
VARIANTS = (
    *(Variant(tiled=True, group=n) for n in (16, 8)),
    *(Variant(high=n) for n in (4, 6, 8, 12)),
)
# Beside them, of matrix products, where its Python package is installed.
CLBLAST = Variant(is_clblast=True)


def chosen(
    device: OpenCLDevice,
    run: Callable[[Variant], object],
    clock: Clock = time.perf_counter,
    among: Sequence[Variant] = VARIANTS,
) -> Variant:
    """The fastest variant on a device, from the folder of caches or by running each.

    Args:
        device: where they run.
        run: computes a product by a variant.
        clock: seconds.
        among: those that there are.

    Raises:
        Exception: no variant runs there.
    """
    before = known(device, among)
    if before is not None:
        return before
    path = _path(device, among)
    times: dict[Variant, float] = {}
    error: Exception = RuntimeError("no variant was tried")
    for by in among:
        try:
            run(by)  # built
            times[by] = min(_timed(run, by, clock) for _ in range(_RUNS))
        except Exception as failure:  # such as a group that is too large for the device
            error = failure
    if not times:
        raise error
    best = min(times, key=lambda by: times[by])
    try:
        replace_text(path, to_text(SCHEMA, {"variant": dataclasses.asdict(best)}))
    except OSError as problem:
        notices.warn(f"tfaccel could not keep what is fastest on {device.name}: {problem}")
    return best


def known(device: OpenCLDevice, among: Sequence[Variant] = VARIANTS) -> Variant | None:
    """What was the fastest on a device; None where it was not measured yet."""
    found = _read(_path(device, among))
    return found if found in among else None


def _timed(run: Callable[[Variant], object], by: Variant, clock: Clock) -> float:
    start = clock()
    run(by)
    return clock() - start


def _path(device: OpenCLDevice, among: Sequence[Variant]) -> pathlib.Path:
    """A file of its own for each device, driver, source and what there is to choose from."""
    source = importlib.resources.files(__package__).joinpath("products.cl").read_text("utf-8")
    facts = (
        device.name,
        device.type,
        device.compute_units,
        device.driver,
        source,
        *map(str, among),
    )
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return default_directory() / "opencl" / f"variant-{digest}.json"


def _read(path: pathlib.Path) -> Variant | None:
    try:
        with parsed(path.read_text(encoding="utf-8"), SCHEMA, "a variant") as data:
            return Variant(**data["variant"])
    except (OSError, ValueError):  # none yet, or none that can be read
        return None
