"""The memory that is free is the machine's, or less where a cgroup says so."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import psutil
import pytest

from rekd_edge.machine import free_memory_bytes, imported_onnxruntime, onnxruntime_of

V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def limit(group: Path, names: tuple[str, str, str], most: str, used: int, cached: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / names[0]).write_text(f"{most}\n")
    (group / names[1]).write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\nshmem 0\n")


@pytest.mark.parametrize(
    ("line", "place", "names"),
    [("0::/job/step", "", V2), ("4:cpu,memory:/job/step", "memory", V1)],
)
def test_the_least_that_a_group_or_one_above_it_leaves(
    line: str, place: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(f"7:pids:/elsewhere\n{line}\n")
    job = root / place / "job"
    limit(job, names, "5000", 3000, 400)
    limit(job / "step", names, "9000", 100, 0)
    assert free_memory_bytes(root, own) == 2400
    limit(job / "step", names, "1000", 2000, 0)
    assert free_memory_bytes(root, own) == 0
    limit(root / "elsewhere", V2, "1", 0, 0)  # another's
    limit(job / "step", names, "800", 100, 0)
    assert free_memory_bytes(root, own) == 700


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    limit(tmp_path, V2, "max", 10, 0)
    for groups in (own, tmp_path / "none"):
        found = free_memory_bytes(tmp_path, groups)
        assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_the_onnxruntime_that_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two distributions bring the module, and one of them is imported."""
    here = imported_onnxruntime()
    assert here is not None
    assert here["version"] == onnxruntime.__version__
    own = here.get("distribution", "onnxruntime")
    other = "onnxruntime" if own == "onnxruntime-gpu" else "onnxruntime-gpu"
    site = tmp_path / "site"
    record = site / f"{other.replace('-', '_')}-1.2.3.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(site)
    assert imported_onnxruntime() == here  # visible, and not what was imported
    (site / "onnxruntime").mkdir()
    monkeypatch.setattr(onnxruntime, "__file__", str(site / "onnxruntime" / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "__version__", "1.2.3")
    assert imported_onnxruntime() == {"version": "1.2.3", "distribution": other}
    monkeypatch.setattr(onnxruntime, "__version__", "1.2.4")
    assert imported_onnxruntime() == {"version": "1.2.4"}
    assert onnxruntime_of({"onnxruntime": {"version": "1.2.4"}}) == "onnxruntime 1.2.4"
    assert onnxruntime_of({"versions": {"onnxruntime": "1.30.0"}}) == "onnxruntime 1.30.0"
