"""Settings reach ONNX Runtime, change no answer, and never take more cores than there are."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.check import LabelledBatch
from rekd_edge.convert import OnnxArtefact
from rekd_edge.runners import OnnxRunner, RuntimeSettings, available_cores, resolve_threads
from rekd_edge.runtime_options import session_options

UNUSUAL = RuntimeSettings(
    threads=64,
    execution_mode="parallel",
    graph_optimization="basic",
    cpu_arena=False,
    memory_pattern=False,
    prepacking=False,
    spinning=False,
    dynamic_block_base=4,
)
KEYS = (
    "session.disable_prepacking",
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.force_spinning_stop",
)
ATTRIBUTES = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "execution_mode",
    "graph_optimization_level",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
)


def described(options: onnxruntime.SessionOptions, *more: str) -> dict[str, object]:
    values = {name: getattr(options, name) for name in ATTRIBUTES}
    return values | {key: options.get_session_config_entry(key) for key in (*KEYS, *more)}


def test_a_stored_thread_count_is_capped_by_quota_and_affinity(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    for resolve in (resolve_threads, load_runtime().resolve_threads):
        assert resolve(None, 64) == available_cores()
        assert resolve(None, 64, tmp_path) == 1
        assert resolve(None, 1) == 1
        assert resolve(3, 64) == 3  # as asked
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert resolve_threads(None, 64) == 1
        assert load_runtime().resolve_threads(None, 64) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_torch_free_runtime_reads_cgroup_v1_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert load_runtime().resolve_threads(None, None, tmp_path) == 1


def test_settings_become_session_options() -> None:
    default = described(session_options(onnxruntime, 4))
    assert default["intra_op_num_threads"] == 4
    assert default["inter_op_num_threads"] == 1
    assert default["graph_optimization_level"] == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert default["session.force_spinning_stop"] == "1"
    changed = described(
        session_options(onnxruntime, 4, UNUSUAL.model_dump()), "session.dynamic_block_base"
    )
    assert changed.pop("session.dynamic_block_base") == "4"
    assert all(changed[name] != default[name] for name in changed.keys() - {KEYS[3]})
    # Two pools share the threads: there are never more than were given.
    assert (changed["inter_op_num_threads"], changed["intra_op_num_threads"]) == (2, 2)
    alone = session_options(onnxruntime, 1, UNUSUAL.model_dump())
    assert alone.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert alone.intra_op_num_threads == 1


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("settings", [RuntimeSettings(), UNUSUAL])
def test_the_torch_free_runtime_sets_the_same_options(
    settings: RuntimeSettings, threads: int
) -> None:
    runtime = load_runtime()
    read = runtime.SessionSettings.of(settings.model_dump())
    more = ("session.dynamic_block_base",) if settings.dynamic_block_base else ()
    assert described(runtime.session_options(onnxruntime, threads, read), *more) == described(
        session_options(onnxruntime, threads, settings.model_dump()), *more
    )


@pytest.mark.parametrize(
    "document",
    [
        {"threads": 0},
        {"threads": "2"},
        {"execution_mode": "both"},
        {"graph_optimization": "layout"},
        {"cpu_arena": 1},
        {"dynamic_block_base": -1},
        {"dynamic_block_base": 65},
        {"colour": "red"},
    ],
)
def test_unknown_values_are_refused_alike(document: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        load_runtime().SessionSettings.of(document)
    with pytest.raises(ValidationError):
        RuntimeSettings.model_validate(document, strict=True)


def test_no_setting_changes_a_rationale_or_a_label(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    inputs = text_batches[0].inputs
    with OnnxRunner(tiny_text_onnx.path) as runner:
        default = runner.run(inputs)
    flags = ("cpu_arena", "memory_pattern", "prepacking")
    for level, values in itertools.product(
        ("extended", "basic", "disabled"), ((True, True, False), (False, False, True))
    ):
        settings = RuntimeSettings.model_validate(
            {"graph_optimization": level, **dict(zip(flags, values, strict=True))}
        )
        with OnnxRunner(tiny_text_onnx.path, settings=settings) as runner:
            answer = runner.run(inputs)
        np.testing.assert_array_equal(answer.rationale_mask, default.rationale_mask)
        np.testing.assert_allclose(answer.logits, default.logits, rtol=1e-5, atol=1e-6)


def test_a_runner_takes_the_settings_threads_unless_told_otherwise(
    tiny_text_onnx: OnnxArtefact,
) -> None:
    one = RuntimeSettings(threads=1)
    assert OnnxRunner(tiny_text_onnx.path, settings=one).threads == 1
    assert OnnxRunner(tiny_text_onnx.path, settings=UNUSUAL).threads == available_cores()
    assert OnnxRunner(tiny_text_onnx.path, settings=one, threads=3).threads == 3
    assert OnnxRunner(tiny_text_onnx.path).threads == available_cores()


def test_differences_name_what_is_not_the_default() -> None:
    assert RuntimeSettings().is_default
    assert RuntimeSettings(prepacking=False).differences() == {"prepacking": False}
