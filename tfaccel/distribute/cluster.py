"""Which workers and devices there are: TF_CONFIG, Slurm, and this machine."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# Slurm gives no ports. Those of a job follow from its number, from here on, so that two jobs on
# a node seldom take the same; all are below 32768, where Linux's short-lived ports start.
# https://docs.kernel.org/networking/ip-sysctl.html (ip_local_port_range)
_FIRST_PORT = 12000
_PORTS = 20000
_KINDS = ("chief", "worker", "evaluator")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers that train together, and which of them this process is (such as `"worker 1"`).

    `source` is `"TF_CONFIG"` or `"Slurm"`, `addresses` are those of all, by kind of task. Without
    a `resolver` (a `tf.distribute.cluster_resolver.ClusterResolver`) TensorFlow reads TF_CONFIG.
    """

    source: str
    num_workers: int
    task: str
    addresses: str
    resolver: Any = dataclasses.field(default=None, compare=False)


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster that environment variables name; None where this process trains alone.

    TF_CONFIG comes before Slurm, as whoever sets it means it. ValueError if it can't be read.
    """
    if environ.get("TF_CONFIG", "").strip():
        return _from_tf_config(environ["TF_CONFIG"])
    if "SLURM_PROCID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _from_slurm(environ)
    return None


def _from_tf_config(text: str) -> Cluster | None:
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG must be JSON ({error}). Received: {text!r}") from error
    if not isinstance(told, dict):
        raise ValueError(f"TF_CONFIG must be a JSON object. Received: {text!r}")
    cluster, task = told.get("cluster") or {}, told.get("task") or {}
    if "ps" in cluster:
        raise ValueError(
            "AccelStrategy trains without parameter servers, and TF_CONFIG names some (`ps`). "
            "Pass a tf.distribute.ParameterServerStrategy as `strategy` if you mean them."
        )
    if task.get("type") == "evaluator":
        return None  # It does not train with the others.
    workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
    if workers < 2:
        return None
    _check_task(cluster, task, text)
    return Cluster("TF_CONFIG", workers, f"{task['type']} {task['index']}", str(cluster))


def _check_task(cluster: dict[str, Any], task: dict[str, Any], text: str) -> None:
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster or kind not in _KINDS:
        raise ValueError(
            "TF_CONFIG's task.type must be one of the kinds in its cluster "
            f"({', '.join(cluster)}). Received: {text}"
        )
    if not str(index).isdecimal() or int(str(index)) >= len(cluster[kind]):
        raise ValueError(
            f"TF_CONFIG's task.index must be below {len(cluster[kind])}, the number of tasks "
            f"of type {kind!r}. Received: {text}"
        )


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """The tasks of a Slurm step.

    `SlurmClusterResolver` finds the hosts. It also divides GPUs by what it thinks a
    node has, and fails without any; Slurm has done that (`--gpus-per-task`), so here
    each task uses the GPUs that it sees.
    """
    tasks = int(environ["SLURM_STEP_NUM_TASKS"])
    first_port = _FIRST_PORT + int(environ.get("SLURM_JOB_ID", "0")) % _PORTS
    slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=first_port, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
    )
    spec = slurm.cluster_spec()
    kind, index = slurm.get_task_info()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec,
        task_type=kind,
        task_id=index,
        num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        rpc_layer="grpc",
    )
    return Cluster("Slurm", tasks, f"{kind} {index}", str(spec.as_dict()), resolver)


def local_devices(config: Any = tf.config) -> tuple[str, ...]:
    """The devices that this process may train on, such as `("GPU:0", "GPU:1")`.

    Logical devices count where they were configured (CPUs too), and nothing is started:
    TensorFlow's own list would start the GPUs.
    """
    for kind in ("GPU", "CPU"):
        count = sum(
            len(config.get_logical_device_configuration(device) or (None,))
            for device in config.get_visible_devices(kind)
        )
        if count:
            return tuple(f"{kind}:{i}" for i in range(count))
    return ()
