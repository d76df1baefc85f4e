"""A training loop of the user's own, as a model whose train step it is."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfaccel.core.looped import Call, Looped, Returned
from tfaccel.core.replicas import local_values
from tfaccel.steps.resources import Resource, resources_of
from tfaccel.steps.user_functions import UserFunction


class LoopedModel(keras.Model, Looped):
    """Has the models and optimizers of a loop, and its function as `train_step`.

    So the code for `fit` serves loops, too. `train_function` takes an iterator over `Call`s, and
    gives the function's results as `Returned`. The models themselves are not changed.

    Args:
        models: the user's.
        optimizers: the user's.
        function: makes a step; None where nothing is run.

    Attributes:
        made: the latest step.
    """

    def __init__(
        self,
        models: Sequence[keras.layers.Layer],
        optimizers: Sequence[keras.optimizers.Optimizer],
        function: UserFunction | None = None,
    ):
        super().__init__()
        for index, model in enumerate(models):
            setattr(self, f"model_{index}", model)
        own: dict[str, Any] = self.__dict__  # past Keras's tracking of a model's parts
        own["trained_models"] = tuple(models)
        own["optimizer"] = optimizers[0] if len(optimizers) == 1 else None
        own.update({f"optimizer_{index}": one for index, one in enumerate(optimizers)})
        own["function"] = function
        own["_more"] = None
        if function is not None:
            own["loss"] = function.named  # as a loss, it tells trainings apart in the cache
            own["made"] = Made()
            own["train_function"] = OwnStep(function, self.made)
        self.jit_compile = function is not None and function.jit_compile
        self.built = True

    @property
    def metrics(self) -> list[Any]:
        """No metrics: the loop has its own, and resets them itself."""
        return []

    def train_step(self, data: Call) -> Any:
        """The user's step, to be traced."""
        args, kwargs = data
        return self.function.untraced()(*args, **kwargs)

    def step_and(self, batch: Call, also: Callable[[], Any]) -> tuple[Any, Any]:
        """Called while a step is traced, makes it; returns its results and those of `also`."""
        args, kwargs = batch
        return self.function.untraced(also)(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the train function; for a plan, `train_step` is the plan's meanwhile."""
        compiled = self.function.compiled(self.train_step, self.jit_compile)
        self.train_function = PlanStep(compiled, self.made)

    def more_state(self, batch: Call) -> list[tuple[str, Resource]]:
        """What a step assigns beside what the models and optimizers hold: names and resources."""
        graph = self.function.concrete(batch).graph
        if self._more is None or self._more[0] is not graph:
            self.__dict__["_more"] = graph, self._more_state(graph)
        return self._more[1]

    def _more_state(self, graph: Any) -> list[tuple[str, Resource]]:
        optimizers = [v for k, v in vars(self).items() if k.startswith("optimizer_")]
        known = [*self.variables, *(v for one in optimizers for v in one.variables)]
        handles = {id(copy.handle) for v in known for copy in local_values(v.value)}
        others = [r for r in resources_of(graph) if r.is_assigned and id(r.handle) not in handles]
        return [(f"variable {index} of the loop", item) for index, item in enumerate(others)]


class Made:
    """The latest step of either side, which tells whether an error is the user's.

    Attributes:
        call: its batch; None before any.
        returned: what the function returned.
        raised: what it raised last; None where it did not.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forgets the latest step before another one."""
        self.call: Call | None = None
        self.returned = Returned(None)
        self.raised: Exception | None = None

    def by(self, function: Callable[[Call], Any], call: Call) -> Returned:
        """Makes a step."""
        try:
            returned = Returned(function(call))
        except Exception as error:
            self.raised = error
            raise
        self.call, self.returned = call, returned
        return returned


class OwnStep:
    """The user's function, called as the loop calls it, on an iterator over `Call`s.

    Args:
        function: makes a step.
        made: told of it.
    """

    def __init__(self, function: UserFunction, made: Made):
        self._function = function
        self._made = made

    def __call__(self, iterator: Any) -> Returned:
        return self._made.by(self._function, next(iterator))

    def experimental_get_tracing_count(self) -> int:
        """How often the step was traced, under the name of `tf.function`'s method."""
        return self._function.traces()

    def get_concrete_function(self, iterator: Any) -> Any:
        """The step's concrete function for a batch, under the name of `tf.function`'s method."""
        return self._function.concrete(next(iterator))


class PlanStep:
    """A step that was built under a plan, on an iterator over `Call`s.

    Args:
        compiled: makes a step.
        made: told of it.
    """

    def __init__(self, compiled: Callable[[Call], Any], made: Made):
        self._compiled = compiled
        self._made = made

    def __call__(self, iterator: Any) -> Returned:
        return self._made.by(self._compiled, next(iterator))
