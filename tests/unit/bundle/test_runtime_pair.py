"""What the Python runtime shows of two students: what was read, and what was consulted."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rekd_edge.bundle import BundleManifest
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.convert import convert_to_onnx, load_target
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.fuse import FusedRationalist, fuse_pair

runtime = load_runtime()
TEXT = "a good but long film"  # [CLS] a good but long film [SEP]
TOKENS = 7


@pytest.fixture
def answer(
    make_bundle: Callable[..., BundleManifest],
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Answers :data:`TEXT` from a bundle whose model always keeps and reads the given tokens."""

    def predict(*, kept: set[int], read: set[int], case: int) -> Any:
        tokens = range(TOKENS)
        made = {
            "logits": (TensorProto.FLOAT, [1, 3], [0.0, 2.0, 0.0]),
            "rationale_mask": (TensorProto.BOOL, [1, TOKENS], [t in kept for t in tokens]),
            "selection_score": (TensorProto.FLOAT, [1, TOKENS], [float(t) for t in tokens]),
            "selection_margin": (TensorProto.FLOAT, [1], [1.0]),
            "answer_mask": (TensorProto.BOOL, [1, TOKENS], [t in read for t in tokens]),
            "case": (TensorProto.INT64, [1], [case]),
        }
        nodes, outputs = [], []
        for name, (dtype, shape, values) in made.items():
            value = helper.make_tensor(name, dtype, shape, values)
            nodes.append(helper.make_node("Constant", [], [name], value=value))
            outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "token"])
            for name in ("input_ids", "attention_mask")
        ]
        graph = helper.make_graph(nodes, "constant", inputs, outputs)
        opsets = [helper.make_opsetid("", 20)]
        file = tmp_path / "m.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(file))
        make_bundle(tmp_path / "bundle", file, bundled_text_model, bundled_text_preprocessor)
        return runtime.Rationalist.load(tmp_path / "bundle").predict([TEXT])[0]

    return predict


def words(spans: Any) -> list[str]:
    return [span.text for span in spans]


def test_the_answer_shows_what_was_read_and_what_was_consulted(answer: Any) -> None:
    found = answer(kept={2, 4, 5}, read={2, 5}, case=1)
    assert words(found.rationale) == ["good", "long", "film"]
    assert words(found.answer_rationale) == ["good", "film"]
    assert words(found.consulted) == ["long"]
    assert found.case == "first_convinces"
    document = found.to_json()
    assert document["case"] == "first_convinces"
    assert [span["text"] for span in document["consulted"]] == ["long"]
    head, body = runtime.describe(found, color=False).splitlines()
    assert body == "a [good] but (long) [film]"
    assert "from 3 of 5 tokens" in head
    assert "two students: first convinces" in head
    assert "\x1b[4mlong\x1b[0m" in runtime.describe(found, color=True)


def test_two_students_of_one_rationale_consult_nothing(answer: Any) -> None:
    found = answer(kept={2}, read={2}, case=0)
    assert found.consulted == ()
    assert runtime.describe(found, color=False).splitlines()[1] == "a [good] but long film"


@pytest.mark.parametrize(
    ("kept", "read", "case"), [({2}, {2}, 4), ({2}, {2}, -1), ({2}, {2, 3}, 0)]
)
def test_a_decision_that_cannot_be_is_refused(
    answer: Any, kept: set[int], read: set[int], case: int
) -> None:
    with pytest.raises(runtime.IntegrityError, match="did not keep"):
        answer(kept=kept, read=read, case=case)


def test_a_student_alone_has_no_such_parts(text_bundle: Path) -> None:
    (found,) = runtime.Rationalist.load(text_bundle).predict(["good film"])
    assert found.case is None
    assert found.answer_rationale is None
    assert found.consulted is None
    assert "two students" not in runtime.describe(found, color=False)


@pytest.fixture
def pair_bundle(
    make_bundle: Callable[..., BundleManifest],
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> Path:
    """A student with a partner that scores words and classes otherwise."""
    partner = copy.deepcopy(bundled_text_model)
    torch.manual_seed(1)
    for head in (partner.selector.head, partner.predictor.head):
        torch.nn.init.normal_(head.weight)
    pair = fuse_pair(bundled_text_model, partner)
    file = tmp_path / "m.onnx"
    convert_to_onnx(pair, pair.io_spec(), file, target=load_target("onnx"), metadata={})
    make_bundle(tmp_path / "bundle", file, pair, bundled_text_preprocessor)
    return tmp_path / "bundle"


def test_a_pair_answers_in_batches_as_it_does_alone(pair_bundle: Path) -> None:
    model = runtime.Rationalist.load(pair_bundle, threads=1)
    assert model.takes_batches
    vocabulary = ["a", "dull", "but", "witty", "film", "that", "is", "never", "good", "or", "long"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 20))) for _ in range(60)]
    encoded = [model.encode(text) for text in texts]
    together = model.run_encoded(encoded)
    cases = set()
    for one, beside in zip(encoded, together, strict=True):
        (alone,) = model.run_encoded([one])
        assert beside.logits == pytest.approx(alone.logits, abs=1e-4)
        assert beside.case == alone.case
        for name in ("kept", "read"):
            mine, theirs = getattr(beside, name), getattr(alone, name)
            assert mine.shape == (one.tokens,)
            assert (mine == theirs).all()
        mine, theirs = model.decode(one, beside), model.decode(one, alone)
        assert words(mine.answer_rationale) == words(theirs.answer_rationale)
        assert words(mine.consulted) == words(theirs.consulted)
        cases.add(alone.case)
    assert {"agree"} < cases
    assert any(one.read.sum() < one.kept.sum() for one in together)


def test_the_runtime_numbers_the_cases_as_the_model_does() -> None:
    from rekd_edge.models.interactive import CASES

    assert runtime.CASES == CASES
