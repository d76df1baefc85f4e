"""An engine as tests need one: it runs a model's graph by TensorFlow, and fails when asked to."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tfaccel.inference.engines import Engine, Runner


class FakeRunner(Runner):
    """What a graph computes; `off` is added to every number of it."""

    def __init__(self, run, graph, names, off, wrong=0):
        self._run, self._graph, self._names, self._off = run, graph, names, off
        self._wrong = wrong

    def run(self, arrays):
        if FakeEngine.fails:
            raise RuntimeError("the engine has lost its graph")
        FakeEngine.sizes.append(len(arrays[0]))
        found = self._run(arrays)
        found = [x.numpy() + self._off if x.dtype.is_floating else x.numpy() for x in found]
        if self._wrong:
            count = round(self._wrong * len(found[0]))
            found = [np.concatenate([np.roll(x[:count], 1, axis=-1), x[count:]]) for x in found]
        return found

    def save(self, folder):
        (folder / "graph.pb").write_bytes(self._graph)
        (folder / "names.json").write_text(json.dumps(self._names))


@dataclasses.dataclass(frozen=True)
class FakeEngine(Engine):
    """As faithful as `off` says, and as fast as TensorFlow.

    In 8 bits the classes of a share `wrong` of the samples are not the model's.
    """

    name: ClassVar[str] = "fake_engine"
    title: ClassVar[str] = "Fake"
    module: ClassVar[str] = "json"
    extra: ClassVar[str] = "fake"
    # What the tests set, and how many samples it was handed.
    fails: ClassVar[bool] = False
    sizes: ClassVar[list] = []
    # What its 8 bits were calibrated by, and what they get wrong.
    calibrated: ClassVar[list] = []
    wrong: ClassVar[float] = 0.0
    quantizer: ClassVar[str] = "json"
    quantizer_extra: ClassVar[str] = "fake8"

    off: float = 0.0

    def build(self, forward, sample, cache=None, eight_bits=None):
        FakeEngine.calibrated.append(eight_bits)
        names = [spec.name for spec in forward.inputs], [spec.name for spec in forward.outputs]
        graph = forward.function.graph

        def run(arrays):
            given = dict(zip(names[0], map(tf.constant, arrays), strict=True))
            found = forward.function(**given)
            return [found[name] for name in names[1]]

        ins = [tensor.name for tensor in graph.inputs]
        ordered = {tensor.name.partition(":")[0]: tensor.name for tensor in graph.inputs}
        assert len(ordered) == len(ins)
        outs = [graph.structured_outputs[name].name for name in names[1]]
        tensors = {"inputs": [ordered[name] for name in names[0]], "outputs": outs}
        wrong = 0.0 if eight_bits is None else FakeEngine.wrong
        return FakeRunner(run, graph.as_graph_def().SerializeToString(), tensors, self.off, wrong)

    def load(self, folder, names, sizes):
        definition = tf.compat.v1.GraphDef.FromString((folder / "graph.pb").read_bytes())
        tensors = json.loads((folder / "names.json").read_text())
        wrapped = tf.compat.v1.wrap_function(
            lambda: tf.graph_util.import_graph_def(definition, name=""), []
        )
        run = wrapped.prune(tensors["inputs"], tensors["outputs"])
        return FakeRunner(lambda arrays: run(*map(tf.constant, arrays)), b"", {}, self.off)
