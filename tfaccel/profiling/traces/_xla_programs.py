"""What the instructions of programs that XLA compiled were in TensorFlow's graph."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tfaccel.compat.tensorflow_private import xla_protobuf
from tfaccel.profiling.traces._op_kinds import CONVOLUTION, LAYOUT, MATMUL, op_kind, xla_kind

# https://openxla.org/xla/operation_semantics
_OPCODE_KINDS = {"convolution": CONVOLUTION, "dot": MATMUL, "copy": LAYOUT, "transpose": LAYOUT}
# What they run has events of its own.
_CONTROL = ("while", "call", "conditional")


class Programs:
    """The programs that a trace describes, on its plane of metadata.

    Args:
        space: the XSpace.
    """

    def __init__(self, space: Any):
        self._instructions: dict[Any, dict[str, Any]] = {
            key: {instruction.name: instruction for instruction in _instructions(module)}
            for key, module in _modules(space)
        }

    def __bool__(self) -> bool:
        return bool(self._instructions)

    def operation(self, stats: Mapping[str, Any]) -> tuple[str, str] | None:
        """The name and kind of an instruction that ran.

        Args:
            stats: of its event: `hlo_op`, and `program_id` where it is known.

        Returns:
            The type of the TensorFlow op that it was made from (of a fusion, that which
            makes its result) and one of `KINDS`; by the instruction's own name where it was
            made from none. None for control flow.
        """
        instruction = stats["hlo_op"].rpartition("::")[2]
        known = self._instructions.get(stats.get("program_id"), {}).get(instruction)
        plain = re.sub(r"[.\d]+$", "", instruction)
        if (plain if known is None else known.opcode) in _CONTROL:
            return None
        if known is None:
            return plain, xla_kind(instruction)
        op_type = known.metadata.op_type or _last(known.metadata.op_name)
        kind = _OPCODE_KINDS.get(known.opcode)
        if kind is None:
            kind = op_kind(op_type, known.metadata.op_name) if op_type else xla_kind(instruction)
        return op_type or plain, kind


def _modules(space: Any) -> Iterator[tuple[int, Any]]:
    """Each program with its number, as TensorFlow keeps them in a trace."""
    reader = xla_protobuf()
    if reader is None:
        return
    for plane in space.planes:
        if plane.name == "/host:metadata":
            for key, metadata in plane.event_metadata.items():
                for stat in metadata.stats:
                    if stat.bytes_value:
                        yield key, reader.HloProto.FromString(stat.bytes_value).hlo_module


def _instructions(module: Any) -> Iterator[Any]:
    for computation in module.computations:
        yield from computation.instructions


def _last(op_name: str) -> str:
    """The last part of an op's name, which is its type unless someone named it."""
    return re.sub(r"_\d+$", "", op_name.rpartition("/")[2])
