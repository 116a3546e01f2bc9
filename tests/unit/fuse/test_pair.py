"""Two fused students in one model: what it reads, and that an example answers for itself."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekd_edge.errors import UsageError
from rekd_edge.fuse import fuse_pair
from rekd_edge.models.interactive import CASES

if TYPE_CHECKING:
    from torch import Tensor

    from rekd_edge.fuse import FusedPair, FusedRationalist

CLS, SEP, PAD = 101, 102, 0
LENGTHS = st.lists(st.integers(1, 20), min_size=2, max_size=6)


def inputs_of(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Padded texts with so many words each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in enumerate(lengths):
        words = torch.randint(200, 600, (length,), generator=generator)
        ids[row, : length + 2] = torch.tensor([CLS, *words.tolist(), SEP])
    return ids, (ids != PAD).to(torch.int64)


def named(model: FusedPair, *inputs: Tensor) -> dict[str, Tensor]:
    names = (*model.output_names, *model.hidden_names)
    return dict(zip(names, model(*inputs), strict=True))


def test_outputs_are_those_that_are_promised(tiny_pair: FusedPair) -> None:
    found = named(tiny_pair, *inputs_of([9, 14, 3], seed=0))
    assert [tensor.name for tensor in tiny_pair.io_spec().outputs] == list(found)[:6]
    for tensor in tiny_pair.io_spec().outputs:
        assert str(found[tensor.name].dtype).removeprefix("torch.") == tensor.dtype
        assert found[tensor.name].dim() == len(tensor.axes)


def test_the_answer_is_that_of_one_student_from_its_own_rationale(
    tiny_pair: FusedPair, tiny_text: FusedRationalist
) -> None:
    inputs = inputs_of([18] * 200, seed=1)
    found = named(tiny_pair, *inputs)
    alone, partner = tiny_text(*inputs), tiny_pair.partner(*inputs)
    assert set(found["case"].tolist()) == set(range(len(CASES)))
    assert torch.equal(found["rationale_mask"], alone[1] | partner[1])
    assert torch.equal(found["selection_margin"], torch.minimum(alone[3], partner[3]))
    by_first = (found["logits"] == alone[0]).all(dim=1)
    assert not by_first.all()
    assert torch.equal(found["logits"][~by_first], partner[0][~by_first])
    expected = torch.where(by_first.unsqueeze(1), alone[1], partner[1])
    assert torch.equal(found["answer_mask"], expected)
    kept_by_partner = partner[1] & ~alone[1]
    assert torch.equal(found["selection_score"][kept_by_partner], partner[2][kept_by_partner])
    assert torch.equal(found["selection_score"][alone[1]], alone[2][alone[1]])


def test_nothing_outside_both_rationales_reaches_the_answer(tiny_pair: FusedPair) -> None:
    ids, valid = inputs_of([15] * 40, seed=2)
    found = named(tiny_pair, ids, valid)
    cut = (found["rationale_index"], found["rationale_valid"])
    before = tiny_pair.predict_from(ids, valid, *cut)
    assert torch.equal(before, found["logits"])
    other = torch.where(found["rationale_mask"], ids, (ids + 7) % 600)
    assert torch.equal(tiny_pair.predict_from(other, 1 - valid, *cut), before)
    other = torch.where(found["answer_mask"], ids, (ids + 7) % 600)
    assert not torch.equal(tiny_pair.predict_from(other, valid, *cut), before)


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**16))
def test_an_answer_does_not_depend_on_its_neighbours(
    tiny_pair: FusedPair, lengths: list[int], seed: int
) -> None:
    ids, valid = inputs_of(lengths, seed)
    together = named(tiny_pair, ids, valid)
    for row, length in enumerate(lengths):
        size = length + 2
        alone = named(tiny_pair, ids[row : row + 1, :size], valid[row : row + 1, :size])
        assert torch.allclose(alone["logits"][0], together["logits"][row], atol=1e-4)
        assert alone["case"][0] == together["case"][row]
        for name in ("rationale_mask", "answer_mask"):
            assert torch.equal(alone[name][0], together[name][row, :size])
            assert not together[name][row, size:].any()


def test_students_that_cannot_exchange_are_refused(
    tiny_text: FusedRationalist, tiny_image: FusedRationalist
) -> None:
    with pytest.raises(UsageError, match="other patches"):
        fuse_pair(tiny_text, tiny_image)


def test_students_of_several_labels_are_no_pair(tiny_text: FusedRationalist) -> None:
    student = copy.copy(tiny_text)
    student.problem_type = "multi_label_classification"
    with pytest.raises(UsageError, match="not for a multi-label classification") as raised:
        fuse_pair(student, student)
    assert raised.value.hint == "train with ensemble: null"
