"""Files that keep whole units keep what training kept, in every form of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from rekd_edge.check.exclusion import numerical_exclusion, structural_exclusion
from rekd_edge.convert import OnnxArtefact, convert_to_onnx, load_target, quantize
from rekd_edge.convert.types import Lower
from rekd_edge.engines.lint import lint
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.errors import UsageError
from rekd_edge.fuse import FusedRationalist, fuse, fuse_pair, fuse_report
from rekd_edge.fuse.fused import masked_form
from rekd_edge.models.encoder import BertEncoder, VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.models.units import SentenceUnits, TextUnits, WordUnits
from rekd_edge.runners import OnnxRunner
from rekd_edge.selection import keep_units, slot_count
from rekd_edge.types import Batch

CLS, SEP, WORDS = 1, 2, 40
LABELS = ("a", "b", "c")


def text_model(units: type[TextUnits], ratio: float = 0.3) -> Rationalist:
    """Ids below 20 are plain words; of the others a third each is special to the units."""

    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
            initializer_range=0.3,
        )
        made = BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)
        made.units = units([0 if word < 20 else 1 + word % 3 for word in range(WORDS)])
        return made

    torch.manual_seed(0)
    return initialised(encoder(), encoder(), ratio)


def image_model() -> Rationalist:
    def encoder() -> VitEncoder:
        name = "test_vit"
        made = VitEncoder(timm.create_model(name, img_size=64, num_classes=0, depth=1))
        made.region_size = 2
        return made

    torch.manual_seed(0)
    return initialised(encoder(), encoder(), 0.6)


def initialised(
    first: BertEncoder | VitEncoder, second: BertEncoder | VitEncoder, ratio: float
) -> Rationalist:
    model = Rationalist(BlockSelector(first), Predictor(second, len(LABELS)), ratio)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return model.eval()


def fused(model: Rationalist) -> FusedRationalist:
    is_text = isinstance(model.predictor.encoder, BertEncoder)
    return fuse(model, label_names=LABELS, max_length=48 if is_text else None)


KINDS = {
    "word": lambda: text_model(WordUnits),
    "sentence": lambda: text_model(SentenceUnits),
    "region": image_model,
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Rationalist, FusedRationalist]:
    model = KINDS[request.param]()
    made = fused(model)
    assert made.rationale_unit == request.param
    return model, made


@pytest.fixture(scope="module")
def file(
    pair: tuple[Rationalist, FusedRationalist], tmp_path_factory: pytest.TempPathFactory
) -> OnnxArtefact:
    model = pair[1]
    path = tmp_path_factory.mktemp(model.rationale_unit) / "model.onnx"
    return convert_to_onnx(model, model.io_spec(), path, target=load_target("onnx"), metadata={})


def texts(lengths: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Random words, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (len(lengths), max(lengths) + 2), generator=generator)
    place = torch.arange(ids.shape[1]).unsqueeze(0)
    count = torch.tensor(lengths).unsqueeze(1)
    ids = torch.where(place == count + 1, SEP, torch.where(place > count + 1, 0, ids))
    ids[:, 0] = CLS
    return {"input_ids": ids, "attention_mask": (place <= count + 1).long()}


def images(count: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn((count, 3, 64, 64), generator=generator)}


def batches(model: FusedRationalist) -> list[dict[str, np.ndarray]]:
    if model.modality == "image":
        made = [images(3, 0), images(1, 1)]
    else:
        made = [texts([1, 2, 5], 0), texts([17, 40, 3], 1), texts([46], 2)]
    return [{name: value.numpy() for name, value in batch.items()} for batch in made]


@given(st.sampled_from(["word", "sentence"]), st.lists(st.integers(1, 30), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_a_fused_text_model_keeps_what_the_trained_one_keeps(kind: str, lengths: list[int]) -> None:
    model = MODELS[kind]
    inputs = texts(lengths, seed=sum(lengths))
    logits, keep, score, _, index, valid = FUSED[kind](*inputs.values())
    scores = model.selector(inputs)
    kept = model.keep(scores)
    assert torch.equal(keep[:, 1:], kept)
    assert not keep[:, 0].any()
    assert torch.allclose(score[:, 1:][kept], scores.score[kept], atol=1e-5)
    assert torch.allclose(logits, model(inputs), atol=1e-5)
    budget = model.budget(scores.view)
    for row, own in enumerate(keep):
        assert 1 <= int(own.sum()) <= int(budget[row])
        assert index[row][valid[row]].tolist() == own.nonzero().flatten().tolist()


MODELS = {kind: KINDS[kind]() for kind in ("word", "sentence")}
FUSED = {kind: fused(model) for kind, model in MODELS.items()}


def test_a_fused_image_model_keeps_whole_regions() -> None:
    model = image_model()
    made = fused(model)
    inputs = images(4, 0)
    logits, keep, _, margin, index, _ = made(*inputs.values())
    scores = model.selector(inputs)
    assert torch.equal(keep, model.keep(scores))
    assert torch.allclose(logits, model(inputs), atol=1e-5)
    assert keep.sum(dim=1).tolist() == [8] * 4  # of a budget of 10
    assert index.shape == (4, 8)
    assert bool((margin > 0).all())
    blocks = keep.reshape(4, 2, 2, 2, 2).sum(dim=(2, 4))
    assert set(blocks.flatten().tolist()) == {0, 4}


def test_the_file_answers_as_the_model_and_reads_nothing_else(
    pair: tuple[Rationalist, FusedRationalist], file: OnnxArtefact
) -> None:
    _, model = pair
    graph = onnx.load(str(file.path))
    with OnnxRunner(file.path, threads=1) as runner:
        for inputs in batches(model):
            found = runner.run(inputs)
            logits, keep, _, margin, *_ = model(*(torch.from_numpy(v) for v in inputs.values()))
            assert np.array_equal(found.rationale_mask, keep.numpy())
            assert np.allclose(found.logits, logits, atol=1e-4)
            assert np.allclose(found.selection_margin, margin, atol=1e-4)
    assert structural_exclusion(graph).passed
    held = numerical_exclusion(graph, batches(model), threads=1)
    assert held.passed
    assert held.mask_mismatches == 0


def test_tensorrt_would_take_the_graph(
    pair: tuple[Rationalist, FusedRationalist], file: OnnxArtefact
) -> None:
    shapes = {"input_ids": (8, 48), "attention_mask": (8, 48)}
    if pair[1].modality == "image":
        shapes = {"pixel_values": (8, 3, 64, 64)}
    recipe = BuildRecipe(
        backend="tensorrt-rtx",
        compute_capabilities=(86,),
        precision="fp32",
        onnx_sha256="0" * 64,
        profiles={name: Profile(min=one, opt=one, max=one) for name, one in shapes.items()},
    )
    assert lint(onnx.load(str(file.path)), recipe) == ()


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic"])
def test_lower_precisions_still_keep_whole_units_by_their_own_scores(
    precision: Lower,
    pair: tuple[Rationalist, FusedRationalist],
    file: OnnxArtefact,
    tmp_path: Path,
) -> None:
    model, path = pair[1], tmp_path / "low.onnx"
    quantize(file.path, path, precision=precision)
    with OnnxRunner(path, threads=1) as runner:
        for inputs in batches(model):
            found = runner.run(inputs)
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            view = model.predictor.encoder.view(tensors)
            score = torch.from_numpy(found.selection_score)[:, model.token_offset :]
            assert view.unit is not None
            assert torch.equal(score.gather(1, view.unit)[view.selectable], score[view.selectable])
            budget = pair[0].budget(view)
            keep = keep_units(score, view.selectable, budget, view.unit)
            mask = torch.from_numpy(found.rationale_mask)[:, model.token_offset :]
            assert torch.equal(mask, keep)


def test_the_masked_form_and_pairs_keep_the_same() -> None:
    for kind, model in FUSED.items():
        inputs = texts([9, 30], 3)
        keep = model(*inputs.values())[1]
        assert torch.equal(masked_form(model)(*inputs.values())[1], keep)
        both = fuse_pair(model, fused(text_model(type(_units_of(model)))))
        assert torch.equal(both(*inputs.values())[1], keep), kind
    with pytest.raises(UsageError, match="differ in rationale_unit"):
        fuse_pair(FUSED["word"], FUSED["sentence"])


def _units_of(model: FusedRationalist) -> TextUnits:
    encoder = model.predictor.encoder
    assert isinstance(encoder, BertEncoder)
    assert encoder.units is not None
    return encoder.units


def test_the_fuse_report_counts_what_was_cut() -> None:
    """Texts without any full stop are one sentence, longer than the budget."""
    inputs = texts([12, 20, 6], 0)
    ids = inputs["input_ids"].clone()
    ids[:2] = torch.where(ids[:2] >= 20, 5, ids[:2])
    ids[2, 1:7] = torch.tensor([5, 21, 5, 21, 5, 21])  # of two words each, the budget is two
    batch = Batch(inputs | {"input_ids": ids}, torch.tensor([0, 1, 2]), torch.arange(3))
    report = fuse_report(MODELS["sentence"], FUSED["sentence"], lambda: [batch], draws=1)
    assert report.passed
    assert report.cut_units == 2
    kept = slot_count(12, 3, 10) + slot_count(20, 3, 10) + 2
    assert report.modes["top_k_gathered"].kept_share == pytest.approx(kept / 38)
    drawn = 38 * report.modes["sampled_bernoulli"].kept_share
    sentences = (12, 20, 2, 2, 2)  # drawn as a whole, whatever their length
    possible = {sum(size for i, size in enumerate(sentences) if n >> i & 1) for n in range(32)}
    assert round(drawn) in possible
    assert drawn == pytest.approx(round(drawn))
