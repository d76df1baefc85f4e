"""Which passes to try, in which order, before anything is measured."""

from collections.abc import Collection

from tfaccel.core.plan import Pass, suited_pass
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
