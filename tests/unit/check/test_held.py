"""Exclusion from outside finds what a leak would change, and says where it could not look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rekd_edge.check import LabelledBatch
from rekd_edge.check.held import held_exclusion, some_of
from rekd_edge.check.inputs import Inputs
from rekd_edge.convert import OnnxArtefact
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import Outputs


def test_the_exported_models_hold(
    tiny_text_onnx: OnnxArtefact,
    tiny_image_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    image_batches: list[LabelledBatch],
) -> None:
    both: list[tuple[Path, list[LabelledBatch]]] = [
        (tiny_text_onnx.path, text_batches),
        (tiny_image_onnx.path, image_batches),
    ]
    for path, batches in both:
        with OnnxRunner(path, threads=1) as runner:
            found = held_exclusion(runner, [batch.inputs for batch in batches])
        assert found.held > found.examples // 2
        assert found.replaced_positions > found.held
        assert (found.changed_examples, found.max_change) == (0, 0.0)
        assert found.control_held > 0
        assert found.control_changed == 1.0
        assert set(found.metrics) == {
            *("exclusion_max_change", "exclusion_changed", "exclusion_control")
        }


class Leaking:
    """Answers with a last bit that depends on everything it was given."""

    def __init__(self, runner: OnnxRunner) -> None:
        self.runner = runner

    def run(self, inputs: Inputs) -> Outputs:
        found = self.runner.run(inputs)
        leak = (inputs["input_ids"].sum(axis=1, keepdims=True) % 2).astype(np.float32)
        return replace(found, logits=np.nextafter(found.logits, found.logits + leak))


def test_a_leak_of_one_bit_is_seen(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    with OnnxRunner(tiny_text_onnx.path, threads=1) as runner:
        found = held_exclusion(Leaking(runner), [batch.inputs for batch in text_batches])
    assert found.changed_examples > 0
    assert 0 < found.max_change < 1e-5


class Restless:
    """Never selects the same twice."""

    def __init__(self) -> None:
        self.turn = 0

    def run(self, inputs: Inputs) -> Outputs:
        self.turn += 1
        rows, tokens = inputs["input_ids"].shape
        keep = np.zeros((rows, tokens), dtype=bool)
        keep[:, self.turn % tokens] = True
        zeros = np.zeros((rows, 2), dtype=np.float32)
        return Outputs(zeros, keep, zeros, zeros[:, 0])


def test_where_no_rationale_stays_nothing_is_said(text_batches: list[LabelledBatch]) -> None:
    few = [{name: value[:, :4] for name, value in text_batches[0].inputs.items()}]
    found = held_exclusion(Restless(), few, trials=1)
    assert (found.held, found.metrics) == (0, {})


def test_a_share_of_positions_is_of_those_that_may_be_taken() -> None:
    rng = np.random.default_rng(0)
    where = rng.random((50, 12)) < 0.5
    where[0] = False
    for share in (0.0, 0.5, 1.0):
        taken = some_of(where, share, rng)
        assert not (taken & ~where).any()
        free = where.sum(axis=1)
        expected = np.minimum(np.maximum(np.ceil(free * share), 1), free)
        assert (taken.sum(axis=1) == expected).all()
