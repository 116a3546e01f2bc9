"""Cores come from the affinity mask and the cgroup, not from the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekd_edge.errors import UsageError
from rekd_edge.runners import available_cores, resolve_threads
from rekd_edge.runners.threads import cpu_quota


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("nonsense\n", None),
    ],
)
def test_cgroup_v2(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota_us", "quota"), [("-1", None), ("200000", 2.0), ("50000", 0.5)])
def test_cgroup_v1(tmp_path: Path, quota_us: str, quota: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota_us)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(tmp_path) == quota


def test_no_cgroup_means_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_a_quota_below_one_core_still_gives_one_thread(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("20000 100000")
    assert available_cores(tmp_path) == 1


def test_threads_as_asked_or_all_available() -> None:
    assert resolve_threads(3) == 3
    assert resolve_threads(None) == available_cores()
    with pytest.raises(UsageError, match="at least 1"):
        resolve_threads(0)
