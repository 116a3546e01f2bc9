"""Selector and predictor as plain models: other libraries open them and answer the same."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import pipeline
from typer.testing import CliRunner

from rekd_edge import plain_models
from rekd_edge.cli.app import app
from rekd_edge.data import load_data
from rekd_edge.distill.checkpoint import save_model
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.build import build_classifier, build_rationalist
from rekd_edge.models.rationalist import BlockSelector, Classifier, Rationalist
from rekd_edge.plain_models import PlainModels, write_plain_models
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.dump import dump_recipe
from rekd_edge.run_folder import Run, open_run

COUNT = 100
REGISTERS = "random:vit_small_patch14_reg4_dinov2"


def make_run(folder: Path, recipe_name: str, *overrides: str) -> Run:
    """A run folder as training leaves it, with random weights, heads included."""
    alone = () if any("task" in one for one in overrides) else ("task=extract", "teacher=null")
    recipe = load_recipe(find_recipe(recipe_name), [*alone, *overrides])
    labels = ("negative", "positive") if recipe.modality == "text" else tuple("abcdefghij")
    torch.manual_seed(0)
    roles: dict[str, Any] = {"student": recipe.student, "teacher": recipe.teacher}
    for role, spec in roles.items():
        if spec is None:
            continue
        build = build_classifier if recipe.task == "classify" else build_rationalist
        built = build(spec, recipe, len(labels))
        torch.nn.init.normal_(built.model.predictor.head.weight)
        if isinstance(built.model, Rationalist):
            torch.nn.init.normal_(built.model.selector.head.weight)
        save_model(folder / role / "best" / "model.safetensors", built.model)
        place = "preprocessor" if role == "student" else "teacher_preprocessor"
        (folder / place).mkdir()
        built.preprocessor.save(folder / place)
    (folder / "recipe.resolved.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    return open_run(folder)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    test = load_data(load_recipe(find_recipe("smoke/text"), [f"data.limit.test={COUNT}"])).test
    return [str(test.raw(position)) for position in range(COUNT)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    test = load_data(load_recipe(find_recipe("smoke/image"), [f"data.limit.test={COUNT}"])).test
    return [np.asarray(test.raw(position)) for position in range(COUNT)]


def batches(run: Run, raw: list[Any]) -> list[dict[str, Tensor]]:
    return [encode(run, raw[start : start + 25]) for start in range(0, COUNT, 25)]


def encode(run: Run, raw: list[Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(v) for name, v in run.preprocessor.encode(raw).items()}


def kept_parts(result: PlainModels) -> dict[str, str]:
    return {part.name: part.model for part in result.parts}


def close(found: Tensor, expected: Tensor) -> bool:
    assert float(expected.std()) > 1e-3  # the inputs are told apart
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


TEXT = {
    "mean": (),
    "cls": ("student.predictor.pooling=cls",),
    "published": (
        "student.predictor.pooling=cls",
        "student.selector.head_dropout=0.2",
        "student.selector.head_init=xavier",
    ),
}


@pytest.mark.parametrize("overrides", TEXT.values(), ids=TEXT)
@torch.no_grad()
def test_texts_open_in_transformers(
    tmp_path: Path, texts: list[str], overrides: tuple[str, ...]
) -> None:
    run = make_run(tmp_path / "run", "smoke/text", *overrides)
    result = write_plain_models(run, tmp_path / "plain")
    assert kept_parts(result) == dict.fromkeys(
        ("selector", "predictor"), "BertForTokenClassification"
    )
    trained = run.student()
    opened = {
        name: transformers.BertForTokenClassification.from_pretrained(tmp_path / "plain" / name)
        for name in ("selector", "predictor")
    }
    assert opened["predictor"].config.id2label == {0: "negative", 1: "positive"}
    assert opened["selector"].config.id2label == {0: "drop", 1: "keep"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain" / "predictor")
    ids = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    for row, batch in enumerate(batches(run, texts)):
        width = batch["input_ids"].shape[1]
        assert torch.equal(ids["input_ids"][25 * row : 25 * (row + 1), :width], batch["input_ids"])
        scores = trained.selector(batch)
        logits = opened["selector"](**batch).logits[:, 1:]
        attended = scores.view.attended
        assert close((logits[..., 1] - logits[..., 0])[attended], scores.score[attended])
        per_token = opened["predictor"](**batch).logits
        if trained.predictor.pooling == "cls":
            found = per_token[:, 0]
        else:
            weight = batch["attention_mask"].unsqueeze(2)
            found = (per_token * weight).sum(1) / weight.sum(1)
        assert close(found, Classifier(trained.predictor)(batch))


@torch.no_grad()
def test_a_selector_with_a_hidden_layer_keeps_its_head_beside_it(
    tmp_path: Path, texts: list[str]
) -> None:
    run = make_run(tmp_path / "run", "smoke/text", "student.selector.head_width=16")
    result = write_plain_models(run, tmp_path / "plain")
    assert kept_parts(result)["selector"] == "BertModel"
    folder = tmp_path / "plain" / "selector"
    opened = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    head = load_file(folder / "head.safetensors")
    trained = run.student()
    batch = batches(run, texts)[0]
    hidden = opened(**batch).last_hidden_state[:, 1:] @ head["hidden.weight"].T
    logits = (hidden + head["hidden.bias"]).relu() @ head["weight"].T + head["bias"]
    scores = trained.selector(batch)
    found = (logits[..., 1] - logits[..., 0])[scores.view.attended]
    assert close(found, scores.score[scores.view.attended])


IMAGES = {
    "mean": ("smoke/image",),
    "cls": (
        "smoke/image",
        "student.predictor.pooling=cls",
        "student.predictor.final_norm=false",
    ),
    "no-class-token": (
        "smoke/image",
        'student.predictor.weights=["random:test_vit2"]',
        'student.selector.weights=["random:test_vit3"]',
    ),
    "registers": (
        "smoke/image",
        "data.image_size=56",
        f'student.predictor.weights=["{REGISTERS}"]',
        f'student.selector.weights=["{REGISTERS}"]',
    ),
    "low-resolution": ("smoke/image", "student.selector.resolution=0.5"),
    "convolution": (
        "smoke/image-conv",
        "student.predictor.depth=null",
        "student.selector.depth=null",
        'student.predictor.weights=["random:resnet10t"]',
        'student.selector.weights=["random:resnet10t"]',
    ),
}


@pytest.mark.parametrize(
    ("name", "overrides"), [(o[0], o[1:]) for o in IMAGES.values()], ids=IMAGES
)
@torch.no_grad()
def test_images_open_in_timm(
    tmp_path: Path, images: list[np.ndarray], name: str, overrides: tuple[str, ...]
) -> None:
    run = make_run(tmp_path / "run", name, *overrides)
    result = write_plain_models(run, tmp_path / "plain")
    assert set(kept_parts(result)) == {"selector", "predictor"}
    opened: dict[str, Any] = {
        part: timm.create_model(f"local-dir:{tmp_path / 'plain' / part}", pretrained=True).eval()
        for part in ("selector", "predictor")
    }
    trained = run.student()
    selector = trained.selector
    assert isinstance(selector, BlockSelector)
    head = load_file(tmp_path / "plain" / "selector" / "head.safetensors")
    for batch in batches(run, images):
        pixels = batch["pixel_values"]
        logits = opened["predictor"](pixels)
        if (tmp_path / "plain" / "predictor" / "head.safetensors").exists():
            tail = load_file(tmp_path / "plain" / "predictor" / "head.safetensors")
            pooled = torch.cat([logits[:, :1], logits[:, 5:]], dim=1).mean(dim=1)
            logits = pooled @ tail["weight"].T + tail["bias"]
        assert close(logits, Classifier(trained.predictor)(batch))
        if name == "smoke/image-conv" or "student.selector.resolution=0.5" in overrides:
            continue  # the scores are resampled behind the head; compared in write_plain_models
        tokens = opened["selector"](pixels)
        tokens = tokens[:, tokens.shape[1] - selector.encoder.grid[0] ** 2 :]  # type: ignore[union-attr]
        scores = tokens @ head["weight"].T + head["bias"]
        assert close(scores[..., 1] - scores[..., 0], selector(batch).score)


@torch.no_grad()
def test_todays_pipelines_open_both(
    tmp_path: Path, texts: list[str], images: list[np.ndarray]
) -> None:
    text_run = make_run(tmp_path / "text", "smoke/text")
    image_run = make_run(tmp_path / "image", "smoke/image")
    write_plain_models(text_run, tmp_path / "texts")
    write_plain_models(image_run, tmp_path / "images")
    text = texts[0]
    made = pipeline("token-classification", model=str(tmp_path / "texts" / "selector"))
    answers: list[dict[str, Any]] = made(text)
    logits = text_run.student().selector(encode(text_run, [text])).logits
    keep = logits[0].argmax(dim=1)[:-1]  # without [SEP]
    assert [answer["entity"] == "keep" for answer in answers] == [bool(k) for k in keep]
    assert "".join(text[a["start"] : a["end"]] for a in answers) == "".join(text.split())
    model = pipeline("image-classification", model=str(tmp_path / "images" / "predictor"))
    found = {row["label"]: row["score"] for row in model(Image.fromarray(images[0]), top_k=10)}
    logits = Classifier(image_run.student().predictor)(encode(image_run, images[:1]))
    expected = logits.softmax(1)[0]
    assert close(torch.tensor([found[name] for name in image_run.label_names]), expected)


def test_light_selectors_are_left_out_and_the_reason_is_said(tmp_path: Path) -> None:
    for kind, reason in (("convolution", "convolutions"), ("shared", "first blocks")):
        run = make_run(tmp_path / kind, "smoke/text", f"student.selector.kind={kind}")
        output = tmp_path / f"plain-{kind}"
        done = CliRunner().invoke(
            app, ["weights", str(run.path), "--output", str(output), "--json", "-"]
        )
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        assert [part["name"] for part in result["parts"]] == ["predictor"]
        assert reason in result["left_out"]["selector"]
        assert reason in (output / "README.md").read_text(encoding="utf-8")
        assert not (output / "selector").exists()


def test_a_run_without_any_plain_part_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "smoke/image-conv")
    with pytest.raises(UsageError, match="no part of the student") as caught:
        write_plain_models(run, tmp_path / "plain")
    assert "cut after feature level" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_teachers_and_plain_classifiers_have_theirs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "smoke/text", "task=distill")
    teacher = write_plain_models(run, tmp_path / "teacher", "teacher")
    assert len(teacher.parts) == 2
    blocks = transformers.AutoConfig.from_pretrained(tmp_path / "teacher" / "predictor")
    assert blocks.num_hidden_layers == 2
    plain = make_run(tmp_path / "plain", "smoke/text", "task=classify", "teacher=null")
    result = write_plain_models(plain, tmp_path / "classifier")
    assert kept_parts(result) == {"predictor": "BertForTokenClassification"}
    with pytest.raises(UsageError, match="has no teacher"):
        write_plain_models(plain, tmp_path / "none", "teacher")
    assert not (tmp_path / "none").exists()


def test_what_is_written_holds_no_pickle_and_can_be_read_by_others(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "smoke/text")
    before = os.umask(0o022)
    try:
        write_plain_models(run, tmp_path / "plain")
    finally:
        os.umask(before)
    files = {p.relative_to(tmp_path / "plain").as_posix() for p in tmp_path.glob("plain/**/*.*")}
    part = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert files == {
        "README.md",
        *(f"{folder}/{name}" for folder in ("selector", "predictor") for name in part),
    }
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o755


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "smoke/text")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_plain_models(run, tmp_path / "plain")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists"):
        write_plain_models(run, tmp_path / "link")
    assert not list((tmp_path / "plain").iterdir())
    with pytest.raises(UsageError, match="cannot write"):
        write_plain_models(run, run.path / "run.json" / "below")


def test_a_folder_that_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "smoke/text")
    save = plain_models._save_bert

    def forge(folder: Path, encoder: Any, head: Any, *rest: Any) -> None:
        save(folder, encoder, torch.nn.Linear(head.in_features, head.out_features), *rest)

    monkeypatch.setattr(plain_models, "_save_bert", forge)
    with pytest.raises(IntegrityError, match="does not answer"):
        write_plain_models(run, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "smoke/text")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plain_models, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_plain_models(run, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
