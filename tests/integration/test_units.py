"""Whole words, sentences and regions from a recipe to the answer of the shipped runtime."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.export_pipeline import export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.report.content import Box, Regions
from rekd_edge.report.page import rows, text_segments
from rekd_edge.report_pipeline import build_report
from rekd_edge.run_folder import Run
from tests.changed_bundle import with_config

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
    shown = build_report([run.path, bundle], examples=4).content
    assert shown.unit == "sentence"
    assert shown.examples == 4
    for example in (example for group in shown.groups for example in group.examples):
        for answer in example.answers:
            pieces, whole = (text_segments(example, answer, whole=w) for w in (False, True))
            assert "".join(one.text for one in whole) == example.text
            marked = [one.text for one in whole if one.state != "none"]
            assert len(marked) < len([one for one in pieces if one.state != "none"])
            # Whole from its beginning; what is longer than the budget, or cut off with the text,
            # has no end.
            before = ["".join(one.text for one in whole[:i]).rstrip() for i in range(len(whole))]
            starts = [b for b, one in zip(before, whole, strict=True) if one.state != "none"]
            assert all(not text or text[-1] in ".!?\"'" for text in starts), marked
    model = load_runtime().Rationalist.load(bundle, threads=1)
    sentences = ("I liked it a lot .", "It was long !", "We went home .")
    (answer,) = model.predict([" ".join(sentences)])
    read = {span.text for span in answer.rationale}
    whole = [set(sentence.split()) for sentence in sentences]
    assert any(read == words for words in whole)  # seven tokens of 14 hold one of them


REGIONS = [
    "rationale_unit=region",
    "rationale_ratio=0.6",
    "task=extract",
    "student.train.warmup.selector=none",
]


@pytest.fixture(scope="module")
def of_regions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    return exported("image", REGIONS, tmp_path_factory.mktemp("regions"))


def test_regions(of_regions: tuple[Run, Path]) -> None:
    run, bundle = of_regions
    assert open_bundle(bundle).config.region_size == 2
    assert (run.report("fuse") or {})["modes"]["top_k_gathered"]["kept_share"] == 0.5
    model = load_runtime().Rationalist.load(bundle, threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (answer,) = model.predict([picture])
    kept = answer.rationale_mask
    assert set(kept.reshape(2, 2, 2, 2).sum(axis=(1, 3)).flatten().tolist()) <= {0, 4}
    assert kept.sum() == 8


def test_a_page_draws_and_counts_whole_regions(of_regions: tuple[Run, Path]) -> None:
    run, bundle = of_regions
    made = build_report([run.path, bundle], examples=6)
    assert made.content.regions == Regions(size=2, kept=2, total=4)
    assert "keeps 2 of its 4 regions (blocks of 2 x 2 patches)" in made.page
    model = load_runtime().Rationalist.load(bundle, threads=1)
    shown = [example for group in made.content.groups for example in group.examples]
    assert len(shown) == 6
    for example in shown:
        (device,) = model.predict([run.data().test.raw(example.index)])
        for answer in example.answers:
            assert (answer.kept, answer.candidates, len(answer.evidence)) == (2, 4, 2)
            drawn = np.zeros((4, 4), dtype=bool)
            for box in answer.evidence:
                assert isinstance(box, Box)
                assert (box.width, box.height) == (0.5, 0.5)
                top, left = int(box.y * 4), int(box.x * 4)
                drawn[top : top + 2, left : left + 2] = True
            if answer.model == "bundle (fp32)":
                assert (drawn.flatten() == device.rationale_mask.flatten()).all()
    panels = sum(len(rows(example)) for example in shown)
    # Two boxes for each panel, and the legend's.
    assert len(re.findall('<rect class="patch (kept|both|only)"', made.page)) == 2 * panels + 2
    named = re.findall(r'aria-label="[^"]* kept (\d+ of \d+ \w+) of test image ([^"]*)"', made.page)
    assert [counted for counted, _ in named] == ["2 of 4 regions"] * panels
    assert all(places.count(" % from the left") == 2 for _, places in named)
    assert made.page.count('<p class="answer-foot">2 of 4 regions</p>') == panels
    assert "equal to the last region" in made.page
    assert "whole regions of 2 x 2 patches" in made.page


def test_a_page_of_a_bundle_alone_says_how_many_regions_are_kept(
    of_regions: tuple[Run, Path], tmp_path: Path
) -> None:
    alone = shutil.copytree(of_regions[1], tmp_path / "alone")
    made = build_report([alone])
    assert made.content.lineages[0].stages[0].kind == "recipe"
    assert made.content.groups == ()
    assert made.content.regions == Regions(size=2, kept=2, total=4)
    assert "keeps 2 of its 4 regions (blocks of 2 x 2 patches)" in made.page


def test_a_file_that_keeps_parts_of_regions_is_not_shown(
    of_regions: tuple[Run, Path], tmp_path: Path
) -> None:
    """As one whose config.json states another size."""
    run, bundle = of_regions
    other = with_config(bundle, tmp_path / "other", region_size=4)
    content = build_report([run.path, other], examples=2).content
    assert [note for note in content.notes if "parts of regions" in note]
    sources = {result.name: result.source for result in content.results}
    assert sources["other (fp32)"] == "check report of other (fp32)"
    assert content.groups == ()
