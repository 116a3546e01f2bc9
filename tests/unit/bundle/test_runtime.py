"""The shipped runtime: the preprocessing of the package, the answers of torch, and one clear
message for everything that it cannot read."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from rekd_edge.bundle import BundleManifest
from rekd_edge.bundle.runtime import load_runtime, runtime_path
from rekd_edge.data import load_data
from rekd_edge.data.images import rgb_from_file
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.fuse import FusedRationalist
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.report.examples import visible as report_visible
from rekd_edge.runners.threads import available_cores

runtime = load_runtime()

HARD_TEXTS = (
    "It's un-be-lievably  good!!",
    "naïve café, Größe, ŒUVRE",
    "電影很好看 very nice",
    "🎬🍿 family 👨‍👩‍👧 emoji",
    "combi\u0301ning\u0301 marks and \u200bzero\u200b width",
    "tabs\tand\nnew lines\r\nand\xa0no-break",
    "[CLS] [SEP] [PAD] spelled out",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 500,
    "x \x1b[31mred\x1b[0m \x07bell",
    "word " * 200,
)


@pytest.fixture(scope="module")
def text_rationalist(text_bundle: Path) -> Any:
    return runtime.Rationalist.load(text_bundle, threads=1)


@pytest.fixture(scope="module")
def image_rationalist(image_bundle: Path) -> Any:
    return runtime.Rationalist.load(image_bundle, threads=1)


@pytest.fixture(scope="module")
def reviews() -> list[str]:
    """Real movie-review snippets."""
    test = load_data(
        load_recipe(find_recipe("smoke/text"), ["data.limit={train: 2, dev: 2, test: 400}"])
    ).test
    return [str(test.raw(position)) for position in range(len(test))]


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Real CIFAR-10 images, uint8 ``[32, 32, 3]``."""
    test = load_data(
        load_recipe(find_recipe("smoke/image"), ["data.limit={train: 10, dev: 10, test: 40}"])
    ).test
    return [np.asarray(test.raw(position)) for position in range(len(test))]


def command(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings.pop("environment", {})}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        **settings,
    )


def fails(model: Any, item: object, message: str) -> None:
    """One line, exit code 2."""
    with pytest.raises(runtime.InputError) as caught:
        model.predict([item])
    assert caught.value.exit_code == 2
    assert message in caught.value.message
    assert "\n" not in caught.value.message


# --- equal preprocessing ---


def test_text_ids_and_offsets_are_those_of_the_package(
    text_bundle: Path, bundled_text_preprocessor: TextPreprocessor, reviews: list[str]
) -> None:
    encoder = runtime.TextEncoder(text_bundle, bundled_text_preprocessor.max_length)
    assert len(reviews) == 400
    for text in (*reviews, *HARD_TEXTS):
        encoded = encoder.encode(text, "input 1")
        expected = bundled_text_preprocessor.encode([text])
        for name, array in expected.items():
            found = getattr(encoded, name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array, err_msg=text)
        offsets = bundled_text_preprocessor.offsets(text)
        is_word = [word is not None for word in encoded.words]
        assert [pair for pair, word in zip(encoded.offsets, is_word, strict=True) if word] == [
            pair for pair in offsets if pair != (0, 0)
        ]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_real_images_become_identical_pixels(
    photographs: list[np.ndarray], image_bundle: Path, tmp_path: Path, interpolation: Any
) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessor = ImagePreprocessor(56, mean, std, interpolation)
    preprocessor.save(tmp_path)
    shutil.copy(image_bundle / "config.json", tmp_path)
    config = runtime.read_config(tmp_path)
    for photograph in photographs:
        for array in (photograph, photograph[4:20], photograph[:, 7:20], photograph[:1, :1]):
            pixels, view = runtime.encode_image(Image.fromarray(array), config)
            np.testing.assert_array_equal(pixels, preprocessor.encode([array])["pixel_values"])
            assert (view.width, view.height) == (array.shape[1], array.shape[0])


def image_files(folder: Path, photograph: np.ndarray) -> dict[str, Path]:
    """The photograph in every kind of file that the issue names."""
    rgb = Image.fromarray(photograph).resize((60, 40))
    alpha = Image.linear_gradient("L").resize(rgb.size)
    translucent = rgb.copy()
    translucent.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (np.asarray(rgb.convert("L")).astype(np.uint16) << 8) + 129
    palette = rgb.quantize(16)
    made: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "plain": ("png", rgb, {}),
        "grey": ("png", rgb.convert("L"), {}),
        "bilevel": ("png", rgb.convert("1"), {}),
        "cmyk": ("jpg", rgb.convert("CMYK"), {}),
        "alpha": ("png", translucent, {}),
        "grey_alpha": ("png", translucent.convert("LA"), {}),
        "palette": ("png", palette, {"transparency": 3}),
        "gif": ("gif", palette, {}),
        "deep": ("png", Image.fromarray(deep), {}),
        "deep_tiff": ("tiff", Image.fromarray(deep), {}),
        "rotated": ("jpg", rgb, {"exif": exif}),
        "one_pixel": ("png", rgb.resize((1, 1)), {}),
        "thin": ("png", rgb.resize((300, 1)), {}),
    }
    files = {}
    for name, (suffix, image, settings) in made.items():
        files[name] = folder / f"{name}.{suffix}"
        image.save(files[name], **settings)
    return files


def test_every_kind_of_image_file_is_read_as_the_package_reads_it(
    photographs: list[np.ndarray], image_rationalist: Any, tmp_path: Path
) -> None:
    for name, path in image_files(tmp_path, photographs[0]).items():
        image = runtime.read_image(path)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), rgb_from_file(path), err_msg=name)
        prediction = image_rationalist.predict([path])[0]
        assert prediction.kept == 4, name
        assert (prediction.width, prediction.height) == image.size
    assert runtime.read_image(tmp_path / "rotated.jpg").size == (40, 60)


# --- equal answers ---


def test_text_answers_are_those_of_the_torch_model(
    text_rationalist: Any,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    reviews: list[str],
) -> None:
    texts = [*reviews[:100], *HARD_TEXTS]
    for text, prediction in zip(texts, text_rationalist.predict(texts), strict=True):
        inputs = bundled_text_preprocessor.encode([text])
        with torch.no_grad():
            logits, kept, _, margin = bundled_text_model(*map(torch.from_numpy, inputs.values()))[
                :4
            ]
        assert prediction.label == bundled_text_model.label_names[int(logits.argmax())]
        tokens = sorted(token for span in prediction.rationale for token in span.tokens)
        assert tokens == kept[0].nonzero().flatten().tolist()
        assert prediction.kept == len(tokens)
        assert prediction.candidates == inputs["input_ids"].shape[1] - 2
        assert prediction.margin == pytest.approx(float(margin), abs=1e-5)
        expected = torch.softmax(logits[0].double(), dim=0).numpy()
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-5)
        assert prediction.probability == max(prediction.probabilities.values())


def test_image_answers_are_those_of_the_torch_model(
    image_rationalist: Any,
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    photographs: list[np.ndarray],
    tmp_path: Path,
) -> None:
    for number, photograph in enumerate(photographs[:20]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(photograph).save(path)
        prediction = image_rationalist.predict([path])[0]
        pixels = bundled_image_preprocessor.encode([photograph])["pixel_values"]
        with torch.no_grad():
            logits, kept = bundled_image_model(torch.from_numpy(pixels))[:2]
        assert prediction.label == bundled_image_model.label_names[int(logits.argmax())]
        patches = [4 * box.row + box.column for box in prediction.rationale]
        assert patches == kept[0].nonzero().flatten().tolist()


def test_threads_follow_the_machine_as_the_package_does() -> None:
    assert runtime.resolve_threads(None) == available_cores()
    assert runtime.resolve_threads(3) == 3
    with pytest.raises(runtime.InputError, match="at least 1"):
        runtime.resolve_threads(0)


def test_softmax_survives_large_logits() -> None:
    found = runtime.softmax(np.array([[1e4, 1e4, -1e4]], dtype=np.float32))
    np.testing.assert_array_equal(found, [[0.5, 0.5, 0.0]])


# --- where the rationale lies ---


def test_spans_point_into_the_original_text(text_rationalist: Any) -> None:
    for text in HARD_TEXTS:
        for span in text_rationalist.predict([text])[0].rationale:
            assert text[span.start : span.end] == span.text
            assert span.text
            assert span.text in span.word


def test_neighbouring_pieces_of_a_word_are_joined_and_dropped_ones_left_out(
    text_bundle: Path,
) -> None:
    text = "An unbelievably naïve film"
    encoded = runtime.TextEncoder(text_bundle, 48).encode(text, "input 1")
    pieces = [text[start:end] for start, end in encoded.offsets[1:-1]]
    assert pieces == ["An", "un", "bel", "ie", "va", "bly", "naïve", "film"]
    kept = np.array([0, 0, 1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)
    scores = np.arange(10, dtype=np.float32)
    spans = runtime.word_spans(text, encoded, kept, scores)
    assert [(span.text, span.word, span.tokens) for span in spans] == [
        ("unbel", "unbelievably", (2, 3)),
        ("va", "unbelievably", (5,)),
        ("naïve", "naïve", (7,)),
    ]
    assert [span.score for span in spans] == [3, 5, 7]
    assert runtime.highlight(text, spans, color=False) == "An [unbel]ie[va]bly [naïve] film"


def test_highlighting_joins_words_and_disarms_control_characters() -> None:
    text = "so \x1b[31mvery good\x9b!"
    spans = [
        runtime.WordSpan(start, end, text[start:end], "", (), 0.0)
        for start, end in ((8, 12), (13, 17))
    ]
    assert runtime.highlight(text, spans, color=False) == "so \u241b[31m[very good]\ufffd!"
    assert runtime.highlight(text, spans, color=True) == (
        "so \u241b[31m\x1b[1;7mvery good\x1b[0m\ufffd!"
    )


def test_color_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert runtime.use_color(Terminal())
    assert not runtime.use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not runtime.use_color(Terminal())


@pytest.mark.parametrize(
    ("size", "row", "column", "expected"),
    [
        ((64, 64), 0, 0, (0, 0, 16, 16)),
        ((32, 32), 1, 3, (24, 8, 8, 8)),
        # 200 x 100 becomes 128 x 64; the square begins 32 pixels in, 50 of the original.
        ((200, 100), 0, 0, (50, 0, 25, 25)),
        ((200, 100), 3, 3, (125, 75, 25, 25)),
        ((100, 200), 0, 3, (75, 50, 25, 25)),
        ((1, 1), 2, 1, (0.25, 0.5, 0.25, 0.25)),
    ],
)
def test_patch_boxes_are_in_pixels_of_the_original(
    size: tuple[int, int], row: int, column: int, expected: tuple[float, ...]
) -> None:
    assert runtime.view_of(*size, 64).box(row, column, 16) == expected


def test_the_overlay_keeps_what_was_read_and_dims_the_rest(
    image_rationalist: Any, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    image = Image.fromarray(photographs[1]).resize((384, 256))
    image.save(path)
    (prediction,) = runtime.write_overlays(image_rationalist.predict([path]), tmp_path / "out")
    assert prediction.overlay == str(tmp_path / "out" / "photo.rationale.png")
    overlay = np.asarray(Image.open(prediction.overlay))
    original = np.asarray(image)
    assert overlay.shape == original.shape
    kept = np.zeros(original.shape[:2], dtype=bool)
    for box in prediction.rationale:
        x, y = round(box.x), round(box.y)
        inside = (slice(y + 2, y + 62), slice(x + 2, x + 62))
        np.testing.assert_array_equal(overlay[inside], original[inside])
        assert overlay[y, x].tolist() == [255, 214, 0]
        kept[y : y + 64, x : x + 64] = True
    assert (overlay[~kept].max(axis=1) <= 0.36 * 255).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.rationale.png"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (384, 384)),
        ((1, 1), (384, 384)),
        ((4096, 100), (2048, 50)),
        ((9999, 1), (2048, 1)),
    ],
)
def test_overlays_have_a_size_that_can_be_looked_at(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    box = runtime.PatchBox(0.0, 0.0, size[0] / 4, size[1] / 4, 0, 0, 1.0)
    assert runtime.draw_overlay(Image.new("RGB", size), [box]).size == expected


def test_images_of_the_same_name_get_overlays_of_their_own(
    image_rationalist: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("photo.png", "b/photo.png", "photo-2.png")]
    (tmp_path / "b").mkdir()
    for path in paths:
        Image.linear_gradient("L").save(path)
    written = runtime.write_overlays(image_rationalist.predict(paths), tmp_path)
    assert [Path(prediction.overlay).name for prediction in written] == [
        "photo.rationale.png",
        "photo-2.rationale.png",
        "photo-2-2.rationale.png",
    ]


def test_the_report_shows_characters_as_the_runtime_does() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        assert runtime.visible(character) == report_visible(character), hex(ord(character))
    assert runtime.visible("a\u202eb\u2066c\x1b") == "a\ufffdb\ufffdc\u241b"


def test_an_overlay_that_cannot_be_written_is_an_input_error(
    image_rationalist: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(runtime.InputError, match="cannot make the folder"):
        runtime.write_overlays([], tmp_path / "file" / "below")


# --- inputs that cannot be used ---


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000"])
def test_an_empty_text_is_refused(text_rationalist: Any, text: str) -> None:
    fails(text_rationalist, text, "input 1: the text is empty")


def test_a_text_without_any_token_is_refused(text_rationalist: Any) -> None:
    fails(text_rationalist, "\x00\x01", "no token of the text is left")


def test_a_text_that_is_not_unicode_is_refused(text_rationalist: Any) -> None:
    fails(text_rationalist, "caf\udce9", "not valid Unicode")


def test_a_long_text_is_answered_with_a_notice(text_rationalist: Any) -> None:
    text = "good film " * 100
    (prediction,) = text_rationalist.predict([text])
    assert prediction.notices == (
        "truncated: the model reads the first 46 of 200 tokens (to character 229 of 1000)",
    )
    assert prediction.candidates == 46
    assert text_rationalist.predict(["good film " * 23])[0].notices == ()


def test_a_one_word_text_drops_nothing(text_rationalist: Any) -> None:
    (prediction,) = text_rationalist.predict(["splendid"])
    assert (prediction.kept, prediction.candidates) == (1, 1)
    assert prediction.margin == float("inf")
    assert prediction.to_json()["margin"] is None
    json.dumps(prediction.to_json(), allow_nan=False)


def test_a_missing_image_is_refused(image_rationalist: Any, tmp_path: Path) -> None:
    fails(image_rationalist, tmp_path / "none.png", "cannot be read: No such file")
    fails(image_rationalist, tmp_path, "cannot be read: Is a directory")
    fails(image_rationalist, "a\0b", "cannot be read")


def test_a_corrupt_image_is_refused(image_rationalist: Any, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    fails(image_rationalist, tmp_path / "half.png", "corrupt or truncated")
    fails(image_rationalist, tmp_path / "empty.png", "not an image")
    fails(image_rationalist, tmp_path / "text.jpg", "not an image")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    fails(image_rationalist, tmp_path / "float.tiff", "no defined range")


def test_a_decompression_bomb_is_refused(
    image_rationalist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.linear_gradient("L").save(tmp_path / "large.png")
    for limit in (40_000, 1_000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        fails(image_rationalist, tmp_path / "large.png", "too large")


def read(arguments: list[str], modality: str = "text", stdin: bytes = b"") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii")
    return list(runtime.read_inputs(arguments, modality, stream))


def test_arguments_are_texts_files_or_lines(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"\xef\xbb\xbfone\ntwo \xc3\xa9\n")
    assert read([f"@{tmp_path / 'long.txt'}", "@@home", "-", "plain"], stdin=b"a\r\n\xc3\xa9") == [
        "one\ntwo é\n",
        "@home",
        "a",
        "é",
        "plain",
    ]
    assert read(["@photo.png", "-"], "image", b"b.png\n") == ["@photo.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9 au lait", "not UTF-8 (byte 3)"), (b" \n", "the text is empty")],
)
def test_a_text_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "review.txt").write_bytes(content)
    with pytest.raises(runtime.InputError) as caught:
        read([f"@{tmp_path / 'review.txt'}"])
    assert caught.value.message == f"{tmp_path / 'review.txt'}: {message}"


def test_a_missing_text_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(runtime.InputError, match="cannot be read"):
            read([f"@{path}"])


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "standard input is empty"),
        (b"fine\n\nfine\n", "line 2: empty"),
        (b"fine\ncaf\xe9\n", "line 2: not UTF-8"),
    ],
)
def test_standard_input_that_cannot_be_used_is_refused(stdin: bytes, message: str) -> None:
    with pytest.raises(runtime.InputError, match=message):
        read(["-"], stdin=stdin)


# --- models that cannot be used ---


def constant_model(path: Path, *, logits: list[float], rename: str = "", tokens: int = 1) -> None:
    """A hand-built file with the interface of a text rationalist that keeps token 1, and answers
    the same to everything; ``tokens`` is the length of its mask."""
    made = {
        "logits": (TensorProto.FLOAT, [1, len(logits)], logits),
        "rationale_mask": (TensorProto.BOOL, [1, tokens], [n == 1 for n in range(tokens)]),
        "selection_score": (TensorProto.FLOAT, [1, tokens], [0.0] * tokens),
        "selection_margin": (TensorProto.FLOAT, [1], [1.0]),
    }
    nodes, outputs = [], []
    for name, (dtype, shape, values) in made.items():
        public = "other" if name == rename else name
        value = helper.make_tensor(name, dtype, shape, values)
        nodes.append(helper.make_node("Constant", [], [public], value=value))
        outputs.append(helper.make_tensor_value_info(public, dtype, shape))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "token"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(nodes, "constant", inputs, outputs)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


@pytest.fixture
def bundle_around(
    make_bundle: Callable[..., BundleManifest],
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> Callable[[Path], Path]:
    """Wraps a file in a bundle whose hashes are right."""

    def wrap(path: Path) -> Path:
        folder = tmp_path / "bundle"
        make_bundle(folder, path, bundled_text_model, bundled_text_preprocessor)
        return folder

    return wrap


def test_a_hand_built_model_answers(bundle_around: Callable[[Path], Path], tmp_path: Path) -> None:
    constant_model(tmp_path / "m.onnx", logits=[0.0, 2.0, 0.0], tokens=4)
    model = runtime.Rationalist.load(bundle_around(tmp_path / "m.onnx"))
    (prediction,) = model.predict(["good film"])
    assert prediction.label == "neutral"
    assert [span.text for span in prediction.rationale] == ["good"]
    with pytest.raises(runtime.IntegrityError, match="answers in shapes"):
        model.predict(["a good film"])


def test_a_file_with_other_outputs_is_refused(
    bundle_around: Callable[[Path], Path], tmp_path: Path
) -> None:
    constant_model(tmp_path / "m.onnx", logits=[0.0] * 3, rename="selection_margin")
    with pytest.raises(runtime.IntegrityError, match="not those of a text rationalist"):
        runtime.Rationalist.load(bundle_around(tmp_path / "m.onnx"))


def test_an_answer_that_is_not_a_number_is_refused(
    bundle_around: Callable[[Path], Path], tmp_path: Path
) -> None:
    constant_model(tmp_path / "m.onnx", logits=[float("nan"), 0.0, 0.0], tokens=4)
    model = runtime.Rationalist.load(bundle_around(tmp_path / "m.onnx"))
    with pytest.raises(runtime.RekdRuntimeError, match="not finite"):
        model.predict(["good film"])


def test_a_file_that_onnxruntime_cannot_open_is_a_backend_error(
    bundle_around: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(runtime.BackendError, match="cannot open") as caught:
        runtime.Rationalist.load(bundle_around(tmp_path / "m.onnx"))
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message


def test_weights_outside_the_bundle_are_not_read(
    bundle_around: Callable[[Path], Path], text_bundle: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(text_bundle / "model.onnx"))
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin")
    model = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(runtime.BackendError, match="cannot open"):
        runtime.Rationalist.load(bundle_around(tmp_path / "m.onnx"))


def test_a_provider_that_is_not_there_is_named(text_bundle: Path) -> None:
    with pytest.raises(runtime.BackendError, match="has no CoffeeExecutionProvider"):
        runtime.Rationalist.load(text_bundle, provider="CoffeeExecutionProvider")


# --- the command ---


def test_the_bundle_answers_by_itself(text_bundle: Path, tmp_path: Path) -> None:
    script = text_bundle / "runtime" / "rekd_runtime.py"
    done = command(script, "a gorgeous, witty film", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, text = done.stdout.splitlines()
    assert head.split()[0] in ("negative", "neutral", "positive")
    assert "from 2 of 5 tokens, margin" in head
    assert text.replace("[", "").replace("]", "") == "a gorgeous, witty film"
    assert "[" in text
    assert (done.stderr, list(tmp_path.iterdir())) == ("", [])


def test_json_is_the_only_output_that_machines_see(
    text_bundle: Path, tmp_path: Path, text_rationalist: Any
) -> None:
    script = text_bundle / "runtime" / "rekd_runtime.py"
    done = command(script, "--json", "-", "-", cwd=tmp_path, input="good film\nword " + "w " * 60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["predictions"]) == 2
    assert document["predictions"][0] == text_rationalist.predict(["good film"])[0].to_json()
    assert done.stderr.startswith("note: input 2: truncated")
    done = command(script, "--json", "out.json", "good film", cwd=tmp_path)
    assert "[" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["predictions"][0]["label"]


def main(*words: str | Path) -> int:
    return runtime.main([str(word) for word in words])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) <= 2  # the message and its hint
    return shown.err


def test_failures_are_one_message_and_an_exit_code(
    text_bundle: Path, image_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--bundle", tmp_path / "none", "x") == 2
    assert "does not exist" in complaint(capsys)
    assert main("--bundle", tmp_path, "x") == 6
    assert "is not a bundle" in complaint(capsys)
    assert main("--bundle", text_bundle, "") == 2
    assert complaint(capsys).startswith("error: input 1: the text is empty\n  hint: ")
    assert main("--bundle", image_bundle, tmp_path / "none.png") == 2
    assert "cannot be read" in complaint(capsys)
    assert main("--bundle", text_bundle, "--threads", "0", "x") == 2
    assert "at least 1" in complaint(capsys)
    assert main("--bundle", text_bundle, "--json", tmp_path / "no" / "x.json", "good film") == 2
    assert "cannot write" in complaint(capsys)
    broken = Path(shutil.copytree(text_bundle, tmp_path / "broken"))
    with (broken / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xfe")
    assert main("--bundle", broken, "x") == 6
    assert "has changed" in complaint(capsys)


def test_an_unexpected_failure_is_one_line(
    text_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(runtime, "describe", fail)
    assert main("--bundle", text_bundle, "good film") == 1
    assert complaint(capsys).startswith("unexpected: KeyError: 'surprise' (a bug")


@pytest.mark.parametrize(
    ("package", "kind"),
    [("onnxruntime", "text"), ("tokenizers", "text"), ("PIL", "image"), ("numpy", "text")],
)
def test_a_missing_package_is_named_with_its_mend(
    text_bundle: Path, image_bundle: Path, tmp_path: Path, package: str, kind: str
) -> None:
    bundle = text_bundle if kind == "text" else image_bundle
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = bundle / "runtime" / "rekd_runtime.py"
    done = command("-c", code, script, "photo.png", cwd=tmp_path)
    name = "pillow" if package == "PIL" else package
    assert done.returncode == 4
    assert name in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[1] == f"  hint: python -m pip install {name}"
    assert len(done.stderr.splitlines()) == 2


def test_an_interruption_ends_with_130(text_bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, runtime_path(), "--bundle", text_bundle, f"@{pipe}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("w"):  # returns once the command has opened the other end and waits
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_a_reader_that_leaves_is_no_failure(text_bundle: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, runtime_path(), "--bundle", text_bundle, "good film"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
