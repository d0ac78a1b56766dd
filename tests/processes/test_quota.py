import os
from pathlib import Path

import pytest

from gateway.processes.quota import processors, quota_of, worker_count


def write(path: Path, text: str) -> None:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("max 100000\n", None, id="no-quota"),
        pytest.param("150000 100000\n", 1.5, id="one-and-a-half"),
        pytest.param("50000 100000\n", 0.5, id="half"),
        pytest.param("", None, id="empty"),
        pytest.param("0 100000\n", None, id="zero"),
        pytest.param("100000 0\n", None, id="no-period"),
        pytest.param("rubbish\n", None, id="rubbish"),
    ],
)
def test_quota_of_version_2(tmp_path: Path, text: str, expected: float | None) -> None:
    """`cpu.max` holds microseconds of processor in a period, or `max`."""
    write(tmp_path / "pod" / "box" / "cpu.max", text)

    assert quota_of(tmp_path, "0::/pod/box\n") == expected


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    """A group has no more than those it lies in."""
    write(tmp_path / "cpu.max", "max 100000")
    write(tmp_path / "pod" / "cpu.max", "200000 100000")
    write(tmp_path / "pod" / "box" / "cpu.max", "400000 100000")

    assert quota_of(tmp_path, "0::/pod/box\n") == 2.0


def test_quota_of_version_1(tmp_path: Path) -> None:
    """Where controllers are apart, the one named `cpu` holds two files; -1 is no quota."""
    membership = "4:memory:/box\n3:cpu,cpuacct:/box\n"
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", "-1")
    write(tmp_path / "cpu" / "cpu.cfs_period_us", "100000")
    write(tmp_path / "cpu" / "box" / "cpu.cfs_quota_us", "300000")
    write(tmp_path / "cpu" / "box" / "cpu.cfs_period_us", "100000")

    assert quota_of(tmp_path, membership) == 3.0


def test_a_container_sees_its_own_quota_at_the_mount(tmp_path: Path) -> None:
    """In a container the path may name groups of the host, which are not there."""
    write(tmp_path / "cpu.max", "100000 100000")

    assert quota_of(tmp_path, "0::/kubepods/burstable/pod1\n") == 1.0


def test_there_is_always_one(tmp_path: Path) -> None:
    """Half a processor is one worker, and nothing to read is what affinity allows."""
    own = tmp_path / "membership"
    own.write_text("0::/\n")
    assert processors(tmp_path, own) == len(os.sched_getaffinity(0))

    write(tmp_path / "cpu.max", "50000 100000")
    assert processors(tmp_path, own) == 1
    assert processors(tmp_path, tmp_path / "absent") == len(os.sched_getaffinity(0))


def test_a_number_is_taken_as_it_is() -> None:
    """Who says how many gets so many."""
    assert (worker_count(0), worker_count(7)) == (0, 7)
    assert worker_count("auto") >= 1
