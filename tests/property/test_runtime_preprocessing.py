"""What the torch-free runtime feeds a model is what training and transformers feed it: text to the
last bit, images bit for bit as in training and as Pillow resizes them in transformers and
torchvision. torchvision's resize of tensors rounds otherwise, by up to two of 255 levels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.data import load_data
from rekd_edge.data.images import rgb_from_bytes
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.recipe import find_recipe, load_recipe

runtime = load_runtime()

ODD = st.sampled_from(
    [
        *("\u200d", "\u0301", "\ufe0f", "\u202e", "\ufeff", "\xad", "\x00", "\ufffd", "\u3000"),
        *(
            "🏳️‍🌈",
            "👩🏽‍⚕️",
            "é",
            "e\u0301",
            "İ",
            "ß",
            "ﬁ",
            "漢字",
            "नमस्ते",
            "العربية",
            "[SEP]",
            "##ing",
        ),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.one_of(ODD, st.text(max_size=8)), max_size=40).map("".join),
    st.text(st.characters(max_codepoint=127), min_size=300, max_size=2000),
)


@pytest.fixture(scope="module")
def encoder(text_bundle: Path, bundled_text_preprocessor: TextPreprocessor) -> Any:
    return runtime.TextEncoder(text_bundle, bundled_text_preprocessor.max_length)


@pytest.fixture(scope="module")
def transformers_tokenizer(text_bundle: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(text_bundle)


def require_equal(text: str, encoder: Any, preprocessor: TextPreprocessor, tokenizer: Any) -> int:
    """The number of tokens; 0 where the runtime refuses the text for having none."""
    theirs = tokenizer(
        text, truncation=True, max_length=preprocessor.max_length, return_tensors="pt"
    )
    try:
        mine = encoder.encode(text, "input 1")
    except runtime.InputError:
        assert theirs["input_ids"].shape[1] == 2  # [CLS] [SEP]
        return 0
    trained_on = preprocessor.encode([text])
    for name in ("input_ids", "attention_mask"):
        found = getattr(mine, name)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, trained_on[name])
        np.testing.assert_array_equal(found, theirs[name].numpy())
    return found.shape[1]


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_any_text_becomes_the_same_tokens(
    text: str,
    encoder: Any,
    bundled_text_preprocessor: TextPreprocessor,
    transformers_tokenizer: Any,
) -> None:
    require_equal(text, encoder, bundled_text_preprocessor, transformers_tokenizer)


def test_a_thousand_real_texts_become_the_same_tokens(
    encoder: Any, bundled_text_preprocessor: TextPreprocessor, transformers_tokenizer: Any
) -> None:
    limit = "data.limit={train: 2, dev: 2, test: 1000}"
    test = load_data(load_recipe(find_recipe("smoke/text"), [limit])).test
    texts = [str(test.raw(position)) for position in range(len(test))]
    assert len(texts) == 1000
    lengths = [
        require_equal(text, encoder, bundled_text_preprocessor, transformers_tokenizer)
        for text in texts
    ]
    assert min(lengths) > 2
    assert max(lengths) == bundled_text_preprocessor.max_length


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """The bytes of an image file of some kind, turned somehow."""
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rough = generator.integers(0, 256, size=(height, width, 4), dtype=np.uint8)
    image = Image.fromarray(rough)
    kind = draw(st.sampled_from(["RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16", "16-TIFF"]))
    form = {"CMYK": "JPEG", "16-TIFF": "TIFF"}.get(kind, "PNG")
    if kind in ("I;16", "16-TIFF"):
        image = Image.fromarray(rough[:, :, 0].astype(np.uint16) * 257)
    elif kind in ("LA", "RGBA"):
        image = image.convert(kind)
    elif kind == "P":
        image = image.convert("RGB").quantize(16)
    else:
        image = image.convert("RGB").convert(kind)
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(1, 8))
    stream = io.BytesIO()
    image.save(stream, form, **({} if form == "TIFF" else {"exif": exif}))
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(content=pictures())
def test_any_kind_of_image_becomes_the_same_pixels(
    content: bytes,
    image_bundle: Path,
    bundled_image_preprocessor: ImagePreprocessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(content)
    config = runtime.read_config(image_bundle)
    upright = rgb_from_bytes(content, "picture")
    expected = bundled_image_preprocessor.encode([upright])["pixel_values"]
    image = runtime.read_image(path)
    found, view = runtime.encode_image(image, config)
    np.testing.assert_array_equal(found, expected)
    assert (view.height, view.width) == upright.shape[:2]
    opened = Image.open(io.BytesIO(content))
    again, _ = runtime.encode_image(runtime.upright_rgb(opened, "picture"), config)
    np.testing.assert_array_equal(again, expected)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Real CIFAR-10 images, uint8 ``[32, 32, 3]``."""
    limit = "data.limit={train: 10, dev: 10, test: 200}"
    test = load_data(load_recipe(find_recipe("smoke/image"), [limit])).test
    return [np.asarray(test.raw(position)) for position in range(len(test))]


def test_real_images_are_those_of_transformers_and_torchvision(
    photographs: list[np.ndarray], image_bundle: Path
) -> None:
    import torch
    from torchvision.transforms.v2 import functional
    from transformers import AutoImageProcessor

    config = runtime.read_config(image_bundle)
    by_pillow, by_tensor = (
        AutoImageProcessor.from_pretrained(image_bundle, backend=backend)
        for backend in ("pil", "torchvision")
    )
    scale = np.asarray(config.std)[:, None, None]
    shift = np.asarray(config.mean)[:, None, None]
    for number, photograph in enumerate(photographs):
        # Wide, tall and square cuts of each size around the model's.
        height, width = 32 - number % 7, 32 - number % 11
        image = Image.fromarray(photograph[:height, :width]).resize((width * 3, height * 3))
        found, view = runtime.encode_image(image, config)
        levels = (found[0] * scale + shift) * 255
        for processor, most in ((by_pillow, 0.001), (by_tensor, 2.001)):
            theirs = processor(image, return_tensors="pt")["pixel_values"][0].numpy()
            assert np.abs((theirs * scale + shift) * 255 - levels).max() <= most
        resized: Any = functional.resize(
            cast(Any, image),
            [view.resized_height, view.resized_width],
            functional.InterpolationMode.BICUBIC,
        )
        cut = functional.crop(resized, view.top, view.left, view.size, view.size)
        by_torch = functional.normalize(
            functional.to_dtype(functional.to_image(cut), torch.float32, scale=True),
            list(config.mean),
            list(config.std),
        ).numpy()
        np.testing.assert_allclose(found[0], by_torch, atol=1e-6)
