"""What can be seen of GPU providers without a GPU: options, placement, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch

from rekd_edge.convert import OnnxArtefact, load_target
from rekd_edge.engines.spec import Profile
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.export_pipeline import profile_metadata
from rekd_edge.fuse import FusedRationalist
from rekd_edge.runners import CudaRunner, TensorRtProviderRunner, file_runner
from rekd_edge.runners.gpu_runner import (
    PROFILE_KEY,
    _libraries,
    cache_place,
    dynamic_inputs,
    profile_options,
    require_provider,
)
from rekd_edge.runners.placement import (
    RECORD_KEY,
    PlacedNode,
    Placement,
    own_nodes,
    placement_of,
    shape_nodes,
)
from rekd_edge.runtime_options import (
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    preload_libraries,
    provider_chain,
)

CPU = "CPUExecutionProvider"


def test_each_provider_has_its_runner(tiny_text_onnx: OnnxArtefact) -> None:
    kinds = {
        provider: type(file_runner(tiny_text_onnx.path, provider=provider)).__name__
        for provider in (CPU, CUDA_PROVIDER, TENSORRT_PROVIDER)
    }
    assert kinds == {
        CPU: "OnnxRunner",
        CUDA_PROVIDER: "CudaRunner",
        TENSORRT_PROVIDER: "TensorRtProviderRunner",
    }


def test_precision_is_never_a_flag_and_tensorrt_falls_back_on_cuda_alone() -> None:
    assert provider_chain(CPU) == [(CPU, {})]
    (first, tensorrt), (second, cuda) = provider_chain(TENSORRT_PROVIDER, {"trt_x": "1"})
    assert (first, second) == (TENSORRT_PROVIDER, CUDA_PROVIDER)
    assert cuda["use_tf32"] == "0"
    flags = {name: value for name, value in tensorrt.items() if name.endswith("_enable")}
    off = dict.fromkeys(("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"), "False")
    assert flags == off  # "0" is refused
    assert tensorrt["trt_x"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_or_the_package_there_is_one_message(tiny_text_onnx: OnnxArtefact) -> None:
    require_provider(CPU)
    kinds: dict[str, type[CudaRunner]] = {
        CUDA_PROVIDER: CudaRunner,
        TENSORRT_PROVIDER: TensorRtProviderRunner,
    }
    for provider, kind in kinds.items():
        runner = kind(tiny_text_onnx.path, provider=provider, threads=1)
        with pytest.raises(BackendError) as raised, runner:
            pass
        assert raised.value.exit_code == 4
        assert "\n" not in raised.value.message
        assert ("onnxruntime-gpu" in str(raised.value)) or "--target onnx" in str(raised.value)
        with pytest.raises(BackendError):
            require_provider(provider)


def test_only_shapes_may_be_computed_on_the_cpu(
    tiny_text_onnx: OnnxArtefact, tiny_image_onnx: OnnxArtefact
) -> None:
    for artefact in (tiny_text_onnx, tiny_image_onnx):
        options = ort.SessionOptions()
        options.add_session_config_entry(RECORD_KEY, "1")
        session = ort.InferenceSession(str(artefact.path), options, providers=[CPU])
        model = onnx.load(str(artefact.path))
        here = placement_of(session, CPU)
        assert len(here.nodes) > 20
        assert {node.provider for node in here.nodes} == {CPU}
        shapes, own = shape_nodes(model), own_nodes(model)
        computing = {node.op_type for node in model.graph.node if node.name not in shapes}
        assert {"MatMul", "Softmax"} <= computing
        assert "Shape" not in computing
        # Had this session been asked for CUDA, all of it but the shapes would be misplaced.
        asked = Placement(CUDA_PROVIDER, here.nodes)
        wrong = asked.misplaced(shapes, own)
        operators = {node.operator for node in wrong}
        assert operators & {"MatMul", "Gemm", "FusedMatMul"}
        assert "Softmax" in operators
        assert not {node.name for node in wrong} & shapes
        with pytest.raises(BackendError, match=r"\((MatMul|Gemm)\) on CPU.* and \d+ more"):
            asked.require(shapes, own)
        moved = tuple(
            node if node.name in shapes else PlacedNode(node.name, node.operator, CUDA_PROVIDER)
            for node in here.nodes
        )
        found = Placement(CUDA_PROVIDER, moved)
        found.require(shapes, own)
        assert found.to_json()["products"].keys() == {CUDA_PROVIDER}
        assert len(found.to_json()["on_cpu"]) == found.to_json()["nodes"].get(CPU, 0)


def test_products_must_be_where_they_were_asked_for() -> None:
    nodes = (
        PlacedNode("a", "MatMul", TENSORRT_PROVIDER),
        PlacedNode("b", "MatMul", CUDA_PROVIDER),
        PlacedNode("c", "TopK", CUDA_PROVIDER),
        PlacedNode("made by onnxruntime", "Cast", CPU),
        PlacedNode("made by onnxruntime too", "Softmax", CPU),
    )
    wrong = Placement(TENSORRT_PROVIDER, nodes).misplaced((), ("a", "b", "c"))
    assert [node.name for node in wrong] == ["b", "made by onnxruntime too"]


def test_the_sizes_of_a_target_reach_tensorrt_through_the_file(tiny_text: FusedRationalist) -> None:
    assert profile_metadata(tiny_text, load_target("ort-cuda")) == {}
    assert profile_metadata(tiny_text, load_target("torch-trt")) == {}
    stated = profile_metadata(tiny_text, load_target("ort-trt"))
    assert {f"rekd_edge.{name}" for name in stated} == {PROFILE_KEY}
    options = profile_options(stated["profiles"], ["input_ids", "attention_mask"])
    assert options == {
        "trt_profile_min_shapes": "attention_mask:1x3,input_ids:1x3",
        "trt_profile_opt_shapes": "attention_mask:8x48,input_ids:8x48",
        "trt_profile_max_shapes": "attention_mask:64x48,input_ids:64x48",
    }
    assert profile_options(stated["profiles"], ["input_ids", "rationale_index"]) == {}
    assert profile_options("{}", ["input_ids"]) == {}
    for broken in ("[", "3", '{"input_ids": {"min": ["x"]}}'):
        with pytest.raises(UsageError, match="says no shapes"):
            profile_options(broken, ["input_ids"])


def test_dynamic_inputs_are_named(
    tiny_text_onnx: OnnxArtefact, tiny_image_onnx: OnnxArtefact
) -> None:
    assert sorted(dynamic_inputs(onnx.load(str(tiny_text_onnx.path)))) == [
        "attention_mask",
        "input_ids",
    ]
    assert dynamic_inputs(onnx.load(str(tiny_image_onnx.path))) == ["pixel_values"]


def test_engines_of_another_gpu_driver_version_or_file_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    base: dict[str, Any] = {
        "onnx_sha256": "0",
        "compute_capability": 86,
        "driver": "580.1",
        "onnxruntime": "1.31.1",
        "tensorrt": "11.0",
        "profiles": Profile(min=(1,), opt=(1,), max=(1,)).model_dump(),
    }
    places = {cache_place(base), cache_place(dict(reversed(base.items())))}
    assert len(places) == 1
    for name in base:
        places.add(cache_place(base | {name: 87}))
    assert len(places) == len(base) + 1
    for place in places:
        assert json.loads((place / "made-of.json").read_text())["compute_capability"] in {86, 87}


def test_libraries_are_looked_for_where_torch_and_the_module_path_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preload_libraries(ort, CPU) == ""

    class Fussy:
        """Says what it misses until a folder of torch's libraries was named."""

        def __init__(self) -> None:
            self.folders: list[str] = []

        def preload_dlls(self, directory: str | None = None) -> None:
            if directory is not None:
                self.folders.append(directory)
            elif not self.folders:
                print("Failed to load libcublas.so.13")

    fussy = Fussy()
    said = preload_libraries(fussy, CUDA_PROVIDER)
    assert all(Path(folder).name == "lib" for folder in fussy.folders)
    assert bool(said) == (not fussy.folders)
    # As packed wheels are unpacked: neither beside torch nor beside onnxruntime.
    packed = tmp_path / "site" / "nvidia" / "cu13" / "lib"
    packed.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert preload_libraries(fussy, CUDA_PROVIDER) == ""
    assert str(packed) not in fussy.folders  # nothing is missed any more
    fussy.folders.clear()
    assert preload_libraries(fussy, CUDA_PROVIDER) == ""
    assert str(packed) in fussy.folders


def test_a_provider_of_another_cuda_says_which_it_needs() -> None:
    said = "Failed to load libcurand.so.10: libcurand.so.10: cannot open\nand more"
    hint = _libraries(SimpleNamespace(cuda_version="13.0"), said)
    assert "is built for CUDA 13.0 and needs those libraries, cuDNN 9 and a driver" in hint
    assert "could not load: Failed to load libcurand.so.10" in hint
    assert "pip install nvidia-curand" in hint
    assert "\n" not in hint
    assert "could not load" not in _libraries(SimpleNamespace(), "")
