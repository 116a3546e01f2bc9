"""Whole words, sentences and regions from a recipe to the answer of the shipped runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.export_pipeline import export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.report.page import text_segments
from rekd_edge.report_pipeline import build_report
from rekd_edge.run_folder import Run

SHORT = ["data.limit={train: 32, dev: 16, test: 16}"]


def exported(name: str, changes: list[str], folder: Path) -> tuple[Run, Path]:
    """A bundle of a smoke recipe, all of whose gates have passed."""
    recipe = load_recipe(find_recipe(f"smoke/{name}"), [*SHORT, *changes])
    run = train_run(recipe, folder / "run", device="cpu")
    result = export_bundle(run, output=folder / "bundle", threads=1, twins=False)
    assert result.passed, result.reasons
    assert result.report is not None
    assert result.report.numerical is not None
    assert result.report.numerical.mask_mismatches == 0
    assert result.report.metrics["rationale_exact"] == 1.0
    config = json.loads((result.path / "config.json").read_text(encoding="utf-8"))
    assert config["rationale_unit"] == recipe.rationale_unit
    assert open_bundle(result.path).config.rationale_unit == recipe.rationale_unit
    assert f"whole {recipe.rationale_unit}s" in (result.path / "README.md").read_text("utf-8")
    return run, result.path


def test_words(tmp_path: Path) -> None:
    changes = ["rationale_unit=word", "task=extract", "student.train.warmup.selector=mask_gradient"]
    run, bundle = exported("text", changes, tmp_path)
    fuse = run.report("fuse") or {}
    assert fuse["cut_units"] == 0
    model = load_runtime().Rationalist.load(bundle, threads=1)
    for text in ("It's an unwatchably overwrought remake, isn't it?", "Don't."):
        (answer,) = model.predict([text])
        assert answer.kept <= max(1, int(np.ceil(0.2 * answer.candidates)))
        for span in answer.rationale:
            assert span.word == span.text  # no piece of a word alone


def test_sentences(tmp_path: Path) -> None:
    changes = [
        "rationale_unit=sentence",
        "rationale_ratio=0.5",
        "data.source=planted-evidence",
        "data.max_length=64",
        "student.selector.kind=convolution",
    ]
    run, bundle = exported("text", changes, tmp_path)
    fuse = run.report("fuse") or {}
    assert 0 <= fuse["cut_units"] <= 16
    assert 0 < fuse["modes"]["top_k_gathered"]["kept_share"] <= 0.55
    shown = build_report([bundle], examples=4).content
    assert shown.unit == "sentence"
    for example in (example for group in shown.groups for example in group.examples):
        for answer in example.answers:
            pieces, whole = (text_segments(example, answer, whole=w) for w in (False, True))
            assert "".join(one.text for one in whole) == example.text
            marked = [one.text for one in whole if one.state != "none"]
            assert len(marked) < len([one for one in pieces if one.state != "none"])
            assert all(text[-1] in ".!?" for text in marked), marked
    model = load_runtime().Rationalist.load(bundle, threads=1)
    sentences = ("I liked it a lot .", "It was long !", "We went home .")
    (answer,) = model.predict([" ".join(sentences)])
    read = {span.text for span in answer.rationale}
    whole = [set(sentence.split()) for sentence in sentences]
    assert any(read == words for words in whole)  # seven tokens of 14 hold one of them


def test_regions(tmp_path: Path) -> None:
    changes = [
        "rationale_unit=region",
        "rationale_ratio=0.6",
        "task=extract",
        "student.train.warmup.selector=none",
    ]
    run, bundle = exported("image", changes, tmp_path)
    assert open_bundle(bundle).config.region_size == 2
    assert (run.report("fuse") or {})["modes"]["top_k_gathered"]["kept_share"] == 0.5
    model = load_runtime().Rationalist.load(bundle, threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (answer,) = model.predict([picture])
    kept = answer.rationale_mask
    assert set(kept.reshape(2, 2, 2, 2).sum(axis=(1, 3)).flatten().tolist()) <= {0, 4}
    assert kept.sum() == 8
