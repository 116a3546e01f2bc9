"""A teacher of another tokenizer, patch size, resolution or architecture, through whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from rekd_edge.bench import BenchSettings
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import bench_bundle, check_bundle, export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run, open_run

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)


@pytest.fixture(scope="module")
def conv_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A ViT on 4 x 4 patches of 64 pixels teaches a convolution on 3 x 3 patches of 48."""
    path = tmp_path_factory.mktemp("conv") / "run"
    changes = ["student.selector.patch_size=16", "student.predictor.patch_size=16"]
    return train_run(load_recipe(find_recipe("smoke/image-conv"), changes), path, device="cpu")


def test_a_vit_teaches_a_convolution_that_is_exported_and_checked(
    conv_run: Run, tmp_path: Path
) -> None:
    report, fuse = conv_run.report("distill"), conv_run.report("fuse")
    assert report is not None
    assert fuse is not None
    assert fuse["passed"]
    assert fuse["masked_gathered_difference"] == 0.0
    assert 0 <= report["agreement_with_teacher"]["rationale_jaccard"] <= 1
    assert isinstance(conv_run.preprocessor, ImagePreprocessor)
    assert isinstance(conv_run.teacher_preprocessor, ImagePreprocessor)
    assert conv_run.preprocessor.image_size == 48
    assert conv_run.teacher_preprocessor.image_size == 64
    result = export_bundle(conv_run, output=conv_run.path / "bundle", threads=1)
    assert result.passed, result.reasons
    assert result.report is not None
    assert result.report.structural is not None
    assert result.report.numerical is not None
    assert result.report.structural.gated_reads == ("pixel_values",)
    assert result.report.numerical.changed_examples == 0
    assert result.report.numerical.max_change == 0.0
    assert result.report.numerical.control_changed == 1.0
    # The teacher is measured on its own form of the same images.
    teacher = report["teacher"]["test"]["accuracy"]
    assert result.report.accuracy["teacher"].overall == pytest.approx(teacher)
    checked, _ = check_bundle(result.path, threads=1)
    assert checked.passed, checked.failures
    bench = bench_bundle(result.path, settings=QUICK, threads=1)
    assert list(bench.candidates) == ["gathered", "plain", "masked"]

    picture = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    runtime = result.path / "runtime" / "rekd_runtime.py"
    done = subprocess.run(
        [sys.executable, str(runtime), str(picture), "--no-overlay", "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["predictions"]
    assert answer["grid"] == 3
    assert len(answer["rationale"]) == 3  # a quarter of nine, rounded up
    assert {box["width"] for box in answer["rationale"]} == {32.0}  # 16 of 48 pixels, of 96


class InterruptAfter(Silent):
    """Raises KeyboardInterrupt after a number of steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_convolution_resumes_with_its_batch_statistics(
    conv_run: Run, tmp_path: Path
) -> None:
    recipe = conv_run.recipe
    with pytest.raises(KeyboardInterrupt):  # three phases of the teacher, then the student's joint
        train_run(recipe, tmp_path / "run", device="cpu", listener=InterruptAfter(12 + 11))
    train_run(recipe, tmp_path / "run", device="cpu", resume=True)
    file = Path("student") / "best" / "model.safetensors"
    expected, found = load_file(conv_run.path / file), load_file(tmp_path / "run" / file)
    assert any(name.endswith("running_mean") for name in expected)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_loaded_teacher_keeps_its_own_resolution(conv_run: Run, tmp_path: Path) -> None:
    changes = [
        f"teacher.run={conv_run.path}",
        "teacher.image_size=null",
        "data.image_size=32",
        "student.selector.patch_size=8",
        "student.predictor.patch_size=8",
        "student.train.warmup.selector=teacher_gradient",
    ]
    recipe = load_recipe(find_recipe("smoke/image-conv"), changes)
    run = train_run(recipe, tmp_path / "run", device="cpu")
    report, first = run.report("distill"), conv_run.report("distill")
    assert report is not None
    assert first is not None
    assert report["teacher"]["test"] == first["teacher"]["test"]
    assert isinstance(run.teacher_preprocessor, ImagePreprocessor)
    assert run.teacher_preprocessor.image_size == 64
    # A third run that names this one gets the same teacher, read as it must be.
    assert run.teacher_preprocessor.fingerprint == conv_run.teacher_preprocessor.fingerprint


@pytest.fixture(scope="module")
def piece_bert(piece_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT over pieces of one or two letters, as `save_pretrained` would leave it."""
    folder = tmp_path_factory.mktemp("piece-bert")
    torch.manual_seed(0)
    words = Tokenizer.from_file(str(piece_tokenizer)).get_vocab_size()
    config = BertConfig(
        vocab_size=words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    save_file(BertModel(config, add_pooling_layer=False).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    (folder / "tokenizer.json").write_bytes(piece_tokenizer.read_bytes())
    return folder


def piece_recipe(folder: Path, *more: str) -> list[str]:
    return [
        f"teacher.selector.weights=['path:{folder}']",
        f"teacher.predictor.weights=['path:{folder}']",
        *more,
    ]


@pytest.fixture(scope="module")
def text_run(piece_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("pieces") / "run"
    recipe = load_recipe(find_recipe("smoke/text"), piece_recipe(piece_bert))
    return train_run(recipe, path, device="cpu")


def test_a_teacher_of_other_words_teaches_and_the_student_is_exported(text_run: Run) -> None:
    report = text_run.report("distill")
    assert report is not None
    assert set(report["agreement_with_teacher"]) == {
        "label_agreement",
        "rationale_exact",
        "rationale_jaccard",
    }
    assert isinstance(text_run.teacher_preprocessor, TextPreprocessor)
    assert text_run.teacher_preprocessor.fingerprint != text_run.preprocessor.fingerprint
    result = export_bundle(text_run, output=text_run.path / "bundle", twins=False, threads=1)
    assert result.passed, result.reasons
    assert result.report is not None
    teacher = report["teacher"]["test"]["accuracy"]
    assert result.report.accuracy["teacher"].overall == pytest.approx(teacher)


@pytest.mark.parametrize(
    "changes",
    [
        ["student.train.warmup.selector=teacher_gradient"],
        [
            "objective.name=paper",
            "objective.select_special=false",
            "objective.count_padding=false",
            "student.train.warmup.selector=teacher_and_own",
        ],
    ],
)
def test_every_way_of_learning_from_other_words(
    text_run: Run, tmp_path: Path, changes: list[str]
) -> None:
    recipe = load_recipe(find_recipe("smoke/text"), [f"teacher.run={text_run.path}", *changes])
    run = train_run(recipe, tmp_path / "run", device="cpu")
    lines = (run.path / "student" / "log.jsonl").read_text().splitlines()
    joint = [json.loads(line) for line in lines if '"joint"' in line]
    assert joint[-1]["kl_rationale"] > 0
    report, first = run.report("distill"), text_run.report("distill")
    assert report is not None
    assert first is not None
    assert report["teacher"]["test"] == first["teacher"]["test"]


def test_padding_and_special_tokens_of_other_words_are_not_compared(
    text_run: Run, tmp_path: Path
) -> None:
    changes = [f"teacher.run={text_run.path}", "objective.name=paper"]
    recipe = load_recipe(find_recipe("smoke/text"), changes)
    with pytest.raises(UsageError, match="of another tokenizer"):
        train_run(recipe, tmp_path / "run", device="cpu")


def test_a_resumed_run_finds_its_teacher_again(text_run: Run) -> None:
    again = open_run(text_run.path)
    assert again.teacher() is not None
    assert again.teacher_preprocessor.fingerprint == text_run.teacher_preprocessor.fingerprint
    run = train_run(text_run.recipe, text_run.path, device="cpu", resume=True)
    before, after = text_run.report("distill"), run.report("distill")
    assert before is not None
    assert after is not None
    assert after["agreement_with_teacher"] == before["agreement_with_teacher"]


def test_teachers_of_other_labels_or_data_are_refused(
    conv_run: Run, text_run: Run, tmp_path: Path
) -> None:
    recipe = load_recipe(find_recipe("smoke/text"), [f"teacher.run={conv_run.path}"])
    with pytest.raises(UsageError, match=r"knows the labels airplane, .*have negative, positive"):
        train_run(recipe, tmp_path / "labels", device="cpu")
    stated = tmp_path / "relabelled"
    stated.mkdir()
    for name in ("recipe.resolved.yaml", "run.json"):
        (stated / name).write_bytes((conv_run.path / name).read_bytes())
    (stated / "labels.json").write_text(json.dumps(list(text_run.label_names)))
    recipe = load_recipe(find_recipe("smoke/text"), [f"teacher.run={stated}"])
    with pytest.raises(UsageError, match="reads image; this recipe's data are text"):
        train_run(recipe, tmp_path / "modality", device="cpu")
