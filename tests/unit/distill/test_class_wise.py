"""Training of the class head: its loss by hand, what moves, and that it beats chance."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rekd_edge.distill.attribution import mask_gradient
from rekd_edge.distill.class_wise import FEWEST_STEPS, ClassAttribution, class_wise_phase
from rekd_edge.distill.objectives import Progress
from rekd_edge.evaluate.class_wise import (
    ClassFigures,
    ClassWiseReport,
    evaluate_class_wise,
    label_rationales,
)
from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.selection import keep_top_k
from tests.unit.class_wise_models import LABELS, batch_of, text_model

Pair = tuple[Rationalist, ClassHead]
START = Progress(0, 1)


def test_the_loss_is_the_cross_entropy_of_the_ranking_by_mask_gradients(
    class_wise_text: Pair,
) -> None:
    model, head = class_wise_text
    batch = batch_of([6, 9])
    torch.manual_seed(5)
    candidate = torch.randint(3, (2,))
    torch.manual_seed(5)
    loss = ClassAttribution(model, head)(batch, START)["loss"].item()
    view = model.predictor.encoder.view(batch.inputs)
    hidden = model.selector(batch.inputs).hidden
    assert hidden is not None
    expected = []
    for row, length in enumerate((6, 9)):
        gradient = mask_gradient(model.predictor, view, candidate)[row, :length].numpy()
        wanted = np.exp(gradient / np.sqrt((gradient**2).mean()))
        scores = head(hidden[row, :length]).detach().numpy()[:, int(candidate[row])]
        log_share = scores - np.log(np.exp(scores).sum())
        expected.append(-(wanted / wanted.sum() * log_share).sum())
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_head_learns_what_convinces_and_the_student_stays() -> None:
    model, _ = text_model()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    head = ClassHead.beside(model)
    batch = batch_of([14] * 48)
    phase = class_wise_phase(model, head, steps_per_epoch=4)
    assert phase.epochs * 4 == FEWEST_STEPS
    assert list(phase.trained) == [head]
    assert class_wise_phase(model, head, steps_per_epoch=1000).epochs == 1.0
    untrained = evaluate_class_wise(model, head, [batch], LABELS)
    optimizer = torch.optim.AdamW(head.parameters(), lr=phase.trained[head].head)
    for _ in range(FEWEST_STEPS):
        optimizer.zero_grad()
        phase.objective(batch, START)["loss"].backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    found = evaluate_class_wise(model, head, [batch], LABELS)
    assert found.above_chance
    assert found.reach > untrained.reach
    assert found.loss < untrained.loss - 0.1


def test_figures_are_those_of_a_loop_over_examples(class_wise_text: Pair) -> None:
    model, head = class_wise_text
    lengths = [12, 5, 9, 14, 7, 20]
    batch = batch_of(lengths)
    found = evaluate_class_wise(model, head, [batch], LABELS, seed=3)
    scores = model.selector(batch.inputs)
    assert scores.hidden is not None
    view, by_class = scores.view, head(scores.hidden)
    answer = model.classify_masked(view, model.keep(scores)).softmax(dim=1)
    for index, one in enumerate(found.classes):
        keep = keep_top_k(by_class[..., index], view.selectable, model.budget(view))
        own = model.classify_masked(view, keep).softmax(dim=1)
        says = own.argmax(dim=1) == index
        elsewhere = answer.argmax(dim=1) != index
        assert one.label == LABELS[index]
        assert one.examples == 6
        assert one.not_answered == int(elsewhere.sum())
        assert one.reach == pytest.approx(says.double().mean().item())
        assert one.probability == pytest.approx(own[:, index].mean().item(), abs=1e-4)
        assert one.probability_answer == pytest.approx(answer[:, index].mean().item(), abs=1e-4)
        shared = (keep & model.keep(scores)).sum(1) / (keep | model.keep(scores)).sum(1)
        if elsewhere.any():
            assert one.reach_not_answered == pytest.approx(says[elsewhere].double().mean().item())
            assert one.jaccard_not_answered == pytest.approx(shared[elsewhere].mean().item())
        assert (one.reach_not_answered is None) == (not elsewhere.any())
    assert found.to_json()["above_chance"] is found.above_chance
    again = evaluate_class_wise(model, head, [batch], LABELS, seed=3)
    assert again == found
    assert evaluate_class_wise(model, head, [batch], LABELS, seed=4) != found
    own_label = label_rationales(model, head, lambda: [batch])
    for row, label in enumerate(batch.labels.tolist()):
        wanted = by_class[row : row + 1, :, label]
        keep = keep_top_k(wanted, view.selectable[row : row + 1], model.budget(view)[row : row + 1])
        selected = own_label.keep[row]
        assert np.array_equal(selected, keep[0, : len(selected)].numpy())


def test_a_class_at_chance_is_warned_of() -> None:
    figures = ClassFigures("dull", 4, 2, 0.5, 0.0, 0.5, 0.0, 0.4, 0.5, 0.41, None, 0.1)
    weak = ClassWiseReport((figures,), 0.5, 0.0, 0.5, 0.0, 1.0)
    assert not weak.above_chance
    warning = weak.warning("class-wise rationales", 100)
    assert "'dull'" in warning["message"]
    assert warning["evidence"] == {"dull": pytest.approx(-0.01)}
