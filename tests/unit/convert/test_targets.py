"""Target files: shipped ones load, wrong ones say every problem with file and line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from rekd_edge.convert import load_target
from rekd_edge.convert.targets import targets_dir
from rekd_edge.errors import RecipeError, UsageError


def test_the_default_target_is_opset_20_ir_10_fp32() -> None:
    target = load_target("onnx")
    assert (target.opset, target.ir_version, target.precision) == (20, 10, "fp32")
    assert target.dynamic_batch
    assert target.dynamic_tokens


def test_every_shipped_target_loads_under_its_own_name() -> None:
    for path in targets_dir().glob("*.yaml"):
        assert load_target(path.stem).name == path.stem


def test_an_unknown_target_gets_a_guess_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"no target 'onxn' \(did you mean 'onnx'\?\)") as raised:
        load_target("onxn")
    assert "onnx" in str(raised.value.hint)


def test_a_missing_target_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml does not exist"):
        load_target("nowhere.yaml")


def test_all_problems_are_reported_with_line_and_guess(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "schema_version: 1\nname: mine\nruntime: onnxruntime\nopset: 99\nir_version: 10\n"
        "dynamic_bach: true\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_target(str(file))
    message = str(raised.value)
    assert f"{file}:4: opset" in message
    assert f"{file}:6: dynamic_bach: unknown key (did you mean 'dynamic_batch'?)" in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"name: [", "not valid YAML"),
        (b"name: a\nname: b\n", "given twice"),
        (b"name: !!python/object:os.system x\n", "tags are not allowed"),
        (b"\xff\xfe\x00", "not a UTF-8"),
        (b"", "empty"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=what):
        load_target(str(file))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("execution_provider: CPUExecutionProvider", "openvino has no execution_provider"),
        ("execution_provider: CPU\nprecision: int8-dynamic", "fp32 alone"),
        ("runtime: onnxruntime\nexecution_provider: CPU", "onnxruntime has no execution_provider"),
        ("runtime: onnxruntime\nprecision: fp16\nrecovery: {}", "recovery is for int8"),
        ("runtime: onnxruntime\nprecision: int8-dynamic\nrecovery: {epochs: 0}", "greater than 0"),
    ],
)
def test_a_target_names_what_its_runtime_has(tmp_path: Path, change: str, what: str) -> None:
    runtime = "" if "runtime" in change else "runtime: openvino\n"
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"schema_version: 1\nname: mine\n{runtime}{change}\nopset: 20\nir_version: 10\n"
    )
    with pytest.raises(RecipeError, match=what):
        load_target(str(file))


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("aoti", "backend: aoti, device: cpu", "backend: torch-trt, device: cpu", "device: cuda"),
        ("aoti", "precision: fp32", "precision: fp16", "compiled from the fp32 model"),
        ("aoti", "package:", "sizes: {batch: {min: 1, opt: 1, max: 1}}\npackage:", "sizes are for"),
        ("aoti", "CPUExecutionProvider", "CUDAExecutionProvider", "onnxruntime on the CPU"),
        ("ort-trt", "precision: fp32", "precision: fp16", "fp16 would be a flag"),
        ("ort-trt", "TensorrtExecutionProvider", "CUDAExecutionProvider", "sizes are for"),
        ("ort-trt", "max: 64}", "max: null}", "batch needs a max"),
    ],
)
def test_targets_for_gpus_and_packages_contradict_themselves_in_words(
    name: str, old: str, new: str, why: str, tmp_path: Path
) -> None:
    content = (targets_dir() / f"{name}.yaml").read_text()
    assert old in content
    file = tmp_path / "mine.yaml"
    file.write_text(content.replace(old, new))
    with pytest.raises(RecipeError, match=why):
        load_target(str(file))


@pytest.mark.parametrize("name", ["ort-cuda", "ort-cuda-fp16"])
def test_the_cuda_provider_knows_the_very_versions_of_its_operators(name: str) -> None:
    """Its kernels of these have no upper version, and then serve the one that they name alone."""
    kernels = {"Equal": 13, "Pad": 18, "ReduceMax": 18, "ReduceMean": 18}
    opset = load_target(name).opset
    found = {one: onnx.defs.get_schema(one, opset).since_version for one in kernels}
    assert found == kernels
