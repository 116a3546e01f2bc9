"""The joint objective: `paper` against transformers and plain floats, `deploy` against its own
formula, and every key alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from rekd_edge import losses
from rekd_edge.distill.objectives import JointObjective, Progress
from rekd_edge.distill.targets import TeacherTargets
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.candidates import Positions
from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.recipe.form import PRESETS, ObjectiveForm
from rekd_edge.recipe.schema import ObjectiveSpec, TemperatureSpec
from rekd_edge.schedules import temperature_at
from rekd_edge.selection import (
    gumbel_noise,
    keep_top_k,
    selection_threshold,
    straight_through_top_k,
)
from rekd_edge.types import Batch

CLS, SEP, PAD = 101, 102, 0
PADDED, RATIO, CLASSES = 9, 0.25, 3
EVERYWHERE = Positions(special=True, padded_length=PADDED)
PROGRESS = Progress(step=250, total_steps=1000)


def rationalist(seed: int) -> Rationalist:
    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=200,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            initializer_range=0.4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)

    torch.manual_seed(seed)
    model = Rationalist(
        BlockSelector(encoder()), Predictor(encoder(), CLASSES, pooling="cls"), RATIO
    )
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return model.eval()


@pytest.fixture
def student() -> Rationalist:
    return rationalist(0)


@pytest.fixture
def teacher() -> Rationalist:
    return rationalist(1)


@pytest.fixture
def batch() -> Batch:
    ids = torch.tensor([[CLS, 11, 12, 13, 14, SEP], [CLS, 21, 22, SEP, PAD, PAD]])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    return Batch(inputs, torch.tensor([2, 0]), torch.arange(2))


def spec(**keys: object) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate(
        {"name": "paper", "alpha": 0.3, "lambda_select": 0.07, "lambda_rationale": 0.6} | keys
    )


# What the official code computes, in plain floats -----------------------------------------------


def log_softmax(values: list[float]) -> list[float]:
    highest = max(values)
    total = highest + math.log(sum(math.exp(value - highest) for value in values))
    return [value - total for value in values]


def kl(teacher: list[float], student: list[float]) -> float:
    pairs = zip(log_softmax(teacher), log_softmax(student), strict=True)
    return sum(math.exp(theirs) * (theirs - ours) for theirs, ours in pairs)


def padded_ids(batch: Batch) -> tuple[Tensor, Tensor]:
    ids, attended = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    missing = (0, PADDED - ids.shape[1])
    return F.pad(ids, missing, value=PAD), F.pad(attended, missing)


@torch.no_grad()
def selection_logits(model: Rationalist, batch: Batch) -> Tensor:
    """Logits of every position of the padded text, by transformers."""
    ids, attended = padded_ids(batch)
    assert isinstance(model.selector, BlockSelector)
    encoder = model.selector.encoder
    assert isinstance(encoder, BertEncoder)
    backbone = encoder.backbone
    hidden = backbone(input_ids=ids, attention_mask=attended).last_hidden_state
    return hidden @ model.selector.head.weight.T + model.selector.head.bias


@torch.no_grad()
def class_logits(model: Rationalist, batch: Batch, mask: list[list[float]]) -> list[list[float]]:
    """The predictor's answer from word embeddings times ``mask``, by transformers."""
    ids, attended = padded_ids(batch)
    encoder = model.predictor.encoder
    assert isinstance(encoder, BertEncoder)
    words = encoder.backbone.embeddings.word_embeddings(ids) * torch.tensor(mask).unsqueeze(2)
    hidden = encoder.backbone(inputs_embeds=words, attention_mask=attended).last_hidden_state
    head = model.predictor.head
    return (hidden[:, 0] @ head.weight.T + head.bias).tolist()


def uniform_draws() -> Iterator[list]:
    while True:
        yield torch.rand(2, PADDED, 2).tolist()


def noised(logits: list, uniform: list) -> list[list[list[float]]]:
    return [
        [
            [
                value - math.log(-math.log(chance))
                for value, chance in zip(pair, chances, strict=True)
            ]
            for pair, chances in zip(row, row_chances, strict=True)
        ]
        for row, row_chances in zip(logits, uniform, strict=True)
    ]


def hard(values: list[list[list[float]]]) -> list[list[float]]:
    return [[float(keep > drop) for drop, keep in row] for row in values]


def tau_of_step_251() -> float:
    # Counted from 1 the step is the 251st; tau was last changed at the 200th.
    return max(5 * math.exp(-math.log(50) / 1000 * 200), 0.1)


def test_paper_is_the_official_computation(
    student: Rationalist, teacher: Rationalist, batch: Batch
) -> None:
    torch.manual_seed(7)
    frozen = Teacher(teacher, student, "zero")
    objective = JointObjective(student, spec(), frozen, positions=EVERYWHERE)
    found = {name: value.item() for name, value in objective(batch, PROGRESS).items()}

    torch.manual_seed(7)
    draws = uniform_draws()
    ours = noised(selection_logits(student, batch).tolist(), next(draws))
    theirs = noised(selection_logits(teacher, batch).tolist(), next(draws))
    mask, tau = hard(ours), tau_of_step_251()
    assert 0 < sum(map(sum, mask)) < 2 * PADDED
    logits, teacher_logits = (class_logits(model, batch, mask) for model in (student, teacher))

    ce = -(log_softmax(logits[0])[2] + log_softmax(logits[1])[0]) / 2
    budget = (sum(map(sum, mask)) / 2 - RATIO * PADDED) ** 2
    kl_rationale = (
        sum(
            kl([value / tau for value in t], [value / tau for value in s])
            for t_row, s_row in zip(theirs, ours, strict=True)
            for t, s in zip(t_row, s_row, strict=True)
        )
        / 2
    )
    kl_prediction = (
        sum(
            kl([value / tau for value in t], [value / tau for value in s])
            for t, s in zip(teacher_logits, logits, strict=True)
        )
        / 2
    )
    expected = {
        "ce": ce,
        "budget": budget,
        "selected_share": sum(map(sum, mask)) / (2 * PADDED),
        "kl_rationale": kl_rationale,
        "kl_prediction": kl_prediction,
        "loss": 0.3 * (ce + 0.07 * budget) + 0.7 * (0.6 * kl_rationale + tau**2 * kl_prediction),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_without_a_teacher_alpha_has_no_say(student: Rationalist, batch: Batch) -> None:
    torch.manual_seed(7)
    found = JointObjective(student, spec(alpha=0.1), None, positions=EVERYWHERE)(batch, PROGRESS)
    assert found["loss"].item() == pytest.approx(float(found["ce"] + 0.07 * found["budget"]))


def test_noiseless_divergence_compares_the_logits_themselves(
    student: Rationalist, teacher: Rationalist, batch: Batch
) -> None:
    objective = JointObjective(
        student,
        spec(rationale_kd="noiseless"),
        Teacher(teacher, student, "zero"),
        positions=EVERYWHERE,
    )
    tau = tau_of_step_251()
    ours = (selection_logits(student, batch) / tau).flatten(0, 1).tolist()
    theirs = (selection_logits(teacher, batch) / tau).flatten(0, 1).tolist()
    expected = sum(kl(t, s) for t, s in zip(theirs, ours, strict=True)) / 2
    found = objective(batch, PROGRESS)
    assert float(found["kl_rationale"]) == pytest.approx(expected, rel=1e-4)
    again = objective(batch, PROGRESS)  # another draw: the mask changes, KL_R does not
    assert torch.equal(again["kl_rationale"], found["kl_rationale"])
    twin = Teacher(rationalist(0), student, "zero")
    same = JointObjective(student, spec(rationale_kd="noiseless"), twin, positions=EVERYWHERE)
    assert float(same(batch, PROGRESS)["kl_rationale"]) == pytest.approx(0, abs=1e-6)


def test_the_teacher_can_answer_from_its_own_draw(
    student: Rationalist, teacher: Rationalist, batch: Batch
) -> None:
    torch.manual_seed(7)
    objective = JointObjective(
        student,
        spec(teacher_prediction="own_rationale", kd_schedule="constant", kd_temperature=3.0),
        Teacher(teacher, student, "zero"),
        positions=EVERYWHERE,
    )
    found = objective(batch, PROGRESS)
    torch.manual_seed(7)
    draws = uniform_draws()
    ours = hard(noised(selection_logits(student, batch).tolist(), next(draws)))
    theirs = hard(noised(selection_logits(teacher, batch).tolist(), next(draws)))
    assert ours != theirs
    answers = class_logits(teacher, batch, theirs), class_logits(student, batch, ours)
    pairs = zip(*answers, strict=True)
    expected = sum(kl([v / 3 for v in t], [v / 3 for v in s]) for t, s in pairs) / 2
    assert float(found["kl_prediction"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("tau", "published"), [(5.0, 0.03), (1.0, 0.5), (0.1, 6.9)])
def test_the_noise_floor_of_the_published_divergence(tau: float, published: float) -> None:
    """Equal selectors at logit gap 0: the expectation by quadrature over two logistic margins."""
    grid = [-30 + 60 * (i + 0.5) / 1500 for i in range(1500)]
    density = [math.exp(-abs(x)) / (1 + math.exp(-abs(x))) ** 2 * 60 / 1500 for x in grid]

    def log_sigmoid(x: float) -> float:
        return min(x, 0.0) - math.log1p(math.exp(-abs(x)))

    # KL(p || q) = p log p + (1 - p) log(1 - p) - E[log q], as log q and log(1 - q) have one mean.
    keep = sum(d * log_sigmoid(x / tau) for x, d in zip(grid, density, strict=True))
    expected = 0.0
    for x, d in zip(grid, density, strict=True):
        log_p, log_rest = log_sigmoid(x / tau), log_sigmoid(-x / tau)
        expected += d * (math.exp(log_p) * log_p + math.exp(log_rest) * log_rest - keep)
    assert round(expected, 1 if published > 1 else 2) == published

    torch.manual_seed(0)
    positions = 200_000
    zeros = torch.zeros(1, positions, 2)
    draw = [F.log_softmax((zeros + gumbel_noise(zeros)) / tau, dim=-1) for _ in range(2)]
    each = (draw[0].exp() * (draw[0] - draw[1])).sum(-1)
    error = float(each.std()) / math.sqrt(positions)
    everywhere = torch.ones(1, positions, dtype=torch.bool)
    found = losses.rationale_kl_summed(draw[0], draw[1], everywhere)
    assert float(found) / positions == pytest.approx(expected, abs=4 * error)


# The default ------------------------------------------------------------------------------------


def deploy_formula(
    model: Rationalist, keys: ObjectiveSpec, targets: TeacherTargets, batch: Batch
) -> Tensor:
    """The loss of `deploy`, written out."""
    temperature = temperature_at(PROGRESS.step, PROGRESS.total_steps, keys.temperature)
    scores = model.selector(batch.inputs)
    scale = keys.selection_noise * temperature
    tried = scores.score + scale * (gumbel_noise(scores.score) - gumbel_noise(scores.score))
    weight, _ = straight_through_top_k(
        tried, scores.view.selectable, model.budget(scores.view), temperature=temperature
    )
    logits = model.classify_masked(scores.view, weight)
    keep = keep_top_k(scores.score, scores.view.selectable, model.budget(scores.view))
    margin = scores.score - selection_threshold(scores.score.detach(), scores.view.selectable, keep)
    kl_rationale = losses.rationale_kl(
        targets.margin, margin, scores.view.selectable, temperature=keys.rationale_temperature
    )
    kl_prediction = losses.prediction_kl(targets.logits, logits, temperature=keys.kd_temperature)
    return keys.alpha * F.cross_entropy(logits, batch.labels) + (1 - keys.alpha) * (
        keys.lambda_rationale * kl_rationale + keys.kd_temperature**2 * kl_prediction
    )


def test_deploy_is_its_formula_to_the_last_bit(
    student: Rationalist, teacher: Rationalist, batch: Batch
) -> None:
    keys = ObjectiveSpec(alpha=0.3, lambda_rationale=0.6)
    frozen = Teacher(teacher, student)
    torch.manual_seed(3)
    found = JointObjective(student, keys, frozen, frozen.targets)(batch, PROGRESS)["loss"]
    torch.manual_seed(3)
    expected = deploy_formula(student, keys, frozen.targets(batch), batch)
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found, list(student.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(student.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)


# Every key alone --------------------------------------------------------------------------------

PLAIN = {"select_special": False, "count_padding": False}
SWITCHES: list[dict[str, object]] = [
    {"select_special": False},
    {"count_padding": False},
    {**PLAIN, "selection": "exactly_k", "lambda_select": 0},
    {"select_special": False, "masking": "exclude"},
    {"lambda_select": 0},
    {"rationale_kd": "noiseless"},
    {"rationale_kd": "centred"},
    {"teacher_prediction": "own_rationale"},
    {"kd_schedule": "constant"},
    {"tau_updates": "capped"},
    {**PLAIN, "selection": "exactly_k", "lambda_select": 0, "teacher_prediction": "own_rationale"},
    {**PLAIN, "masking": "exclude", "rationale_kd": "centred", "kd_schedule": "constant"},
]


@pytest.mark.parametrize("keys", SWITCHES, ids=lambda keys: ",".join(keys))
def test_a_key_changes_the_loss_and_leaves_it_trainable(
    keys: dict[str, object], student: Rationalist, teacher: Rationalist, batch: Batch
) -> None:
    def loss_of(keys: dict[str, object]) -> Tensor:
        objective = spec(temperature=TemperatureSpec(update_every=400), **keys)
        form: ObjectiveForm = objective.form
        positions = Positions(form.select_special, PADDED if form.count_padding else None)
        frozen = Teacher(teacher, student, "zero")
        torch.manual_seed(5)
        joint = JointObjective(student, objective, frozen, frozen.targets, positions)
        return joint(batch, PROGRESS)["loss"]

    loss = loss_of(keys)
    assert bool(loss.isfinite())
    assert loss.item() != loss_of({}).item()
    loss.backward()
    for part in (student.selector, student.predictor):
        gradient = part.head.weight.grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_presets_differ_in_every_key() -> None:
    paper, deploy = PRESETS["paper"], PRESETS["deploy"]
    for key in ObjectiveForm.__slots__:
        assert getattr(paper, key) != getattr(deploy, key), key
