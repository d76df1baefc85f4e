"""What a worker is told of the others, and who else may have told it already."""

import importlib
from collections.abc import Mapping, Sequence

TF_CONFIG = "TF_CONFIG"
# json is loaded where there is some to read: a program alone need not wait for it.


def tf_config(addresses: Sequence[str], index: int) -> str:
    """TF_CONFIG of one of the workers at these addresses (`"host:port"`)."""
    task = {"type": "worker", "index": index}
    return importlib.import_module("json").dumps(
        {"cluster": {"worker": list(addresses)}, "task": task}
    )


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


def names_several(environ: Mapping[str, str]) -> bool:
    """Whether TF_CONFIG tells of several workers."""
    return _told(environ)[0] > 1


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one of its workers that prints; true without others."""
    workers, first = _told(environ)
    if workers:
        return first
    several = _number(environ.get("SLURM_STEP_NUM_TASKS")) > 1
    return not several or environ.get("SLURM_PROCID", "0") == "0"


def _told(environ: Mapping[str, str]) -> tuple[int, bool]:
    """How many workers TF_CONFIG names, 0 for none, and whether this is the first of them."""
    text = environ.get(TF_CONFIG, "").strip()
    if not text:
        return 0, True
    try:
        told = importlib.import_module("json").loads(text)
        cluster, task = told.get("cluster") or {}, told.get("task") or {}
        workers = sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
        is_worker = workers > 1 and task.get("type") == "worker"
        first = "chief" not in cluster and int(task.get("index", 0)) == 0
        return max(1, workers), not is_worker or first
    except (AttributeError, TypeError, ValueError):  # AccelStrategy says what is wrong with it
        return 1, True


def _number(text: str | None, other: int = 0) -> int:
    return int(text) if text and text.isdecimal() else other
