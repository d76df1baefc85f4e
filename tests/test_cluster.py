"""Where the other workers are, and what workers write."""

import json

import pytest

from tfaccel.distribute import AccelStrategy
from tfaccel.distribute.checkpoints import CheckpointPaths, packed, unpack
from tfaccel.distribute.cluster import find_cluster

WORKERS = {"worker": ["a:1", "b:1", "c:1"]}


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_a_cluster_by_tf_config():
    cluster = find_cluster(tf_config(WORKERS, index=2))
    assert (cluster.source, cluster.num_workers, cluster.task) == ("TF_CONFIG", 3, "worker 2")
    with_chief = find_cluster(tf_config({"chief": ["a:1"], "worker": ["b:1"]}, "chief"))
    assert (with_chief.num_workers, with_chief.task) == (2, "chief 0")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TF_CONFIG": " "},
        {"TF_CONFIG": "{}"},
        tf_config({"worker": ["a:1"]}),
        tf_config({**WORKERS, "evaluator": ["d:1"]}, "evaluator"),
        {"SLURM_JOB_ID": "7"},  # an allocation, and no step in it
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_no_cluster(environ):
    assert find_cluster(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TF_CONFIG": "{worker: 2}"}, "TF_CONFIG must be JSON"),
        ({"TF_CONFIG": "[1]"}, "must be a JSON object"),
        (tf_config(WORKERS, "trainer"), "task.type must be one of .*worker"),
        (tf_config(WORKERS, index=3), "task.index must be below 3"),
        (tf_config(WORKERS, index=None), "task.index must be below 3"),
        (tf_config({**WORKERS, "ps": ["d:1"]}), "parameter servers"),
        ({"TF_CONFIG": json.dumps({"cluster": WORKERS})}, "task.type must be one of"),
    ],
)
def test_bad_tf_config(environ, message):
    with pytest.raises(ValueError, match=message):
        find_cluster(environ)


def test_a_cluster_by_slurm(monkeypatch):
    step = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cluster = find_cluster(step)
    assert (cluster.source, cluster.num_workers, cluster.task) == ("Slurm", 3, "worker 2")
    hosts = cluster.resolver.cluster_spec().as_dict()["worker"]
    port = 12000 + 1234567 % 20000
    assert hosts == [f"node07:{port}", f"node07:{port + 1}", f"node08:{port}"]
    assert cluster.resolver.task_id == 2
    assert cluster.resolver.num_accelerators() == {"GPU": 0}
    # TF_CONFIG comes first.
    assert find_cluster({**step, **tf_config(WORKERS)}).source == "TF_CONFIG"


# --- checkpoints --------------------------------------------------------------------


def test_paths_without_other_workers(tmp_path):
    strategy = AccelStrategy("default")
    assert strategy.is_chief
    assert strategy.checkpoint_filepath(tmp_path / "a.keras") == str(tmp_path / "a.keras")
    assert strategy.backup_dir("backup") == "backup"


class Worker:
    """Stands for a MultiWorker of two; `shared` is what the chief shares."""

    num_workers = 2

    def __init__(self, is_chief, shared=b""):
        self.is_chief, self.shared = is_chief, shared

    def share_bytes(self, data):
        self.shared = data if self.is_chief else self.shared
        return self.shared


def test_others_write_elsewhere():
    paths = CheckpointPaths(Worker(is_chief=False))
    first, second = paths.filepath("/a/{epoch}.keras"), paths.filepath("/b/{epoch}.keras")
    assert first.endswith("/{epoch}.keras")
    assert not first.startswith("/a/")
    assert first != second
    assert CheckpointPaths(Worker(is_chief=True)).filepath("/a/b") == "/a/b"


def test_others_get_the_chiefs_backup(tmp_path):
    folder = tmp_path / "backup"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"\0\1\2")
    chief = Worker(is_chief=True)
    assert CheckpointPaths(chief).backup_dir(str(folder)) == str(folder)
    other = CheckpointPaths(Worker(False, chief.shared)).backup_dir(str(folder))
    assert other != str(folder)
    with open(f"{other}/deep/weights", "rb") as file:
        assert file.read() == b"\0\1\2"


def test_no_backup_yet(tmp_path):
    assert packed(tmp_path / "none") == b""
    unpack(b"", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_compression_is_of_one_kind():
    with pytest.raises(ValueError, match="compress_gradients"):
        AccelStrategy("default", compress_gradients="float16")
    AccelStrategy("default", compress_gradients="bfloat16")  # nothing is sent
