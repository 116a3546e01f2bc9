"""Warnings for real rationalists, tiny and with weights set by hand, that really fail; silence for
one that works.

Every text holds one of two evidence words at a random place among words that say nothing. The
embeddings of these models are the features that they read: which words are evidence, for which
class, and where a token stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from rekd_edge.distill.leakage import position_overlap, position_probe
from rekd_edge.distill.monitor import JUDGE_FILE, SelectionMonitor, TrainingWarning, WarningKind
from rekd_edge.distill.objectives import JointObjective, Progress
from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec, TemperatureSpec
from rekd_edge.types import Batch

CLS, SEP, PAD = 1, 2, 0
EVIDENCE = {0: 3, 1: 4}
FIRST_WORD, WORDS, LONGEST = 5, 200, 20
IS_EVIDENCE, CLASS, PLACE, PRODUCT, NOISE = 0, 1, 2, 3, slice(8, 16)
"""What the channels of the hand-set embeddings mean."""


def batches(examples: int = 240, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, examples, 60):
        count = min(60, examples - start)
        ids = torch.randint(FIRST_WORD, WORDS, (count, LONGEST + 2), generator=generator)
        labels = torch.randint(0, 2, (count,), generator=generator)
        lengths = torch.randint(10, LONGEST + 1, (count,), generator=generator)
        for row, (label, length) in enumerate(zip(labels.tolist(), lengths.tolist(), strict=True)):
            place = int(torch.randint(1, length + 1, (1,), generator=generator))
            ids[row, place] = EVIDENCE[label]
            ids[row, length + 1] = SEP
            ids[row, length + 2 :] = PAD
        ids[:, 0] = CLS
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        found.append(Batch(inputs, labels, torch.arange(start, start + count)))
    return found


@torch.no_grad()
def encoder() -> BertEncoder:
    """One block that passes its input on; words differ in their noise, evidence in its meaning."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=LONGEST + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    backbone = BertModel(config, add_pooling_layer=False)
    for name, parameter in backbone.named_parameters():
        if "LayerNorm" not in name:
            parameter.zero_()
    words = backbone.embeddings.word_embeddings.weight
    words[:, NOISE] = torch.randn(WORDS, 8) * 0.3
    for label, word in EVIDENCE.items():
        words[word, IS_EVIDENCE] = 2.0
        words[word, CLASS] = 2.0 if label == 1 else -2.0
    return BertEncoder(backbone, cls_id=CLS, sep_id=SEP)


def selector(channel: int | slice = IS_EVIDENCE, *, bias: float = 0.0) -> BlockSelector:
    """Scores tokens by one channel of their embedding."""
    made = BlockSelector(encoder())
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.weight[1, channel] = 1.0
        made.head.bias.copy_(torch.tensor([-bias, bias]))
    return made


def predictor(channel: int = CLASS) -> Predictor:
    """Classifies by the sign of one channel, averaged over the tokens that it gets."""
    made = Predictor(encoder(), 2)
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.weight[0, channel], made.head.weight[1, channel] = -5.0, 5.0
    return made


def bert(model: BlockSelector | Predictor) -> BertModel:
    assert isinstance(model.encoder, BertEncoder)
    return model.encoder.backbone


def places(model: BlockSelector | Predictor, value: Callable[[Tensor], Tensor]) -> None:
    """Writes a function of the position (1 is the first word) into the channel of places."""
    positions = torch.arange(LONGEST + 2)
    with torch.no_grad():
        bert(model).embeddings.position_embeddings.weight[:, PLACE] = value(positions.float())


def scoring_places(sign: float) -> BlockSelector:
    """Scores by place alone: words are all one."""
    made = selector(PLACE)
    with torch.no_grad():
        words = bert(made).embeddings.word_embeddings.weight
        words.zero_()
        words[:, 15] = 1.0
    places(made, lambda position: sign * position / LONGEST)
    return made


def watch(model: Rationalist, folder: Path, *, sampled: bool = False) -> SelectionMonitor:
    """A monitor that has seen ``model`` before joint training."""
    monitor = SelectionMonitor(batches, folder, judged=True, sampled=sampled)
    model.eval()
    assert look_again(monitor, model, step=0) == []
    return monitor


def look_again(
    monitor: SelectionMonitor, model: Rationalist, *, step: int = 10, frozen: bool = False
) -> list[TrainingWarning]:
    trained: list[nn.Module] = [model.predictor] if frozen else [model.selector, model.predictor]
    return monitor.observe(model.eval(), phase="joint", step=step, trained=trained)[1]


def kinds(warnings: list[TrainingWarning]) -> list[WarningKind]:
    for warning in warnings:
        assert warning.advice
        assert warning.evidence
        assert "\n" not in str(warning)
    return [warning.kind for warning in warnings]


def healthy() -> Rationalist:
    return Rationalist(selector(), predictor(), 0.2)


def reading_places() -> Rationalist:
    """A selector that keeps words of the first half where the class is 1 and of the second half
    where it is 0, found by attending to the evidence; the predictor reads the half alone."""
    chooses, answers = selector(PRODUCT), predictor(PLACE)

    def half(position: Tensor) -> Tensor:
        return torch.where(position <= LONGEST // 4, 1.0, -1.0)

    places(chooses, half)
    places(answers, half)
    layer: Any = bert(chooses).encoder.layer[0]
    with torch.no_grad():
        # Attention is uniform: every token gets the class of the text in another channel.
        layer.attention.self.value.weight[4, CLASS] = 40.0
        layer.attention.output.dense.weight[4, 4] = 1.0
        # place * class from four rectified sums: |p + c| - |p - c|.
        signs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        for unit, (place, label) in enumerate(signs.tolist()):
            layer.intermediate.dense.weight[unit, PLACE] = 6.0 * place
            layer.intermediate.dense.weight[unit, 4] = 6.0 * label
            layer.output.dense.weight[PRODUCT, unit] = 1.0 if unit < 2 else -1.0
    return Rationalist(chooses, answers, 0.2)


def test_a_healthy_rationalist_is_silent(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path, sampled=True)
    for step in (10, 20):
        assert look_again(monitor, model, step=step) == []
    look, _ = monitor.observe(model, phase="joint", step=30, trained=[model.selector])
    assert look.accuracy > 0.95
    assert look.judge_full_accuracy is not None
    assert look.judge_full_accuracy > 0.95
    assert look.random_accuracy < 0.75
    assert look.moved == 0.0
    assert monitor.warnings == []


def test_a_selector_that_scores_all_tokens_alike(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    nn.init.zeros_(model.selector.head.weight)
    assert "constant_scores" in kinds(look_again(monitor, model))


@pytest.mark.parametrize(("bias", "kind"), [(-9.0, "empty_selection"), (9.0, "full_selection")])
def test_sampled_selections_that_are_empty_or_full(bias: float, kind: str, tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path, sampled=True)
    model.selector = selector(bias=bias)
    assert kinds(look_again(monitor, model)) == [kind]
    exactly_k = watch(healthy(), tmp_path)
    assert look_again(exactly_k, model) == []  # top-k does not ask for the level


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_selector_that_keeps_the_same_positions(sign: float, tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    model.selector = scoring_places(sign)
    assert "positional_collapse" in kinds(look_again(monitor, model))


def test_a_label_written_into_the_positions(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    leaking = reading_places()
    model.selector, model.predictor = leaking.selector, leaking.predictor
    warnings = look_again(monitor, model)
    assert set(kinds(warnings)) == {"label_in_positions", "label_in_selection"}
    evidence = {warning.kind: warning.evidence for warning in warnings}
    assert evidence["label_in_positions"]["probe"] > 0.85
    assert evidence["label_in_selection"]["accuracy"] > 0.85
    assert evidence["label_in_selection"]["judge_accuracy"] < 0.7


def test_a_predictor_that_fitted_meaningless_selections(tmp_path: Path) -> None:
    """The selector goes by words that say nothing; the predictor learns 60 texts by heart."""
    model = healthy()
    monitor = watch(model, tmp_path)
    model.selector = selector(NOISE)
    nn.init.constant_(model.selector.head.weight[0], 0.0)
    with torch.no_grad():
        model.selector.head.weight[1, IS_EVIDENCE] = -9.0  # never the evidence
        model.selector.head.weight[1, NOISE] = torch.randn(8)
    model.selector.requires_grad_(False)
    objective = JointObjective(model, ObjectiveSpec(selection_noise=0), None)
    optimizer = torch.optim.Adam(model.predictor.parameters(), lr=0.05)
    (train,) = batches(60, seed=1)
    for step in range(80):
        terms = objective(train, Progress(step, 80))
        terms["loss"].backward()
        if step >= 70:
            monitor.track(model, terms)
        optimizer.step()
        optimizer.zero_grad()
    warnings = look_again(monitor, model, frozen=True)
    assert kinds(warnings) == ["interlocking"]
    assert warnings[0].evidence["train_loss"] < 0.2
    assert warnings[0].evidence["judge_full_accuracy"] > 0.95


def test_a_selector_without_gradient_or_movement(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    cold = ObjectiveSpec(temperature=TemperatureSpec(start=1e-4, end=1e-4), selection_noise=0)
    model.selector = scoring_places(1.0)
    terms = JointObjective(model, cold, None)(batches(60)[0], Progress(0, 10))
    terms["loss"].backward()
    monitor.track(model, terms)
    model.zero_grad()
    assert "stalled_selector" in kinds(look_again(monitor, model))

    model = Rationalist(selector(NOISE), predictor(), 0.2)
    monitor = watch(model, tmp_path)
    assert kinds(look_again(monitor, model)) == ["stalled_selector"]
    assert look_again(watch(model, tmp_path), model, frozen=True) == []


def test_a_warning_is_given_once_and_its_last_sight_is_kept(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    nn.init.zeros_(model.selector.head.weight)
    first = look_again(monitor, model, step=10)
    again = look_again(monitor, model, step=20)
    assert "constant_scores" in kinds(first)
    assert "constant_scores" not in kinds(again)
    known = {warning.kind: warning for warning in monitor.warnings}["constant_scores"]
    assert (known.step, known.last_step) == (10, 20)


def test_a_resumed_monitor_sees_and_remembers_the_same(tmp_path: Path) -> None:
    model = healthy()
    monitor = watch(model, tmp_path)
    assert (tmp_path / JUDGE_FILE).is_file()
    model.predictor = predictor(PLACE)
    terms = JointObjective(model, ObjectiveSpec(), None)(batches(60)[0], Progress(0, 10))
    terms["loss"].backward()
    monitor.track(model, terms)
    model.zero_grad()
    resumed = SelectionMonitor(batches, tmp_path, judged=True)
    resumed.restore(json.loads(json.dumps(monitor.state())))
    places = {"phase": "joint", "step": 10, "trained": [model.selector, model.predictor]}
    expected, found = (m.observe(model.eval(), **places) for m in (monitor, resumed))  # pyright: ignore
    assert expected == found
    assert expected[0].judge_accuracy is not None
    assert expected[0].judge_accuracy > expected[0].accuracy
    again = SelectionMonitor(batches, tmp_path, judged=True)
    again.restore(json.loads(json.dumps(monitor.state())))
    assert again.warnings == monitor.warnings


def test_looking_leaves_random_state_weights_and_gradients_alone(tmp_path: Path) -> None:
    model = healthy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    monitor = watch(model, tmp_path)
    look_again(monitor, model)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_few_examples_give_no_verdict_on_accuracy(tmp_path: Path) -> None:
    model = healthy()
    monitor = SelectionMonitor(lambda: batches(60), tmp_path, judged=True)
    monitor.observe(model.eval(), phase="joint", step=0, trained=[])
    leaking = reading_places()
    model.selector, model.predictor = leaking.selector, leaking.predictor
    assert look_again(monitor, model) == []


def test_position_measures_by_hand() -> None:
    selectable = torch.ones(40, 10, dtype=torch.bool)
    selectable[::4, 6:] = False
    count = selectable.sum(dim=1)
    last = torch.zeros_like(selectable)
    last[torch.arange(40), count - 1] = True
    assert position_overlap(last, selectable) == 1.0
    random = torch.rand(40, 10, generator=torch.Generator().manual_seed(0)) < 0.2
    assert position_overlap(random & selectable, selectable) < 0.4
    assert position_overlap(selectable, selectable) == 0.0

    labels = torch.arange(40) // 2 % 2
    first = torch.zeros_like(selectable)
    first[:, 0] = True
    written = torch.where(labels.unsqueeze(1) == 1, first, last)
    assert position_probe(written, selectable, labels, 2) == 1.0
    assert position_probe(first, selectable, labels, 2) <= 0.5
