"""Which passes to try, in which order, before anything is measured."""

from collections.abc import Collection

from tfaccel.core.plan import Pass, make_pass, suited_pass
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.passes import INFERENCE_PASSES, PASSES


def expected(workload: Workload, names: Collection[str]) -> list[tuple[Pass, Prior]]:
    """The passes to consider, configured for a workload, each with what is expected of it.

    Args:
        workload: what is trained.
        names: the names of the passes allowed.

    Returns:
        The built-in passes in the order of their tables, then the user's own in that of `names`.
    """
    built_in = [kind.name for kind in (*PASSES, *INFERENCE_PASSES)]
    order = [name for name in built_in if name in names]
    order += [name for name in names if name not in built_in]
    items = [suited_pass(name, workload) for name in order]
    return [(item, item.prior(workload)) for item in items]


def pass_names(includes: Collection[str] | None, excludes: Collection[str]) -> tuple[str, ...]:
    """The names of the passes to consider, in order.

    Raises:
        TypeError: what is given is no list of names.
        ValueError: a name is not that of a pass.
    """
    built_in = tuple(item.name for item in PASSES if item.tried_by_default)
    for argument, chosen in (
        ("includes", () if includes is None else includes),
        ("excludes", excludes),
    ):
        if isinstance(chosen, str) or not isinstance(chosen, Collection):
            raise TypeError(f"`{argument}` must be a list of pass names. Received: {chosen!r}")
        for name in chosen:
            try:
                make_pass(name)
            except ValueError as error:
                raise ValueError(f"{error} (in `{argument}`)") from error
    return tuple(n for n in (built_in if includes is None else includes) if n not in set(excludes))


def reserve_names(includes: Collection[str] | None, excludes: Collection[str]) -> tuple[str, ...]:
    """The names of the passes that help a plan which runs out of memory."""
    kinds = [item for item in PASSES if item.saves_memory]
    allowed = [item.name for item in kinds if includes is None or item.name in includes]
    return tuple(name for name in allowed if name not in set(excludes))
