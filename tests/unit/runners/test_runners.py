"""Runners answer alike, say what runs them, and refuse what they cannot do."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rekd_edge.check import LabelledBatch
from rekd_edge.convert import OnnxArtefact
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.fuse import FusedRationalist
from rekd_edge.runners import OnnxRunner, RunError, TorchRunner
from rekd_edge.types import OUTPUTS, TEXT_INPUTS


def test_both_answer_in_the_same_layout(
    tiny_text: FusedRationalist, tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    inputs = text_batches[0].inputs
    with (
        OnnxRunner(tiny_text_onnx.path, threads=1) as file,
        TorchRunner(tiny_text, TEXT_INPUTS, threads=1) as reference,
    ):
        have, want = file.run(inputs), reference.run(inputs)
        assert file.providers == ["CPUExecutionProvider"]
        assert tuple(file.output_names) == OUTPUTS
        assert sorted(file.input_names) == sorted(TEXT_INPUTS)
    for name in OUTPUTS:
        assert getattr(have, name).shape == getattr(want, name).shape
        assert getattr(have, name).dtype == getattr(want, name).dtype


def test_a_provider_that_is_not_there_is_refused_before_anything_runs(
    tiny_text_onnx: OnnxArtefact,
) -> None:
    runner = OnnxRunner(tiny_text_onnx.path, provider="ImaginaryExecutionProvider")
    with pytest.raises(BackendError, match="has no ImaginaryExecutionProvider"), runner:
        pass


def test_shapes_are_named_when_a_run_fails(tiny_text_onnx: OnnxArtefact) -> None:
    ids = np.ones((1, 900), dtype=np.int64)  # longer than the position embeddings
    with (
        OnnxRunner(tiny_text_onnx.path, threads=1) as runner,
        pytest.raises(RunError, match=r"input_ids \(1, 900\)"),
    ):
        runner.run({"input_ids": ids, "attention_mask": ids})


def test_missing_inputs_and_closed_runners_are_usage_errors(tiny_text_onnx: OnnxArtefact) -> None:
    runner = OnnxRunner(tiny_text_onnx.path, threads=1)
    with pytest.raises(UsageError, match="not open"):
        runner.run({})
    with runner, pytest.raises(UsageError, match="inputs missing: attention_mask"):
        runner.run({"input_ids": np.ones((1, 3), dtype=np.int64)})


def test_a_file_that_does_not_load_is_a_backend_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(BackendError, match="cannot load"), OnnxRunner(path):
        pass


def test_the_torch_runner_sets_threads_back_and_refuses_training_mode(
    tiny_text: FusedRationalist,
) -> None:
    before = torch.get_num_threads()
    with TorchRunner(tiny_text, TEXT_INPUTS, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    training = copy.deepcopy(tiny_text).train()
    with (
        pytest.raises(UsageError, match="training mode"),
        TorchRunner(training, TEXT_INPUTS),
    ):
        pass


def test_importing_the_runners_imports_no_runtime() -> None:
    code = (
        "import sys, rekd_edge.runners, rekd_edge.bench; "
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "onnx" not in done.stdout
