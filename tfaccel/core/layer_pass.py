"""Passes that change layers one by one."""

import abc
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from tfaccel.compat.patching import instance_attribute, set_attribute
from tfaccel.core.plan import Pass
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload


@dataclasses.dataclass(frozen=True)
class LayerPass(Pass, is_base=True):
    """A pass that replaces attributes of layers while a step is traced.

    A subclass says which layers it serves (by their classes, `kinds`, and `obstacle`, or by
    `layers`) and which attributes it replaces (`patches`). Refusals, and how layers are put back,
    follow from these.

    Example:

    >>> @dataclasses.dataclass(frozen=True)
    ... class Doubled(tfaccel.core.layer_pass.LayerPass):
    ...     name = "doubled"
    ...     no_layer = "the model has no Dense layer"
    ...     kinds = (keras.layers.Dense,)
    ...
    ...     def patches(self, layer, context):
    ...         own = layer.call
    ...         yield "call", lambda inputs, **arguments: 2 * own(inputs, **arguments)
    """

    # The reason of a refusal where `layers` finds none in a model.
    no_layer: ClassVar[str] = "the model has no layer that the pass could serve"
    # The classes of layers that the pass looks at.
    kinds: ClassVar[tuple[type, ...]] = ()

    def layers(self, workload: Workload) -> Iterable[tuple[Any, Unsupported | None]]:
        """Each layer that the pass looks at, with what keeps the pass off it, or None."""
        looked_at = (layer for layer in workload.layers if isinstance(layer, self.kinds))
        return ((layer, self.obstacle(layer, workload)) for layer in looked_at)

    def obstacle(self, layer: Any, workload: Workload) -> Unsupported | None:
        """What keeps the pass off a layer of `kinds`, as far as it is known before a call."""
        return None

    @abc.abstractmethod
    def patches(self, layer: Any, context: StepContext) -> Iterable[tuple[str, Any]]:
        """The names of a layer's attributes, and what they are while a step is traced.

        Args:
            layer: one of `layers` that nothing keeps the pass off.
            context: the step's.
        """

    def unsupported_step(self, workload: Workload) -> Unsupported | None:
        """What keeps the pass off the whole of a step that has layers for it; nothing here."""
        return None

    def unsupported(self, workload: Workload) -> Unsupported | None:
        reasons = [reason for _, reason in self.layers(workload)]
        if not reasons:
            return Refusal.NOTHING(self.no_layer)
        return self.unsupported_step(workload) or (reasons[0] if all(reasons) else None)

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        served = [layer for layer, reason in self.layers(context.workload) if reason is None]
        with contextlib.ExitStack() as stack:
            for layer in served:
                for name, value in self.patches(layer, context):
                    has_setter = getattr(getattr(type(layer), name, None), "fset", None)
                    patch = set_attribute if has_setter else instance_attribute
                    stack.enter_context(patch(layer, name, value))
            yield
