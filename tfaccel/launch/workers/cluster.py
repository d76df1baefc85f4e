"""What a worker is told of the others, and who else may have told it already."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

TF_CONFIG = "TF_CONFIG"


def tf_config(addresses: Sequence[str], index: int) -> str:
    """TF_CONFIG of one of the workers at these addresses (`"host:port"`)."""
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": task})


def manager(environ: Mapping[str, str]) -> str:
    """Who starts the workers here, in words, if it is somebody else; empty for nobody."""
    if environ.get(TF_CONFIG, "").strip():
        return "TF_CONFIG is set and names this worker"
    if "SLURM_PROCID" in environ and _number(environ.get("SLURM_STEP_NUM_TASKS")) > 1:
        tasks = environ["SLURM_STEP_NUM_TASKS"]
        return f"this is task {environ['SLURM_PROCID']} of the {tasks} of a Slurm step"
    if "RAY_JOB_ID" in environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in environ:
        return "this is a job of Ray, which starts the workers"
    return ""


def given_index(environ: Mapping[str, str]) -> int | None:
    """The number that an indexed Job of Kubernetes gave this machine; None for none."""
    found = _number(environ.get("JOB_COMPLETION_INDEX"), -1)
    return found if found >= 0 else None


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one of its workers that prints; true without others."""
    try:
        told: Any = json.loads(environ.get(TF_CONFIG, "").strip() or "{}")
        cluster, task = told.get("cluster") or {}, told.get("task") or {}
        workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
        if workers > 1:
            return task.get("type") != "worker" or (
                "chief" not in cluster and int(task.get("index", 0)) == 0
            )
    except (AttributeError, TypeError, ValueError):  # AccelStrategy says what is wrong with it
        return True
    several = _number(environ.get("SLURM_STEP_NUM_TASKS")) > 1
    return workers == 1 or not several or environ.get("SLURM_PROCID", "0") == "0"


def _number(text: str | None, other: int = 0) -> int:
    return int(text) if text and text.isdecimal() else other
