from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from rekd_edge.recipe import Recipe, dump_recipe, load_recipe
from rekd_edge.recipe.document import parse
from rekd_edge.recipe.schema import (
    DataSpec,
    LimitSpec,
    ObjectiveSpec,
    PredictorSpec,
    RationalistSpec,
    SelectorSpec,
    SplitSpec,
    TeacherSpec,
    TemperatureSpec,
    TrainSpec,
    WarmupSpec,
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
share = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-9, 1e9)
weights = st.lists(
    st.sampled_from(["random:bert-tiny", "hub:a/b", "path:/data/weights", "package:x"]),
    min_size=1,
    max_size=3,
).map(tuple)
maybe_count = st.none() | st.integers(2, 10**6)


def trains(*warmups: str) -> st.SearchStrategy[TrainSpec]:
    return st.builds(
        TrainSpec,
        epochs=st.integers(1, 100),
        learning_rate=positive,
        head_learning_rate=st.none() | positive,
        gradient_clip=st.none() | positive,
        precision=st.sampled_from(["no", "bf16", "fp16"]),
        lr_warmup_share=share,
        warmup=st.builds(WarmupSpec, selector=st.sampled_from(warmups)),
    )


selectors = st.builds(SelectorSpec, weights=weights, depth=st.none() | st.integers(1, 12))
predictors = st.builds(PredictorSpec, weights=weights, pooling=st.sampled_from(["cls", "mean"]))
temperatures = st.tuples(positive, positive).map(
    lambda pair: TemperatureSpec(start=max(pair), end=min(pair))
)
objectives = st.builds(
    ObjectiveSpec,
    name=st.sampled_from(["deploy", "paper"]),
    alpha=st.floats(0, 1),
    temperature=temperatures,
)
recipes = st.builds(
    Recipe,
    schema_version=st.just(1),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    description=text,
    task=st.just("distill"),
    modality=st.just("text"),
    seed=st.integers(0, 2**40),
    rationale_ratio=st.floats(1e-6, 1),
    data=st.builds(
        DataSpec,
        source=st.just("csv"),
        path=st.just("/data/examples.csv"),
        test_path=st.none() | st.just("/data/it's # a: test.csv"),
        text_column=text,
        label_column=text,
        labels=st.none() | st.lists(text, min_size=2, max_size=4, unique=True).map(tuple),
        split=st.builds(SplitSpec, dev=share, test=share),
        limit=st.builds(LimitSpec, train=maybe_count, dev=maybe_count),
    ),
    teacher=st.builds(
        TeacherSpec,
        selector=selectors,
        predictor=predictors,
        train=trains("none", "occlusion"),
        objective=objectives,
        run=st.none() | st.just("/runs/no"),
    ),
    student=st.builds(
        RationalistSpec, selector=selectors, predictor=predictors, train=trains("none", "teacher")
    ),
    objective=objectives,
)


def loaded(text: str, overrides: list[str] | None = None) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(text.encode("utf-8"))
        return load_recipe(path, overrides or [])


@settings(deadline=None, max_examples=30)
@given(recipes)
def test_dump_and_load_round_trip(recipe: Recipe) -> None:
    assert loaded(dump_recipe(recipe)) == recipe


edits = st.one_of(
    st.tuples(st.just("seed"), st.integers(0, 10**6)),
    st.tuples(st.just("description"), text),
    st.tuples(st.just("rationale_ratio"), st.floats(0.01, 1)),
    st.tuples(st.just("data.text_column"), text),
    st.tuples(st.just("data.labels"), st.just(["yes", "no"]) | st.none()),
    st.tuples(st.just("data.limit.train"), maybe_count),
    st.tuples(st.just("student.selector.depth"), st.none() | st.integers(1, 9)),
    st.tuples(st.just("student.train"), st.fixed_dictionaries({"epochs": st.integers(1, 9)})),
    st.tuples(st.just("teacher.train.precision"), st.sampled_from(["no", "bf16"])),
    st.tuples(st.just("objective.temperature.start"), st.floats(1e9, 1e10)),
)


def as_yaml(value: Any) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return json.dumps(value)  # other JSON is YAML


@settings(deadline=None, max_examples=30)
@given(recipes, st.lists(edits, min_size=1, max_size=4))
def test_an_override_equals_an_edit(recipe: Recipe, changes: list[tuple[str, Any]]) -> None:
    original = dump_recipe(recipe)
    edited: Any = YAML(typ="safe", pure=True).load(original)
    for key, value in changes:
        *parents, last = key.split(".")
        section = edited
        for parent in parents:
            section = section[parent]
        section[last] = value
    by_edit = Recipe.model_validate(edited)
    by_override = loaded(original, [f"{key}={as_yaml(value)}" for key, value in changes])
    assert by_override == by_edit


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_explained(text: str) -> None:
    tree, problems = parse(text, source="x", folder=Path("/"))
    assert tree is not None or problems
