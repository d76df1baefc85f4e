"""What doctor says of the CPU, memory, disks, threads and control groups."""

import dataclasses

import pytest
from machines import GIB, NOTE, OK, WARNING, assert_finding, only, write

from tfaccel.cli.doctor._machine import (
    check_cpu,
    check_disk,
    check_load,
    check_memory,
    check_threads,
)
from tfaccel.cli.doctor._surroundings import Surroundings
from tfaccel.system.cgroup import cpu_quota_cores, memory_limit_bytes


def test_a_cpu(surroundings):
    found = only(check_cpu(surroundings()))
    assert_finding(found, OK, "Some Chip 9000: avx2, fma, avx512f, avx512_bf16")


def test_an_old_cpu(surroundings):
    here = surroundings({"proc/cpuinfo": "model name : Old\nflags : fpu fma\n"})
    assert_finding(only(check_cpu(here)), WARNING, "Old has no AVX2 (fma)")


def test_an_arm_cpu(surroundings):
    here = surroundings({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd bf16\n"})
    assert_finding(only(check_cpu(here)), OK, "asimd, bf16")


def test_a_cpu_that_tells_nothing(surroundings, tmp_path):
    here = surroundings()
    (tmp_path / "proc" / "cpuinfo").unlink()
    assert_finding(only(check_cpu(here)), NOTE, "can't be read")


def test_memory(surroundings):
    assert_finding(only(check_memory(surroundings())), OK, "16.0 GiB", "8.00 GiB of it free")


def test_memory_that_is_short(surroundings):
    here = surroundings({"proc/meminfo": "MemTotal:  16777216 kB\nMemAvailable:  1000000 kB\n"})
    assert_finding(only(check_memory(here)), WARNING, "977 MiB of it free")


def test_memory_that_a_container_limits(surroundings):
    group = {"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/memory.max": f"{GIB // 2}\n"}
    group["sys/fs/cgroup/pod/memory.current"] = f"{GIB // 4}\n"
    found = only(check_memory(surroundings(group)))
    assert_finding(found, WARNING, "this process may take 512 MiB")


def test_memory_where_there_is_no_listing(surroundings, tmp_path):
    here = surroundings()
    (tmp_path / "proc" / "meminfo").unlink()
    assert_finding(only(check_memory(here)), OK, "of memory")


def test_disks(surroundings):
    findings = list(check_disk(surroundings()))
    assert [finding.level for finding in findings] == [OK, OK]
    full = dataclasses.replace(surroundings(), free_bytes=lambda path: GIB // 10)
    for found in check_disk(full):
        assert_finding(found, WARNING, "102 MiB free", "Make room")


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    here = Surroundings(cache_directory=tmp_path / "not" / "yet", working_directory=tmp_path)
    cache = list(check_disk(here))[1]
    assert str(tmp_path / "not" / "yet") in cache.found


# Threads and control groups.


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # A limit above holds below.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
            },
            1.0,
        ),
        # The path is the host's, and only the top is mounted.
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/pod\n0::/\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "\n"}, None),
    ],
    ids=["none", "max", "version 2", "above", "container", "version 1", "nonsense"],
)
def test_the_quota_of_a_control_group(tmp_path, files, cores):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert cpu_quota_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1024\n"}, 1024),
        (
            {
                "proc/self/cgroup": "4:memory:/pod\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "2048\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2048,
        ),
    ],
    ids=["none", "max", "version 2", "version 1"],
)
def test_the_memory_of_a_control_group(tmp_path, files, limit):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert memory_limit_bytes(tmp_path) == limit


QUOTA = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}


@pytest.mark.parametrize(
    ("files", "environ", "threads", "level", "words"),
    [
        ({}, {}, (0, 0), OK, "4 threads within an op; this process may use 4 cores"),
        ({}, {}, (4, 2), OK, "4 threads within an op, 2 ops at once"),
        ({}, {}, (2, 0), NOTE, "some stay idle"),
        ({}, {"TF_NUM_INTRAOP_THREADS": "1"}, (0, 0), NOTE, "1 threads"),
        # What a program sets wins over the environment; nonsense is ignored.
        ({}, {"TF_NUM_INTRAOP_THREADS": "1"}, (4, 0), OK, "4 threads"),
        ({}, {"TF_NUM_INTRAOP_THREADS": "all"}, (0, 0), OK, "4 threads"),
        ({}, {}, (16, 0), WARNING, "TF_NUM_INTRAOP_THREADS=4"),
        (QUOTA, {}, (0, 0), WARNING, "TF_NUM_INTRAOP_THREADS=2"),
        (QUOTA, {}, (2, 0), OK, "the time of 1.5"),
    ],
)
def test_threads(surroundings, files, environ, threads, level, words):
    here = surroundings(files, environ, threads=threads)
    assert_finding(only(check_threads(here)), level, words)


def test_openmp_s_threads(surroundings):
    _, found = check_threads(surroundings(environ={"OMP_NUM_THREADS": "1"}))
    assert_finding(found, NOTE, "OMP_NUM_THREADS=1", "TF_NUM_INTRAOP_THREADS")


@pytest.mark.parametrize(("load", "level"), [(0.0, OK), (9.0, OK), (9.1, WARNING)])
def test_a_busy_machine(surroundings, load, level):
    here = dataclasses.replace(surroundings(), load=lambda: load)
    assert_finding(only(check_load(here)), level, f"{load} threads wanted", "on 8 cores")


def test_a_machine_that_does_not_tell_its_load(surroundings):
    here = dataclasses.replace(surroundings(), load=lambda: None)
    assert list(check_load(here)) == []
