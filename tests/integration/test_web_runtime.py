"""The browser runtime against the Python runtime: tokens, pixels and answers.

Python writes what is due into a folder (``golden.json`` and arrays beside it); the tests in
``export/runtime/web/tests`` read it, in node and in Chromium. ``REKD_WEB_BUNDLES`` names more
bundles to compare (``make test-web BUNDLES=...``).
"""
# ruff: noqa: RUF001 - texts in many scripts

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.data import load_data
from rekd_edge.recipe import find_recipe, load_recipe
from tests.chromium import chromium_path, find_chromium

if TYPE_CHECKING:
    from rekd_edge.bundle import BundleManifest
    from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
    from rekd_edge.fuse import FusedClassWise, FusedRationalist

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "export" / "runtime" / "web"
BUNDLES = [Path(word).resolve() for word in os.environ.get("REKD_WEB_BUNDLES", "").split()]
DECODED_SIZE = 224
TEMPERATURE = 1.7
ODD_TEXTS = (
    "a",
    "Déjà vu, naïve façade — ‘résumé’ costs 5 €…",
    "CAFÉ cafe\u0301 ＦＵＬＬ width Ǆ ǅ ǆ İstanbul ΣΊΣΥΦΟΣ straße ﬁne ①②",
    "中文字符 mixed とひらがな カタカナ 한국어 각각 \u1100\u1161\u11a8",
    "emoji 👩‍👩‍👧‍👦 👍🏽 🇨🇭 and \u2764\ufe0f",
    "tab\tnew\nline\r\nform\x0cfeed nul\x00soft\u00adhyphen zero\u200bwidth \ufeffbom \u2028 sep",
    "x" * 100 + " " + "y" * 101 + " end",
    "[CLS] in the text [SEP] and [MASK]ed or [cls] [UNK][PAD]",
    "ngày mai tiếng Việt a\u0323\u0301 a\u0301\u0323 \u0344\u0316 q\u0307\u0323",
    "हिन्दी में நமிழ் ไทยแลนด์ العَرَبِيَّة עִבְרִית \u202eright to left\u202c",
    "\U0001d165\U0001d16e\u302e\u0301 \U000105c9 \u1b44\u0301 \U00016d68 \u0dca\u1ac0\u0301x",
    "!!!??? ... $100.00 #tag @user http://a.b/c?d=e&f 50% a_b a-b a/b ^~`|<>",
    "\u0600\u06dd\u070f \u180e \u2066hidden\u2069 \ue000private \uffff \U0010ffff noncharacter",
    "Ω ℵ Å ﷺ ½ ² ªº ǈ \u0130\u0307 ᾳ ᾼ Ά",
)


def random_texts(count: int) -> list[str]:
    """Words of any code points, combining marks among them; the same each time."""
    chosen = random.Random(5)
    areas = (
        *((0x20, 0x250), (0x300, 0x370), (0x300, 0x370), (0x370, 0x1100), (0x1100, 0x3400)),
        *((0x1AB0, 0x1B00), (0xA000, 0xAC00), (0xAC00, 0xD7A4), (0xF900, 0x10000)),
        *((0x10000, 0x12000), (0x16000, 0x17000), (0x1D100, 0x1D250), (0x1E000, 0x1F000)),
        (0x4E00, 0xA000),
    )

    def word() -> str:
        return "".join(
            chr(chosen.randrange(*chosen.choice(areas))) for _ in range(chosen.randrange(1, 9))
        )

    return ["a " + " ".join(word() for _ in range(6)) for _ in range(count)]


def command(*words: str | Path, **variables: str) -> None:
    done = subprocess.run(
        words, cwd=WEB, capture_output=True, text=True, timeout=900, env=os.environ | variables
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-4_000:]}"


def require_node() -> None:
    """Skips, with the reason, without npm and a node that is new enough."""
    needed = "the browser runtime needs node (20.12 or newer) and npm"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"{needed}, which are not here")
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    version = done.stdout.strip()
    major, minor = version.removeprefix("v").split(".")[:2]
    if (int(major), int(minor)) < (20, 12):
        pytest.skip(f"{needed}; here is node {version}")


@pytest.fixture(scope="module")
def packages() -> Path:
    """What the lock file names, from npm."""
    require_node()
    command("make", "--silent", "--directory", ROOT, "web-packages")
    return WEB / "node_modules"


@pytest.fixture(scope="module")
def bundles(
    text_bundle: Path,
    image_bundle: Path,
    pair_bundles: dict[str, Path],
    multi_label_bundle: Path,
    regression_bundle: Path,
    text_why_not: tuple[Path, FusedClassWise],
    image_why_not: tuple[Path, FusedClassWise],
    bundled_text_model: FusedRationalist,
    bundled_image_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    bundled_image_preprocessor: ImagePreprocessor,
    make_bundle: Callable[..., BundleManifest],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """fp32 and int8, text and image; two students of each; the other problem types; class-wise
    rationales of both; and those named in the environment."""
    from rekd_edge.convert.quantize import quantize

    folder = tmp_path_factory.mktemp("int8")
    found = {"text": text_bundle, "image": image_bundle}
    found |= {f"{name}-pair": bundle for name, bundle in pair_bundles.items()}
    models: dict[str, tuple[FusedRationalist, Preprocessor]] = {
        "text": (bundled_text_model, bundled_text_preprocessor),
        "image": (bundled_image_model, bundled_image_preprocessor),
    }
    for name, (model, preprocessor) in models.items():
        low = folder / f"{name}.onnx"
        quantize(found[name] / "model.onnx", low, precision="int8-dynamic")
        make_bundle(folder / name, low, model, preprocessor)
        found[f"{name}-int8"] = folder / name
    found |= {"multi-label": multi_label_bundle, "regression": regression_bundle}
    found |= {"text-why-not": text_why_not[0], "image-why-not": image_why_not[0]}
    return found | {f"{bundle.name}-{number}": bundle for number, bundle in enumerate(BUNDLES)}


def real_texts() -> list[str]:
    data = load_data(load_recipe(find_recipe("text/movie-review-snippets")))
    test = [str(data.test.raw(position)) for position in range(len(data.test))]
    return [*test, *(str(data.train.raw(position)) for position in range(1500))]


def write_images(folder: Path) -> tuple[list[str], list[str]]:
    """File names of images that unpack the same everywhere, and of those that unpack nearly so."""
    from sklearn.datasets import load_sample_image

    folder.mkdir()
    test = load_data(load_recipe(find_recipe("smoke/image"), ["data.limit.test=120"])).test
    small = [Image.fromarray(np.asarray(test.raw(index))) for index in range(120)]
    exact = {f"cifar-{index}.png": image for index, image in enumerate(small)}
    photo = Image.fromarray(np.asarray(load_sample_image("china.jpg")))
    flower = Image.fromarray(np.asarray(load_sample_image("flower.jpg")))
    exact |= {
        "photo.png": photo,
        "tall.png": flower.rotate(90, expand=True),
        "strip.png": photo.crop((0, 100, 640, 113)),
        "dot.png": photo.crop((5, 5, 6, 6)),
        "grey.png": flower.convert("L"),
        "palette.png": photo.quantize(64),
        "one-bit.png": photo.convert("1"),
        "view.png": flower.resize((64, 64)),
    }
    for name, image in exact.items():
        image.save(folder / name)
    mask = Image.fromarray(np.tile(np.arange(640, dtype=np.uint8) // 3, (427, 1)))
    near = {
        "alpha.png": Image.merge("RGBA", (*photo.split(), mask)),
        "grey-alpha.png": Image.merge("LA", (photo.convert("L"), mask)),
        "deep.png": Image.fromarray(np.asarray(flower.convert("L")).astype(np.uint16) * 257),
        "photo.jpg": photo,
        "small.jpg": flower.resize((200, 150)),
        "photo.webp": photo,
        "photo.gif": photo.quantize(128),
        "photo.bmp": photo,
    }
    for name, image in near.items():
        image.save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=turned, quality=90)
    photo.save(folder / "turned.png", exif=turned)
    icc = Path(folder / "profile.png")
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    photo.save(icc, icc_profile=profile.tobytes())
    return list(exact), [*near, "turned.jpg", "turned.png", "profile.png"]


def token_answers(tokenizer_file: Path, max_length: int, texts: list[str]) -> list[list[Any]]:
    """Text, ids, offsets, words, dropped tokens; or text and null where it is refused."""
    runtime = load_runtime()
    encoder = runtime.TextEncoder(tokenizer_file.parent, max_length)
    rows: list[list[Any]] = []
    for text in texts:
        try:
            found = encoder.encode(text, "input")
        except runtime.InputError:
            rows.append([text, None])
            continue
        rows.append(
            [text, found.input_ids[0].tolist(), found.offsets, found.words, found.dropped_tokens]
        )
    return rows


def bundle_answers(bundle: Path, inputs: list[str]) -> list[dict[str, Any]]:
    """What the Python runtime answers, and its logits, with one thread; "why not?" where the bundle
    can be asked."""
    runtime = load_runtime()
    model = runtime.Rationalist.load(bundle, threads=1)
    logits: list[list[float]] = []
    run = model.run_encoded

    def recorded(encoded: Any) -> Any:
        answers = run(encoded)
        logits.extend(answer.logits.tolist() for answer in answers)
        return answers

    model.run_encoded = recorded
    answered = model.predict(inputs, why_not=model.config.why_not)
    predictions = [prediction.to_json() for prediction in answered]
    return [row | {"logits": found} for row, found in zip(predictions, logits, strict=True)]


def confidence(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Of each answer at :data:`TEMPERATURE`, from what the runtime shows."""
    runtime = load_runtime()
    if problem_type == runtime.MULTI_LABEL:
        each = runtime.sigmoid(logits, TEMPERATURE)
        return np.maximum(each, 1 - each).min(axis=1)
    return runtime.softmax(logits, TEMPERATURE).max(axis=1)


def calibrated(bundle: Path, folder: Path, answers: list[dict[str, Any]]) -> Path:
    """A copy of ``bundle`` that withholds some of ``answers``: by each threshold between an eighth
    and a half. Thresholds lie in the widest gap there, so that rounding moves no answer across."""

    def threshold(values: Iterable[float]) -> float:
        found = sorted(set(values))
        pairs = list(itertools.pairwise(found[len(found) // 8 : len(found) // 2 + 1]))
        low, high = max(pairs, key=lambda pair: pair[1] - pair[0])
        return (low + high) / 2

    logits = np.array([row["logits"] for row in answers], np.float32)
    problem_type = load_runtime().read_config(bundle).problem_type
    margins = (row["margin"] for row in answers if row["margin"] is not None)
    stated = Calibration(
        temperature=TEMPERATURE,
        confidence_threshold=threshold(confidence(logits, problem_type).tolist()),
        margin_threshold=threshold(margins),
        asked=AbstentionSpec(coverage=0.7, rationale_risk=0.02),
        examples=200,
    )
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    config["calibration"] = stated.model_dump(mode="json")
    content = json.dumps(config).encode()
    (folder / "config.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(file for file in manifest["files"] if file["path"] == "config.json")
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def resampled(folder: Path, pictures: list[Path]) -> Iterator[dict[str, Any]]:
    """Raw pixels and what Pillow makes of them, as files of bytes."""
    from rekd_edge.data.preprocess import ImagePreprocessor

    for path in pictures:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        height, width = pixels.shape[:2]
        opaque = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
        (folder / f"{path.stem}.rgba").write_bytes(opaque.tobytes())
        for interpolation in ("bilinear", "bicubic", "lanczos"):
            for size in (32, 64, 97, 224):
                preprocessor = ImagePreprocessor(size, (0, 0, 0), (1, 1, 1), interpolation)
                name = f"{path.stem}-{interpolation}-{size}.rgb"
                (folder / name).write_bytes(preprocessor.resize(pixels).tobytes())
                yield {
                    "source": f"{path.stem}.rgba",
                    "due": name,
                    "width": width,
                    "height": height,
                    "size": size,
                    "interpolation": interpolation,
                }


@pytest.fixture(scope="module")
def golden(
    bundles: dict[str, Path],
    pair_bundles: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Everything that the tests in JavaScript compare with."""
    from rekd_edge.data.preprocess import ImagePreprocessor

    folder = tmp_path_factory.mktemp("golden")
    texts = real_texts()
    exact, near = write_images(folder / "images")
    (folder / "pixels").mkdir()
    runtime = load_runtime()
    decoded = []
    for name in (*exact, *near):
        image = runtime.read_image(folder / "images" / name)
        square = ImagePreprocessor(DECODED_SIZE, (0, 0, 0), (1, 1, 1)).resize(np.asarray(image))
        (folder / "pixels" / f"{name}.rgb").write_bytes(square.tobytes())
        decoded.append({"file": name, "isExact": name in exact, "width": image.width})
    answers: dict[str, Any] = {}
    for name, bundle in bundles.items():
        is_small = not any(bundle == given for given in BUNDLES)
        if json.loads((bundle / "config.json").read_text())["modality"] == "text":
            fewer = {"multi-label": 80, "regression": 80, "text-why-not": 80}
            count = fewer.get(name, 200 if is_small else 1000)
            inputs = [*texts[:count], *ODD_TEXTS]
        else:
            some = [*exact[:8], *exact[-8:]] if name == "image-why-not" else exact
            inputs = [str(folder / "images" / image) for image in some]
        answers[name] = {
            "bundle": str(bundle),
            "precision": "int8" if "int8" in name else "fp32",
            "answers": bundle_answers(bundle, inputs),
        }
    cases = {
        name: {row["case"] for row in answers[f"{name}-pair"]["answers"]} for name in pair_bundles
    }
    assert cases["text"] == set(runtime.CASES)
    assert len(cases["image"]) > 1
    for name in ("text", "image", "text-int8", "image-int8", "multi-label", "text-why-not"):
        plain = answers[name]
        bundle = calibrated(bundles[name], folder / f"{name}-calibrated", plain["answers"])
        rows = bundle_answers(bundle, [row["source"] for row in plain["answers"]])
        refused = {tuple(row["refused_for"]) for row in rows}
        assert {(), ("confidence",), ("margin",)} <= refused
        answers[f"{name}-calibrated"] = plain | {"bundle": str(bundle), "answers": rows}
    del answers["text-why-not"]  # "image-why-not" is asked without a calibration
    text = bundles["text"] / "tokenizer.json"
    every_text = [*texts, *ODD_TEXTS, *random_texts(1500), " ", "\u200b", "\x1c", "\u3000"]
    pictures = ["photo.png", "tall.png", "strip.png", "dot.png", "cifar-0.png", "view.png"]
    document = {
        "tokens": {
            "48": token_answers(text, 48, every_text),
            "5": token_answers(text, 5, texts[:50]),
        },
        "tokenizer": str(text),
        "resampled": list(resampled(folder, [folder / "images" / name for name in pictures])),
        "decoded": decoded,
        "decodedSize": DECODED_SIZE,
        "bundles": answers,
        "whyNotClasses": runtime.WHY_NOT_CLASSES,
    }
    (folder / "golden.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_the_types_hold(packages: Path) -> None:
    command("node", packages / "typescript" / "bin" / "tsc")


def test_the_comparison_finds_what_it_has_to_find() -> None:
    require_node()
    command("node", "--test", "tests/compare.test.mjs")


def test_calibration_is_applied_or_refused(packages: Path) -> None:
    command("node", "--test", "tests/decision.test.mjs")


def test_the_unicode_tables_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    made = tmp_path / "unicode_tables.ts"
    subprocess.run([sys.executable, WEB / "tools" / "unicode_tables.py", made], check=True)
    assert made.read_text() == (WEB / "src" / "unicode_tables.ts").read_text()


def test_the_library_answers_as_the_python_runtime(packages: Path, golden: Path) -> None:
    command("node", "--test", "tests/library.test.mjs", GOLDEN=str(golden))


@pytest.fixture(scope="module")
def browser() -> str:
    if os.environ.get("REKD_WEB_REQUIRE_BROWSER") and chromium_path() is None:
        pytest.fail("no browser here (on Debian: apt-get install chromium)")
    return find_chromium()


def test_the_page_answers_as_the_python_runtime(browser: str, packages: Path, golden: Path) -> None:
    command("node", "--test", "tests/page.test.mjs", GOLDEN=str(golden), CHROMIUM=browser)


@pytest.mark.parametrize(("version", "skips"), [("v20.11.1", True), ("v20.12.0", False)])
def test_an_older_node_is_named(
    version: str, skips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if not skips:
        require_node()
        return
    with pytest.raises(pytest.skip.Exception, match=r"here is node v20\.11\.1"):
        require_node()


def test_the_browser_is_the_one_named_or_the_first_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert chromium_path() is None
    for name in ("google-chrome", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert chromium_path() == str(tmp_path / "google-chrome")
    monkeypatch.setenv("CHROMIUM", "mine")
    assert find_chromium() == str(tmp_path / "mine")


@pytest.mark.parametrize(
    "names", [("mine.txt",), ("service_worker.js",), ("index.html", "service_worker.js")]
)
def test_a_folder_of_something_else_is_not_replaced(
    names: tuple[str, ...], packages: Path, text_bundle: Path, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("<p>mine")
    words = ["node", WEB / "build.mjs", "--bundle", text_bundle, "--output", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is not a page that was built here" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == list(names)


def test_a_page_that_was_built_here_is_replaced(
    packages: Path, text_bundle: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    words = ("node", WEB / "build.mjs", "--bundle", text_bundle, "--output", site)
    command(*words)
    (site / "page.js").unlink()
    command(*words)
    assert (site / "page.js").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_changed_bundle_is_not_built(packages: Path, text_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(text_bundle, tmp_path / "bundle")
    (bundle / "labels.json").write_text((bundle / "labels.json").read_text() + " ")
    words = ["node", WEB / "build.mjs", "--bundle", bundle, "--output", tmp_path / "site"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 6
    assert "labels.json has more than" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
