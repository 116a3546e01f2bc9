"""What an objective can add to joint training, on tiny rationalists with random weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from rekd_edge.distill.objectives import JointObjective, Progress, random_subset
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec, RatioScheduleSpec
from rekd_edge.types import Batch

CLS, SEP, PAD = 1, 2, 0


def rationalist(width: int, seed: int) -> Rationalist:
    torch.manual_seed(seed)

    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=60,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=width,
            initializer_range=0.3,
        )
        return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)

    return Rationalist(BlockSelector(encoder()), Predictor(encoder(), 3), 0.25).eval()


def batch(rows: list[int]) -> Batch:
    """Examples by number, padded to the longest of the batch."""
    texts = []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        texts.append(torch.randint(5, 60, (4 + 3 * row,), generator=generator))
    width = max(len(text) for text in texts) + 2
    ids = torch.full((len(rows), width), PAD)
    for place, text in enumerate(texts):
        ids[place, : len(text) + 2] = torch.cat([torch.tensor([CLS]), text, torch.tensor([SEP])])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    return Batch(inputs, torch.tensor(rows) % 3, torch.tensor(rows))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_falling_budget_starts_with_everything_and_ends_with_the_rationale(frozen: bool) -> None:
    model = rationalist(16, seed=0)
    model.selector.requires_grad_(not frozen)
    spec = ObjectiveSpec(selection_noise=0, ratio_schedule=RatioScheduleSpec(start=1.0, until=0.5))
    objective, examples = JointObjective(model, spec, None), batch([1, 2, 3])
    view = model.predictor.encoder.view(examples.inputs)

    def loss(step: int) -> float:
        return float(objective(examples, Progress(step, 10))["loss"].detach())

    def expected(keep: torch.Tensor) -> float:
        return float(F.cross_entropy(model.classify_masked(view, keep), examples.labels).detach())

    rationale = model.keep(model.selector(examples.inputs))
    assert loss(0) == pytest.approx(expected(view.selectable), abs=1e-5)
    assert loss(5) == loss(9) == pytest.approx(expected(rationale), abs=1e-5)
    assert loss(2) != pytest.approx(loss(0), abs=1e-4)


def test_the_loss_is_the_documented_sum() -> None:
    teacher, student = rationalist(16, seed=0), rationalist(24, seed=1)
    spec = ObjectiveSpec(
        alpha=0.2,
        alpha_end=0.6,
        lambda_rationale=0.7,
        lambda_contiguity=0.9,
        selection_noise=0,
    )
    examples = batch([0, 1, 2, 3])

    taught_by = Teacher(teacher, student)
    targets = taught_by.targets
    objective = JointObjective(student, spec, taught_by, targets)
    terms = objective(examples, Progress(1, 3))
    alpha, kd = 0.4, spec.kd_temperature**2
    distilled = 0.7 * terms["kl_rationale"] + kd * terms["kl_prediction"]
    total = alpha * terms["ce"] + (1 - alpha) * distilled + 0.9 * terms["contiguity"]
    assert float(terms["loss"].detach()) == pytest.approx(float(total))
    assert float(terms["contiguity"]) > 0
    terms["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_may_answer_from_the_whole_input() -> None:
    teacher, student = rationalist(16, seed=0), rationalist(24, seed=1)
    examples = batch([0, 1, 2, 3])
    view = teacher.predictor.encoder.view(examples.inputs)
    full = Teacher(teacher, student, full_input=True)
    spec = ObjectiveSpec(
        teacher_prediction="full_input", alpha=0, lambda_rationale=0, selection_noise=0
    )
    terms = JointObjective(student, spec, full, full.targets)(examples, Progress(0, 3))
    kind = spec.kd_temperature
    theirs = F.log_softmax(teacher.classify_masked(view, view.selectable) / kind, dim=1)
    ours = F.log_softmax(student(examples.inputs) / kind, dim=1)
    expected = (theirs.exp() * (theirs - ours)).sum(dim=1).mean() * kind**2
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    own = Teacher(teacher, student).targets(examples)
    assert not torch.allclose(own.logits, full.targets(examples).logits)
    assert torch.equal(own.keep, full.targets(examples).keep)


def test_random_subsets_of_a_batch_have_one_ratio() -> None:
    student = rationalist(16, seed=0)
    view = student.predictor.encoder.view(batch([0, 1, 2, 3]).inputs)
    count = view.selectable.sum(dim=1)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        keep = random_subset(view, 0.2)
        assert not (keep & ~view.selectable).any()
        kept = keep.sum(dim=1)
        # k = ceil(ratio * count) for some ratio that all examples share
        assert float(((kept - 1) / count).max()) < float((kept / count).min()) + 1e-6
        shares.append(float((kept / count).mean()))
    assert min(shares) < 0.5 < 0.8 < max(shares)
