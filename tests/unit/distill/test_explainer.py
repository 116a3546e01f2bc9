"""What explains a plain classifier, the classifier as a teacher, and learning to scaffold: by hand,
by finite differences, and against differentiating everything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from rekd_edge.distill.attribution import gradient_x_input
from rekd_edge.distill.explainer import (
    AttentionExplainer,
    HeadMixture,
    HeadWeights,
    black_box,
    load_heads,
    save_heads,
)
from rekd_edge.distill.objectives import Progress
from rekd_edge.distill.scaffold import (
    Practice,
    ScaffoldObjective,
    after_one_step,
    explanation_kl,
    halves,
    simulability,
)
from rekd_edge.distill.teacher import Teacher
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.attention_maps import pooled_attention
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, TokenView, VitEncoder
from rekd_edge.models.problem import SingleLabel, class_margin
from rekd_edge.models.rationalist import (
    BlockSelector,
    Classifier,
    Predictor,
    Rationalist,
    Scores,
)
from rekd_edge.recipe.schema import ObjectiveSpec, ScaffoldSpec
from rekd_edge.selection import keep_top_k
from rekd_edge.types import Batch, TeacherSide

BLACK_BOXES = ("attention", "gradient_x_input", "mask_gradient", "scaffold")


class ScaledSum(nn.Module):
    """Logits (sum of weight * scale * content^2, 0): its gradient times its input is twice that of
    its scale, if the input is content; here e = content^2."""

    problem = SingleLabel()

    def forward(
        self, content: Tensor, position: Tensor, key_weight: Tensor, scale: Tensor
    ) -> Tensor:
        total = (content.float() ** 2 * key_weight.float() * scale).sum(dim=1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_gradient_x_input_of_a_sum_is_what_it_adds_up() -> None:
    content = torch.tensor([[3, -1, 2, 9]])
    selectable = torch.tensor([[True, True, True, False]])
    view = TokenView(content, torch.arange(4).unsqueeze(0), selectable, selectable)
    predictor = ScaledSum()
    found = gradient_x_input(predictor, view)  # pyright: ignore[reportArgumentType]
    assert found.tolist() == [[9.0, 1.0, 4.0, 0.0]]
    other = gradient_x_input(predictor, view, torch.tensor([1]))  # pyright: ignore[reportArgumentType]
    assert other.tolist() == [[-9.0, -1.0, -4.0, 0.0]]


def text_encoder(blocks: int = 2) -> BertEncoder:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.4,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=1, sep_id=2)


def classifier(pooling: str = "mean") -> Classifier:
    torch.manual_seed(0)
    predictor = Predictor(text_encoder(), 3, pooling=pooling)
    nn.init.normal_(predictor.head.weight)
    return Classifier(predictor).eval()


def text_batch() -> Batch:
    ids = torch.tensor([[1, 10, 11, 12, 13, 14, 15, 2], [1, 20, 21, 22, 2, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    return Batch(inputs, torch.tensor([2, 0]), torch.arange(2))


def student(ratio: float = 0.34) -> Rationalist:
    torch.manual_seed(1)
    return Rationalist(BlockSelector(text_encoder(1)), Predictor(text_encoder(1), 3), ratio).eval()


def test_gradient_x_input_is_gradient_times_word_embedding() -> None:
    model, batch = classifier(), text_batch()
    view = model.predictor.encoder.view(batch.inputs)
    embedded: list[Tensor] = []
    assert isinstance(model.predictor.encoder, BertEncoder)
    words = model.predictor.encoder.backbone.embeddings.word_embeddings

    def keep(_: nn.Module, __: object, out: Tensor) -> None:
        embedded.append(out)

    handle = words.register_forward_hook(keep)
    margin = class_margin(model(batch.inputs), batch.labels).sum()
    handle.remove()
    content = next(e for e in embedded if e.shape[1] == view.content.shape[1])
    (gradient,) = torch.autograd.grad(margin, content)
    expected = (gradient * content).sum(dim=2) * view.selectable
    found = gradient_x_input(model.predictor, view, batch.labels, view.attended)
    assert torch.allclose(found, expected, atol=1e-5)


def test_attention_is_shared_out_among_what_can_be_selected() -> None:
    model, batch = classifier("cls"), text_batch()
    view = model.predictor.encoder.view(batch.inputs)
    effect = AttentionExplainer(model.predictor).effect(view)
    received = pooled_attention(model.predictor, view, last_block=True).mean(dim=1)
    assert not effect[~view.selectable].any()
    assert effect.sum(dim=1).tolist() == pytest.approx([1, 1])
    first = received[0, :6] / received[0, :6].sum()
    assert torch.allclose(effect[0, :6], first, atol=1e-6)


def test_a_mixture_by_hand() -> None:
    logits = torch.tensor([[[0.0, 1.0, 5.0], [2.0, 1.0, 5.0]]])
    selectable = torch.tensor([[True, True, False]])
    even = HeadMixture.mix(logits, torch.tensor([0.5, 0.5]), selectable)
    # Mixed logits are (1, 1) and the last one is not there.
    assert even.tolist() == [pytest.approx([0.5, 0.5, 0.0])]
    second = HeadMixture.mix(logits, torch.tensor([0.0, 1.0]), selectable)
    assert second[0, :2].tolist() == pytest.approx(F.softmax(torch.tensor([2.0, 1.0]), 0).tolist())


def test_scores_of_a_distribution_are_centred_logarithms() -> None:
    explainer = AttentionExplainer(classifier().predictor)
    selectable = torch.tensor([[True, True, True, False]])
    score = explainer.score(torch.tensor([[0.5, 0.25, 0.25, 0.0]]), selectable)
    third = math.log(2) / 3
    assert score.tolist() == [pytest.approx([2 * third, -third, -third, 0.0], abs=1e-6)]


@pytest.mark.parametrize("rationale", BLACK_BOXES)
def test_a_black_box_answers_from_everything_and_keeps_the_best_of_its_explanation(
    rationale: str,
) -> None:
    model, batch = classifier(), text_batch()
    teacher = Teacher(black_box(model, rationale, 0.34), student())  # pyright: ignore[reportArgumentType]
    targets = teacher.targets(batch)
    assert torch.allclose(targets.logits, model(batch.inputs), atol=1e-5)
    assert torch.equal(teacher.classify_subset(batch, targets.keep), targets.logits)
    assert torch.equal(teacher.model(batch.inputs), targets.logits)
    assert targets.keep.sum(dim=1).tolist() == [3, 2]
    view = model.predictor.encoder.view(batch.inputs)
    scores = teacher.model.selector(batch.inputs).score
    assert torch.equal(targets.keep, keep_top_k(scores, view.selectable, torch.tensor([3, 2])))
    by_label = teacher.attribute(batch, batch.labels)
    other = teacher.attribute(batch, torch.tensor([0, 1]))
    assert torch.isfinite(by_label).all()
    assert torch.equal(by_label, other) == (rationale in {"attention", "scaffold"})


def test_attention_is_conserved_on_other_patches() -> None:
    torch.manual_seed(0)

    def vit(size: int) -> VitEncoder:
        backbone = timm.create_model(
            "test_vit", img_size=size, num_classes=0, depth=1, pretrained=False
        )
        return VitEncoder(backbone)

    teacher = black_box(Classifier(Predictor(vit(64), 3)).eval(), "attention", 0.25)
    coarse = Rationalist(BlockSelector(vit(48)), Predictor(vit(48), 3), 0.25)
    images = {size: torch.randn(2, 3, size, size) for size in (48, 64)}
    side = TeacherSide({"pixel_values": images[64]})
    index = torch.arange(2)
    met, batch = Teacher(teacher, coarse), Batch({"pixel_values": images[48]}, index, index, side)
    effect = met.carried(teacher.selector.effect, batch)
    assert effect.shape == (2, 9)
    assert effect.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("rationale", ["attention", "scaffold"])
def test_a_convolution_is_refused_with_the_reason(rationale: str) -> None:
    backbone = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    encoder = ConvEncoder(backbone, image_size=32, patch_size=16, depth=1)
    model = Classifier(Predictor(encoder, 2))
    with pytest.raises(UsageError, match="reads attention, and the teacher is a convolutional"):
        black_box(model, rationale, 0.5)  # pyright: ignore[reportArgumentType]
    assert black_box(model, "gradient_x_input", 0.5).answers_from_whole_input


def test_a_learned_mixture_is_kept_and_must_fit(tmp_path: Path) -> None:
    predictor = classifier().predictor
    learned = HeadMixture(predictor, HeadWeights(4))
    with torch.no_grad():
        learned.weights.logit.copy_(torch.tensor([0.9, 0.1, -0.4, 0.7]))
    save_heads(tmp_path, learned)
    found = HeadMixture(predictor, HeadWeights(4))
    assert found.weights().tolist() == pytest.approx([0.25] * 4)
    load_heads(tmp_path, found)
    assert found.weights().tolist() == pytest.approx([0.6, 0.0, 0.0, 0.4])
    with pytest.raises(IntegrityError, match="does not fit"):
        load_heads(tmp_path, HeadMixture(predictor, HeadWeights(6)))


def scores_of(values: Tensor, valid: list[list[bool]] | None = None) -> Scores:
    there = torch.ones(values.shape, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return Scores(values, values.unsqueeze(2), TokenView(values, values, there, there))


def test_the_explanation_loss_by_hand() -> None:
    explanation = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    score = torch.tensor([[math.log(3), 0.0, 9.0], [0.0, 0.0, 0.0]])
    valid = [[True, True, False], [True, True, True]]
    # Row 0: softmax is (3/4, 1/4); row 1: log 3.
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    found = explanation_kl(explanation, scores_of(score, valid))
    assert float(found) == pytest.approx((first + math.log(3)) / 2, abs=1e-6)


def outer_value(phi: Tensor, theta: Tensor, rate: float, beta: float) -> tuple[Tensor, Tensor]:
    """A student whose scores are its parameters; its task is a bowl, the outer loss another."""
    explanation = torch.softmax(phi, dim=0).unsqueeze(0)
    explained = explanation_kl(explanation, scores_of(theta.unsqueeze(0)))
    inner = 0.5 * (theta - 0.3).pow(2).sum() + beta * explained
    moved, _ = after_one_step({"theta": theta}, inner, explained, rate=rate, beta=beta)["theta"]
    return (moved - torch.tensor([1.0, -0.5, 0.2])).pow(3).sum(), moved


def test_the_gradient_through_the_step_is_that_of_finite_differences() -> None:
    theta = torch.tensor([0.4, -0.2, 0.1], requires_grad=True)
    phi = torch.tensor([0.2, 0.5, -0.3], requires_grad=True)
    rate, beta = 0.5, 2.0
    value, moved = outer_value(phi, theta, rate, beta)
    (gradient,) = torch.autograd.grad(value, phi)
    # By hand: the step is theta - rate * [(theta - 0.3) + beta * (softmax(theta) - softmax(phi))].
    e, s = torch.softmax(phi.detach(), 0), torch.softmax(theta.detach(), 0)
    start = theta.detach()
    assert torch.allclose(moved, start - rate * (start - 0.3 + beta * (s - e)), atol=1e-6)
    slope = 3 * (moved.detach() - torch.tensor([1.0, -0.5, 0.2])).pow(2)
    by_hand = rate * beta * (torch.diag(e) - torch.outer(e, e)) @ slope
    assert torch.allclose(gradient, by_hand, atol=1e-5)
    for index in range(3):
        offset = torch.zeros(3)
        offset[index] = 0.01
        high, _ = outer_value((phi + offset).detach(), theta, rate, beta)
        low, _ = outer_value((phi - offset).detach(), theta, rate, beta)
        assert float(gradient[index]) == pytest.approx(
            float((high - low).detach()) / 0.02, rel=2e-3
        )


def doubled(batch: Batch) -> Batch:
    inputs = {name: torch.cat([value, value.flip(0)]) for name, value in batch.inputs.items()}
    return Batch(inputs, torch.cat([batch.labels, batch.labels]), torch.arange(4))


def practice_of(spec: ScaffoldSpec) -> tuple[ScaffoldObjective, Practice]:
    teacher = black_box(classifier(), "scaffold", 0.34)
    met = Teacher(teacher, learner := student())
    assert isinstance(teacher.selector, HeadMixture)
    practice = Practice(learner, teacher.selector.weights.requires_grad_(True))
    objective = ObjectiveSpec(selection_noise=0)
    return ScaffoldObjective(practice, met, objective, spec), practice


def test_both_gradients_are_those_of_differentiating_everything() -> None:
    spec = ScaffoldSpec(inner_learning_rate=0.7, beta=1.5)
    objective, practice = practice_of(spec)
    batch = doubled(text_batch())
    terms = objective(batch, Progress(0, 1))
    terms["loss"].backward()

    first, second = halves(batch)
    weights = practice.weights
    explanation = objective._explain(first, weights())
    simulated, explained = objective._inner(first, explanation)
    inner = simulated + spec.beta * explained
    trained = dict(objective.answer.named_parameters())
    gradients = torch.autograd.grad(
        inner, list(trained.values()), create_graph=True, allow_unused=True
    )
    ahead = {
        name: value if gradient is None else value - spec.inner_learning_rate * gradient
        for (name, value), gradient in zip(trained.items(), gradients, strict=True)
    }
    logits, _ = functional_call(objective.answer, ahead, (second.inputs,))
    outer = objective._simulation(second, logits)
    (expected,) = torch.autograd.grad(outer, weights.logit)

    assert weights.logit.grad is not None
    assert float(expected.abs().max()) > 1e-6
    assert torch.allclose(weights.logit.grad, expected, rtol=1e-3, atol=1e-7)
    assert float(terms["loss"].detach()) == pytest.approx(float(inner.detach()), rel=1e-5)
    assert float(terms["simulation"]) == pytest.approx(float(outer.detach()), rel=1e-5)
    for (name, value), gradient in zip(trained.items(), gradients, strict=True):
        if gradient is not None:
            assert value.grad is not None
            assert torch.allclose(value.grad, gradient, atol=1e-5), name


def test_steps_lower_the_outer_loss() -> None:
    """Gradient descent on the head weights alone: the student stays where it is."""
    objective, practice = practice_of(ScaffoldSpec(inner_learning_rate=2.0))
    batch = doubled(text_batch())
    before = after = float(objective(batch, Progress(0, 1))["simulation"])
    for _ in range(20):
        practice.zero_grad()
        terms = objective(batch, Progress(0, 1))
        terms["loss"].backward()
        gradient = practice.weights.logit.grad
        assert gradient is not None
        with torch.no_grad():
            practice.weights.logit.sub_(0.05 * gradient / gradient.norm().clamp_min(1e-12))
        after = min(after, float(terms["simulation"]))
    assert after < before


def test_halves_share_no_example_unless_there_is_one() -> None:
    first, second = halves(doubled(text_batch()))
    assert first.index.tolist() == [0, 2]
    assert second.index.tolist() == [1, 3]
    alone = Batch({"input_ids": torch.ones(1, 3)}, torch.tensor([1]), torch.tensor([5]))
    assert [half.index.tolist() for half in halves(alone)] == [[5], [5]]


def test_a_student_that_copies_its_teacher_simulates_it() -> None:
    model = classifier()
    met = Teacher(black_box(model, "mask_gradient", 1.0), student(1.0))
    met.student.predictor = model.predictor
    batch = text_batch()
    unlike = simulability(student(1.0), met, [batch])
    same = simulability(met.student, met, [batch])
    assert same.accuracy == 1.0
    assert same.loss < unlike.loss
