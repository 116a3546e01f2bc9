from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe.latency_file import load_latency
from rekd_edge.recipe.suite_file import load_suite, row_recipes

SUITES = Path(__file__).parents[3] / "benchmarks" / "suites"
WHOLE = """schema_version: 1
name: trial
recipe: smoke/text
rows:
  - name: ours
  - name: plain
    overrides: [task=classify]
candidates:
  - {name: plain, run: plain, form: plain}
  - {name: ours, run: ours, form: gathered, targets: [onnx, onnx-int8]}
  - name: power
    run: plain
    form: peer
    peer: {kind: power, share: 0.5, fine_tune: {epochs: 1, teacher: ours}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_a_suite_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    ((folder, (spec, file)),) = load_latency(path).items()
    assert (folder, file) == (".", path)
    assert (spec.threads, spec.batch, spec.seed) == ((1, 2), (1, 8), 0)
    assert spec.reference.name == "plain"
    assert [candidate.targets for candidate in spec.candidates] == [
        ("onnx",),
        ("onnx", "onnx-int8"),
        ("onnx",),
    ]
    assert list(row_recipes(spec, tmp_path)) == ["ours", "plain"]


def test_parts_are_read_from_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    whole = tmp_path / "whole.yaml"
    whole.write_text(
        "schema_version: 1\nname: whole\nparts:\n  - {folder: a, suite: suite.yaml}\n"
        "  - {folder: b, suite: suite.yaml}\n"
    )
    assert list(load_latency(whole)) == ["a", "b"]
    whole.write_text(whole.read_text().replace("folder: b", "folder: a"))
    with pytest.raises(RecipeError, match="one folder: a"):
        load_latency(whole)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{name: ours, run", "{name: plain, run", "candidates with one name: plain"),
        ("run: plain, form: plain", "run: ours, form: gathered", "no candidate of form plain"),
        ("run: ours, form", "run: none, form", "candidate 'ours' names 'none', no row"),
        ("teacher: ours", "teacher: none", "candidate 'power' names 'none', no row"),
        ("- name: ours", "- name: latency", "cannot be called 'latency'"),
        ("form: peer\n    peer", "form: plain\n    peer", "belongs to form: peer"),
        ("    peer: {kind", "    per: {kind", "candidates[2].per"),
        ("[onnx, onnx-int8]", "[onnx, onnx]", "a target twice"),
        ("share: 0.5", "share: 1.5", "candidates[2].peer.share"),
        ("kind: power", "kind: pruning", "candidates[2].peer.kind"),
        (
            "power, share: 0.5, fine_tune: {epochs: 1, teacher: ours}",
            "shallow, share: 0.5",
            "needs",
        ),
        ("rows:", "threads: [1, 1]\nrows:", "threads must be distinct"),
        ("rows:", "batch: [0]\nrows:", "batch must be distinct"),
        ("- name: ours\n", "- name: plain\n", "rows with one name: plain"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in WHOLE
    with pytest.raises(RecipeError) as error:
        load_latency(write(tmp_path, WHOLE.replace(old, new, 1)))
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_latency(tmp_path / "none.yaml")


def shipped() -> list[tuple[str, str]]:
    return [
        ("latency-text", "accuracy-text"),
        ("latency-text", "selectors"),
        ("latency-cifar10-cpu", "accuracy-cifar10-cpu"),
        ("latency-cifar10-cpu", "selectors-cifar10-cpu"),
    ]


@pytest.mark.parametrize(("name", "other"), shipped())
def test_the_shipped_suites_use_the_runs_of_the_accuracy_suites(name: str, other: str) -> None:
    (spec, file), *_ = load_latency(SUITES / f"{name}.yaml").values()
    path = SUITES / f"{other}.yaml"
    mine = row_recipes(spec, file.parent)
    theirs = row_recipes(load_suite(path), path.parent)
    shared = mine.keys() & theirs.keys()
    assert {"cheap", "full"} <= shared
    assert [row for row in shared if mine[row] != theirs[row]] == []


def test_the_shipped_table_holds_every_alternative() -> None:
    parts = load_latency(SUITES / "latency.yaml")
    assert set(parts) == {"accuracy-text", "accuracy-cifar10-cpu"}
    everywhere = {"plain", "masked", "gathered", "peer"}
    peers = {"text": {"power", "truncate"}, "cifar10-cpu": {"evit", "tome", "dynamicvit"}}
    for spec, path in parts.values():
        assert spec.name == path.stem
        assert {candidate.form for candidate in spec.candidates} == everywhere
        assert spec.threads == (1, 2)
        assert spec.batch == (1, 8)
        found = {one.peer.kind for one in spec.candidates if one.peer is not None}
        assert found == peers[path.stem.removeprefix("latency-")] | {"shallow"}
        used = {candidate.run for candidate in spec.candidates}
        assert used == {row.name for row in spec.rows}
        recipes = row_recipes(spec, path.parent)
        assert len({recipe.data.model_dump_json() for recipe in recipes.values()}) == 1
