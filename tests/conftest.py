"""Whole bundles of tiny models with random weights: the real tokenizer, exporter and writer.

torch is imported inside the fixtures, so that collecting tests stays quick.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

if TYPE_CHECKING:
    from rekd_edge.bundle import BundleManifest
    from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
    from rekd_edge.fuse import FusedClassWise, FusedRationalist
    from rekd_edge.types import IoSpec, ProblemType

collect_ignore = ["optimum"]
"""Run in an environment of its own: tests/integration/test_optimum.py."""
MAX_LENGTH = 48
IMAGE_SIZE = 64
settings.register_profile("same-examples", derandomize=True)
settings.register_profile("new-examples", print_blob=True)
settings.load_profile("same-examples")
RECIPE = """schema_version: 1
name: tiny
data:
  source: csv
  path: /somewhere/private/reviews.csv
"""


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], Path]:
    """``made_once(name, make)`` is a folder that ``make(folder)`` has filled in whichever worker
    came first; the others wait. What lies there is read and copied, never changed."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, finished = base / f"once-{name}", base / f"once-{name}.finished"
        with FileLock(base / f"once-{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def bundled_text_preprocessor() -> TextPreprocessor:
    """The tokenizer of the pinned MiniLM package, 48 tokens."""
    from rekd_edge.data.preprocess import TextPreprocessor
    from rekd_edge.models.weights import open_backbone
    from rekd_edge.recipe.schema import BackboneSpec

    spec = BackboneSpec(weights=("random:bert-tiny",), depth=1)
    tokenizer_file = open_backbone(spec, "text", image_size=None).tokenizer_file
    assert tokenizer_file is not None
    return TextPreprocessor(tokenizer_file, MAX_LENGTH)


@pytest.fixture(scope="session")
def bundled_image_preprocessor() -> ImagePreprocessor:
    from rekd_edge.data.preprocess import ImagePreprocessor

    return ImagePreprocessor(IMAGE_SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="session")
def bundled_text_model() -> FusedRationalist:
    """Three classes, a quarter of the tokens, the whole MiniLM vocabulary."""
    return _text_model(seed=0)


def _text_model(seed: int) -> FusedRationalist:
    import torch
    from transformers import BertConfig, BertModel

    from rekd_edge.fuse import fuse
    from rekd_edge.models.encoder import BertEncoder
    from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist

    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=30522,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=MAX_LENGTH,
            initializer_range=0.3,
        )
        return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=101, sep_id=102)

    torch.manual_seed(seed)
    labels = ("negative", "neutral", "positive")
    model = Rationalist(BlockSelector(encoder()), Predictor(encoder(), len(labels)), 0.25)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return fuse(model, label_names=labels, max_length=MAX_LENGTH)


@pytest.fixture(scope="session")
def bundled_image_model() -> FusedRationalist:
    """Two classes, a quarter of 4 x 4 patches of 16 pixels."""
    return _image_model(seed=0)


def _image_model(seed: int) -> FusedRationalist:
    import timm
    import torch

    from rekd_edge.fuse import fuse
    from rekd_edge.models.encoder import VitEncoder
    from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist

    def encoder() -> VitEncoder:
        return VitEncoder(
            timm.create_model(
                "test_vit", img_size=IMAGE_SIZE, num_classes=0, depth=1, pretrained=False
            )
        )

    torch.manual_seed(seed)
    model = Rationalist(BlockSelector(encoder()), Predictor(encoder(), 2), 0.25)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return fuse(model, label_names=("cat", "dog"), max_length=None)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., BundleManifest]:
    """``make_bundle(folder, onnx, model, preprocessor)`` writes a bundle around an ONNX file."""
    from rekd_edge.bundle import BundleConfig, GateRecord, Lineage, write_bundle
    from rekd_edge.data.preprocess import TextPreprocessor

    def make(
        folder: Path,
        onnx: Path,
        model: FusedRationalist,
        preprocessor: Preprocessor,
        why_not: tuple[Path | None, IoSpec | None] = (None, None),
    ) -> BundleManifest:
        is_text = isinstance(preprocessor, TextPreprocessor)
        why_not_file, why_not_spec = why_not
        return write_bundle(
            folder,
            onnx=onnx,
            why_not=why_not_file,
            preprocessor=preprocessor,
            label_names=model.label_names,
            config=BundleConfig.create(
                modality=model.modality,
                problem_type=model.problem_type,
                label_names=model.label_names,
                rationale_ratio=model.rationale_ratio,
                rationale_ratio_fraction=model.rationale_ratio_fraction,
                io_spec=model.io_spec(),
                opset=20,
                ir_version=10,
                image_size=model.image_size,
                patch_size=model.patch_size,
                max_length=MAX_LENGTH if is_text else None,
                special_ids=preprocessor.special_ids if is_text else None,
                why_not=why_not_spec,
            ),
            recipe_yaml=RECIPE,
            lineage=Lineage(
                recipe_name="tiny",
                seed=7,
                data={"source": "csv", "train": "80"},
                weights={"student selector": "random:bert-tiny"},
            ),
            reports={"check": {"passed": True, "margin": float("inf")}},
            gates=[
                GateRecord(
                    name="labels",
                    metric="label_agreement",
                    goal="threshold 1",
                    value=1.0,
                    passed=True,
                )
            ],
            accuracy={"student_onnx": 0.75, "teacher": 0.875},
            accuracy_per_class=dict.fromkeys(model.label_names, 0.75),
        )

    return make


@pytest.fixture(scope="session")
def text_bundle(
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    make_bundle: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Path:
    """A text bundle as exported. Tests that change something copy it first."""
    from rekd_edge.convert import convert_to_onnx, load_target

    def export(folder: Path) -> None:
        model = bundled_text_model
        target = load_target("onnx")
        convert_to_onnx(model, model.io_spec(), folder / "m.onnx", target=target, metadata={})
        make_bundle(folder / "bundle", folder / "m.onnx", model, bundled_text_preprocessor)

    return made_once("text-bundle", export) / "bundle"


@pytest.fixture(scope="session")
def image_bundle(
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    make_bundle: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Path:
    """An image bundle as exported. Tests that change something copy it first."""
    from rekd_edge.convert import convert_to_onnx, load_target

    def export(folder: Path) -> None:
        model = bundled_image_model
        target = load_target("onnx")
        convert_to_onnx(model, model.io_spec(), folder / "m.onnx", target=target, metadata={})
        make_bundle(folder / "bundle", folder / "m.onnx", model, bundled_image_preprocessor)

    return made_once("image-bundle", export) / "bundle"


def _of_another_type(
    bundle: Path,
    model: FusedRationalist,
    preprocessor: TextPreprocessor,
    make: Callable[..., BundleManifest],
    problem_type: ProblemType,
    folder: Path,
) -> Path:
    """The same file, whose three logits mean something else."""
    import copy

    other = copy.copy(model)
    other.problem_type = problem_type
    make(folder, bundle / "model.onnx", other, preprocessor)
    return folder


@pytest.fixture(scope="session")
def multi_label_bundle(
    text_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    make_bundle: Callable[..., BundleManifest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """As ``text_bundle``, with three labels of which any number may hold."""
    return _of_another_type(
        text_bundle,
        bundled_text_model,
        bundled_text_preprocessor,
        make_bundle,
        "multi_label_classification",
        tmp_path_factory.mktemp("multi-label") / "bundle",
    )


@pytest.fixture(scope="session")
def regression_bundle(
    text_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    make_bundle: Callable[..., BundleManifest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """As ``text_bundle``, with three values."""
    return _of_another_type(
        text_bundle,
        bundled_text_model,
        bundled_text_preprocessor,
        make_bundle,
        "regression",
        tmp_path_factory.mktemp("regression") / "bundle",
    )


@pytest.fixture(scope="session")
def pair_bundles(
    bundled_text_model: FusedRationalist,
    bundled_image_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    bundled_image_preprocessor: ImagePreprocessor,
    make_bundle: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> dict[str, Path]:
    """Bundles of both students, with a partner of other weights: ``text`` and ``image``."""
    from rekd_edge.convert import convert_to_onnx, load_target
    from rekd_edge.fuse import fuse_pair

    made = {
        "text": (bundled_text_model, _text_model(seed=1), bundled_text_preprocessor),
        "image": (bundled_image_model, _image_model(seed=1), bundled_image_preprocessor),
    }

    def export(folder: Path) -> None:
        for name, (student, partner, preprocessor) in made.items():
            pair, file = fuse_pair(student, partner), folder / f"{name}.onnx"
            convert_to_onnx(pair, pair.io_spec(), file, target=load_target("onnx"), metadata={})
            make_bundle(folder / name, file, pair, preprocessor)

    folder = made_once("pairs", export)
    return {name: folder / name for name in made}


def _with_why_not(
    bundle: Path,
    answers: FusedRationalist,
    preprocessor: Preprocessor,
    make: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> tuple[Path, FusedClassWise]:
    """``bundle`` with a ``why_not.onnx`` beside, and the model in it: the bundled one's weights and
    a head of random ones."""
    import torch

    from rekd_edge.convert import convert_to_onnx, load_target
    from rekd_edge.fuse import FusedClassWise
    from rekd_edge.fuse.fused import frozen
    from rekd_edge.models.class_wise import ClassHead
    from rekd_edge.models.rationalist import Rationalist

    student = Rationalist(answers.selector, answers.predictor, answers.rationale_ratio)
    torch.manual_seed(0)
    head = ClassHead(answers.selector.head.in_features, len(answers.label_names))
    torch.nn.init.normal_(head.weight)
    length = MAX_LENGTH if answers.modality == "text" else None
    labels = answers.label_names
    asked = frozen(FusedClassWise(student, head, label_names=labels, max_length=length))

    def export(folder: Path) -> None:
        file = folder / "why_not.onnx"
        convert_to_onnx(asked, asked.io_spec(), file, target=load_target("onnx"), metadata={})
        why_not = (file, asked.io_spec())
        make(folder / "bundle", bundle / "model.onnx", answers, preprocessor, why_not=why_not)

    return made_once(f"{answers.modality}-why-not", export) / "bundle", asked


@pytest.fixture(scope="session")
def text_why_not(
    text_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    make_bundle: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> tuple[Path, FusedClassWise]:
    """As ``text_bundle``, with class-wise rationales, and the model of those."""
    return _with_why_not(
        text_bundle,
        bundled_text_model,
        bundled_text_preprocessor,
        make_bundle,
        made_once,
    )


@pytest.fixture(scope="session")
def image_why_not(
    image_bundle: Path,
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    make_bundle: Callable[..., BundleManifest],
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> tuple[Path, FusedClassWise]:
    """As ``image_bundle``, with class-wise rationales, and the model of those."""
    return _with_why_not(
        image_bundle,
        bundled_image_model,
        bundled_image_preprocessor,
        make_bundle,
        made_once,
    )


@pytest.fixture(scope="session")
def piece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.json`` unlike MiniLM's: lower-case pieces of one or two letters."""
    import string

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = string.ascii_lowercase
    pieces = [*string.printable.strip(), *(a + b for a in letters for b in letters)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[misc]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[misc]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[misc]
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    tokenizer.save(str(path))
    return path
