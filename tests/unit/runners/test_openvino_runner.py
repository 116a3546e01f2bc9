"""OpenVINO answers like torch and ONNX Runtime, in fp32, with the same rationale for ties too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from rekd_edge.check import LabelledBatch, numerical_exclusion
from rekd_edge.convert import OnnxArtefact, convert_to_onnx, load_target
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.fuse import FusedRationalist
from rekd_edge.runners import OpenVinoRunner, RunError, TorchRunner, available_cores
from rekd_edge.runners.settings import RuntimeSettings
from rekd_edge.selection import gather_slots, keep_top_k
from rekd_edge.types import IMAGE_INPUTS, OUTPUTS, TEXT_INPUTS, AxisSpec, IoSpec, TensorSpec


@pytest.mark.parametrize("kind", ["text", "image"])
def test_it_answers_like_torch(kind: str, request: pytest.FixtureRequest) -> None:
    model: FusedRationalist = request.getfixturevalue(f"tiny_{kind}")
    file: OnnxArtefact = request.getfixturevalue(f"tiny_{kind}_onnx")
    batches: list[LabelledBatch] = request.getfixturevalue(f"{kind}_batches")
    names = TEXT_INPUTS if kind == "text" else IMAGE_INPUTS
    with (
        OpenVinoRunner(file.path, threads=1) as runner,
        TorchRunner(model, names, threads=1) as reference,
    ):
        assert sorted(runner.input_names) == sorted(names)
        assert tuple(runner.output_names) == OUTPUTS
        assert runner.providers == ["CPU"]
        for batch in batches:
            have, want = runner.run(batch.inputs), reference.run(batch.inputs)
            for name in OUTPUTS:
                assert getattr(have, name).dtype == getattr(want, name).dtype
            np.testing.assert_array_equal(have.rationale_mask, want.rationale_mask)
            np.testing.assert_allclose(have.logits, want.logits, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(have.selection_margin, want.selection_margin, atol=1e-4)


class Selection(torch.nn.Module):
    """Nothing but the selection, of scores that are given."""

    def forward(
        self, score: torch.Tensor, selectable: torch.Tensor, budget: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keep = keep_top_k(score, selectable > 0, budget)
        return keep, gather_slots(keep, 4)[0]

    def example_inputs(self, batch: int, tokens: int = 16) -> tuple[torch.Tensor, ...]:
        selectable = torch.ones(batch, tokens, dtype=torch.int64)
        return torch.rand(batch, tokens), selectable, torch.full((batch,), 4)


def test_ties_go_to_the_lower_index(tmp_path: Path) -> None:
    def tensor(name: str, dtype: str, *axes: AxisSpec) -> TensorSpec:
        return TensorSpec(name, dtype, axes)  # type: ignore[arg-type]

    batch, token = AxisSpec("batch", None), AxisSpec("token", None)
    spec = IoSpec(
        inputs=(
            tensor("score", "float32", batch, token),
            tensor("selectable", "int64", batch, token),
            tensor("budget", "int64", batch),
        ),
        outputs=(
            tensor("keep", "bool", batch, token),
            tensor("index", "int64", batch, AxisSpec("slot", 4)),
        ),
    )
    path = tmp_path / "selection.onnx"
    model = Selection().eval()
    convert_to_onnx(_with_weights(model), spec, path, target=load_target("onnx"), metadata={})
    rng = np.random.default_rng(0)
    with OpenVinoRunner(path, threads=1) as runner:
        for trial in range(40):
            count = int(rng.integers(5, 60))
            score = rng.integers(0, 3, (3, count)).astype(np.float32) * (trial % 4 > 0)
            selectable = (rng.random((3, count)) < 0.8).astype(np.int64)
            selectable[:, :4] = 1
            inputs = {"score": score, "selectable": selectable, "budget": np.asarray([4, 2, 3])}
            found = runner.run_named(inputs, ("keep", "index"))
            keep, index = model(*map(torch.from_numpy, inputs.values()))
            np.testing.assert_array_equal(found["keep"], keep.numpy())
            np.testing.assert_array_equal(found["index"], index.numpy())


def _with_weights(model: Selection) -> Selection:
    """A file without any weight has no precision; this one takes no part in the answer."""
    forward = model.forward
    one = torch.nn.Parameter(torch.ones(1))
    model.register_parameter("one", one)
    model.forward = lambda score, selectable, budget: forward(score * one, selectable, budget)
    return model


def test_unselected_input_changes_no_bit(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    import onnx

    found = numerical_exclusion(
        onnx.load(str(tiny_text_onnx.path)),
        [batch.inputs for batch in text_batches],
        threads=1,
        provider="CPU",
        runtime="openvino",
    )
    assert found.changed_examples == 0
    assert found.max_change == 0.0
    assert found.mask_mismatches == 0
    assert found.control_changed > 0.5


def test_it_computes_in_fp32_on_the_threads_asked_for(tiny_text_onnx: OnnxArtefact) -> None:
    with OpenVinoRunner(tiny_text_onnx.path, threads=1) as runner:
        compiled = runner._compiled
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    stored = RuntimeSettings(threads=4096)
    assert OpenVinoRunner(tiny_text_onnx.path, settings=stored).threads == available_cores()


def test_another_precision_is_refused(
    tiny_text_onnx: OnnxArtefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rekd_edge.runners import openvino_runner

    usual = openvino_runner.compile_options
    other = (
        "bf16"
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        else "f16"
    )
    monkeypatch.setattr(
        openvino_runner,
        "compile_options",
        lambda threads: usual(threads) | {"INFERENCE_PRECISION_HINT": other},
    )
    with (
        pytest.raises(BackendError, match=r"asked OpenVINO for .*f32"),
        OpenVinoRunner(tiny_text_onnx.path, threads=1),
    ):
        pass


def test_what_it_cannot_do_is_said(tiny_text_onnx: OnnxArtefact, tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match="no device COFFEE"),
        OpenVinoRunner(tiny_text_onnx.path, provider="COFFEE"),
    ):
        pass
    broken = tmp_path / "m.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(BackendError, match="cannot load"), OpenVinoRunner(broken):
        pass
    runner = OpenVinoRunner(tiny_text_onnx.path, threads=1)
    with pytest.raises(UsageError, match="not open"):
        runner.run({})
    ids = np.ones((1, 9, 1), dtype=np.int64)
    with (
        runner,
        pytest.raises(RunError, match=r"openvino failed on .*input_ids \(1, 9, 1\): .* must be"),
    ):
        runner.run({"input_ids": ids, "attention_mask": ids})


def test_a_missing_package_is_named_with_its_remedy(tiny_text_onnx: OnnxArtefact) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from pathlib import Path\n"
        "from rekd_edge.errors import BackendError\n"
        "from rekd_edge.runners import OpenVinoRunner\n"
        "try:\n"
        f"    OpenVinoRunner(Path({str(tiny_text_onnx.path)!r}), threads=1).__enter__()\n"
        "except BackendError as error:\n"
        "    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("4 ")
    assert "pip install 'rekd-edge[openvino]'" in done.stdout
