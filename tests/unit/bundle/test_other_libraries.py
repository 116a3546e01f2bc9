"""The files of a bundle that transformers reads: what they hold, and what it makes of them.

Equal tokens and pixels: ``tests/property/test_runtime_preprocessing.py``. That optimum opens the
model and answers the same: ``tests/optimum``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BitImageProcessorPil,
    PreTrainedTokenizerBase,
)

from rekd_edge.bundle import BundleConfig

if TYPE_CHECKING:
    from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
    from rekd_edge.fuse import FusedRationalist


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_config(folder: Path, model: FusedRationalist) -> None:
    config = BundleConfig.create(
        modality=model.modality,
        label_names=model.label_names,
        rationale_ratio=model.rationale_ratio,
        rationale_ratio_fraction=model.rationale_ratio_fraction,
        io_spec=model.io_spec(),
        opset=20,
        ir_version=10,
        image_size=model.image_size,
        patch_size=model.patch_size,
        max_length=model.max_length,
    )
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")


def test_transformers_finds_labels_and_tokenizer_of_a_text_bundle(
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> None:
    write_config(tmp_path, bundled_text_model)
    bundled_text_preprocessor.save(tmp_path)
    assert read(tmp_path / "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 48,
        "model_input_names": ["input_ids", "attention_mask"],  # no token_type_ids: no such input
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "bert"
    assert config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    encoded = tokenizer("good film " * 60, truncation=True)
    assert list(encoded) == ["input_ids", "attention_mask"]
    assert len(encoded["input_ids"]) == 48


def test_transformers_finds_labels_and_image_processor_of_an_image_bundle(
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    tmp_path: Path,
) -> None:
    write_config(tmp_path, bundled_image_model)
    deployed = bundled_image_preprocessor.deployed()
    deployed.save(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert read(tmp_path / "preprocessor_config.json") == {
        "modality": "image",
        "image_size": 64,
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "patch_size": None,
        "model_normalises": True,
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": False,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": mean,
        "image_std": std,
    }
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == "vit"
    assert config.id2label == {0: "cat", 1: "dog"}
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(processor, BitImageProcessorPil)
    pixels = np.random.default_rng(3).integers(0, 256, (100, 137, 3), dtype=np.uint8)
    found = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, deployed.encode([pixels])["pixel_values"])
