"""What a traced graph uses beside its arguments: variables, tables, and side effects."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.compat.tensorflow_private import variable_dtype

# Ops that leave a resource as it is.
_READING = {
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "VariableShape",
    "VarIsInitializedOp",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "LookupTableExportV2",
}
# TensorFlow's own note, on calls of functions, of the inputs that these only read.
_READ_ONLY = "_read_only_resource_inputs"
# Inputs before those that branches get.
_SELECTING = {"If", "StatelessIf", "Case", "StatelessCase"}
_PYTHON = {"PyFunc", "EagerPyFunc"}  # tf.numpy_function(stateful=False) promises to do nothing
_FILES = {"WriteFile", "SaveV2"}
_RANDOM = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "TruncatedNormal",
}


@dataclasses.dataclass(frozen=True)
class Resource:
    """A variable or a table, by the eager tensor that is its handle.

    `dtypes` are a variable's own, or those of a table's keys and values; `is_assigned` is whether
    a step may change it.
    """

    handle: tf.Tensor
    dtypes: tuple[tf.DType, ...]
    is_assigned: bool = True

    def read(self) -> tuple[tf.Tensor, ...] | None:
        """The present value, copied to the host's memory; None where there is none yet."""
        if len(self.dtypes) == 2:
            keys, values = self.dtypes
            return tuple(
                tf.raw_ops.LookupTableExportV2(table_handle=self.handle, Tkeys=keys, Tvalues=values)
            )
        if not tf.raw_ops.VarIsInitializedOp(resource=self.handle):
            return None
        value = tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=self.dtypes[0])
        with tf.device("CPU:0"):
            # A plain read may share the variable's buffer, and the next step
            # would pay for the copy.
            return (tf.raw_ops.DeepCopy(x=value),)

    def write(self, value: tuple[tf.Tensor, ...]) -> None:
        """Puts back what `read` gave."""
        if len(self.dtypes) == 2:
            keys, values = value
            tf.raw_ops.LookupTableImportV2(table_handle=self.handle, keys=keys, values=values)
        else:
            tf.raw_ops.AssignVariableOp(resource=self.handle, value=value[0])


def resources_of(graph: Any) -> Iterator[Resource]:
    """The variables that a traced graph uses, and the tables that it changes."""
    assigned = _assigned(graph)
    functions: dict[str, Any] | None = None
    for handle, inside in graph.captures:
        if handle.dtype != tf.resource:
            continue
        dtype = variable_dtype(handle)
        if dtype is not None:
            yield Resource(handle, (dtype,), id(inside) in assigned)
        elif id(inside) in assigned and not _is_queue(inside):
            functions = _functions(graph) if functions is None else functions
            dtypes = _table_dtypes(_uses(inside, functions))
            if dtypes is not None and None not in dtypes:
                yield Resource(handle, dtypes)


class Touched:
    """The resources of all graphs that were traced for one function so far.

    `on_more` is called when a graph was traced, before it runs for the first time.
    """

    def __init__(self) -> None:
        self._found: dict[int, Resource] = {}
        self.on_more: Callable[[], None] = lambda: None

    def add(self, graph: Any) -> None:
        """Notes what a graph uses."""
        for item in resources_of(graph):
            known = self._found.get(id(item.handle), item)
            assigned = known.is_assigned or item.is_assigned
            self._found[id(item.handle)] = dataclasses.replace(known, is_assigned=assigned)
        self.on_more()

    def assigned(self) -> list[Resource]:
        """All that the function may change."""
        return [item for item in self._found.values() if item.is_assigned]


def side_effects(graph: Any) -> tuple[str, ...]:
    """What a whole step does that can't be undone, which is why it must not be repeated.

    Returns:
        A clause for each, such as "runs Python code (tf.py_function)".
    """
    functions = _functions(graph)
    types = _op_types(graph, functions)
    found = []
    if types & _PYTHON:
        found.append("runs Python code (tf.py_function, tf.numpy_function)")
    if any(kind.startswith("Write") and kind.endswith("Summary") for kind in types):
        found.append("writes summaries")
    if types & _FILES:
        found.append("writes files")
    captured = [inside for handle, inside in graph.captures if _is_opaque(handle)]
    uses = [{kind for kind, _ in _uses(inside, functions)} for inside in captured]
    if any(kind.startswith("IteratorGetNext") for kinds in uses for kind in kinds):
        found.append("takes batches from an iterator of its own")
    if any(kind.startswith("Queue") for kinds in uses for kind in kinds):
        found.append("uses a queue")
    tables = [_table_dtypes(_uses(inside, functions)) for inside in captured]
    if any(dtypes is not None and None in dtypes for dtypes in tables):
        found.append("changes a table that can't be copied")
    return tuple(found)


def stateful_random_ops(graph: Any) -> tuple[str, ...]:
    """The types of a graph's random ops that keep a state which nobody can read."""
    return tuple(sorted(_op_types(graph, _functions(graph)) & _RANDOM))


def _is_queue(tensor: Any) -> bool:
    """Whether a tensor is plainly no table, without a look into functions."""
    return all(operation.type.startswith("Queue") for operation in tensor.consumers())


def _is_opaque(handle: tf.Tensor) -> bool:
    return handle.dtype == tf.resource and variable_dtype(handle) is None


def _assigned(graph: Any) -> set[int]:
    """The ids of a graph's tensors whose resources it does more with than read."""
    found: set[int] = set()
    for operation in graph.get_operations():
        if operation.type in _READING:
            continue
        inputs = [x for x in operation.inputs if x.dtype == tf.resource]
        if not inputs:
            continue
        attributes = operation.node_def.attr
        reading = set(attributes[_READ_ONLY].list.i) if _READ_ONLY in attributes else set()
        found.update(
            id(tensor)
            for index, tensor in enumerate(operation.inputs)
            if tensor.dtype == tf.resource and index not in reading
        )
    return found


def _functions(graph: Any) -> dict[str, Any]:
    return {item.signature.name: item for item in graph.as_graph_def().library.function}


def _op_types(graph: Any, functions: dict[str, Any]) -> set[str]:
    types = {operation.type for operation in graph.get_operations()}
    return types.union(*({node.op for node in item.node_def} for item in functions.values()))


def _uses(tensor: Any, functions: dict[str, Any]) -> list[tuple[str, Any]]:
    """The ops that use a captured resource, with their attributes, also within functions."""
    found: list[tuple[str, Any]] = []
    seen: set[tuple[str, int]] = set()

    def follow(kind: str, attributes: Any, index: int) -> None:
        found.append((kind, attributes))
        shift = 1 if kind in _SELECTING else 0
        for name in _called(attributes):
            if name in functions and (name, index - shift) not in seen:
                seen.add((name, index - shift))
                inside(functions[name], index - shift)

    def inside(function: Any, index: int) -> None:
        argument = function.signature.input_arg[index].name
        for node in function.node_def:
            for position, given in enumerate(node.input):
                if given == argument:
                    follow(node.op, node.attr, position)

    for operation in tensor.consumers():
        for position, given in enumerate(operation.inputs):
            if given is tensor:
                follow(operation.type, operation.node_def.attr, position)
    return found


def _called(attributes: Any) -> Iterator[str]:
    for value in attributes.values():
        if value.HasField("func"):
            yield value.func.name
        elif value.HasField("list"):
            yield from (item.name for item in value.list.func)


def _table_dtypes(
    uses: Iterable[tuple[str, Any]],
) -> tuple[tf.DType | None, tf.DType | None] | None:
    """The dtypes of keys and values of a table that is changed; None where nothing is one."""
    changed, keys, values = False, None, None
    for kind, attributes in uses:
        if not kind.startswith("LookupTable"):
            continue
        changed |= kind in ("LookupTableInsertV2", "LookupTableRemoveV2", "LookupTableImportV2")
        for name in ("Tin", "Tkeys"):
            keys = tf.as_dtype(attributes[name].type) if name in attributes else keys
        for name in ("Tout", "Tvalues"):
            values = tf.as_dtype(attributes[name].type) if name in attributes else values
    return (keys, values) if changed else None
