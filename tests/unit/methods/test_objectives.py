"""Each method's loss put together by hand, and which parameters it moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rekd_edge import losses
from rekd_edge.distill.objectives import Progress
from rekd_edge.distill.teacher import Teacher
from rekd_edge.methods import Method, Parts, PatchNoise, WordNoise, base, build_method
from rekd_edge.methods.a2i import other_labels
from rekd_edge.methods.rnp import Multiplier
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.intervention import (
    InterventionHead,
    intervene_predictor,
    intervene_selector,
    set_label_shares,
)
from rekd_edge.models.kept import represent_kept
from rekd_edge.models.problem import make_problem
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.types import Batch, ProblemType

Make = Callable[..., Method]
NOW = Progress(0, 10)


def moved(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def rationale(model: Rationalist, examples: Batch) -> tuple[TokenView, torch.Tensor]:
    scores = model.selector(examples.inputs)
    return scores.view, model.keep(scores).float()


def test_rnp_adds_the_penalties_of_the_drawn_mask(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    terms = make_method("rnp", lambda_coherence=0.7)(examples, NOW)
    view, keep = rationale(text_model, examples)
    ce = F.cross_entropy(text_model.classify_masked(view, keep), examples.labels)
    expected = ce + 0.7 * losses.contiguity(keep, view.selectable)
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert "sparsity" not in terms  # exactly k
    terms["loss"].backward()
    assert moved(text_model.selector)
    assert moved(text_model.predictor)


def test_rnp_holds_a_floating_count_near_the_ratio(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method("rnp", selection="bernoulli", lambda_sparsity=3.0, lambda_coherence=0.5)
    terms = method(examples, NOW)
    share = float(terms["selected_share"])
    assert float(terms["sparsity"]) == pytest.approx(abs(share - text_model.rationale_ratio))
    whole = float(terms["ce"]) + 3.0 * float(terms["sparsity"]) + 0.5 * float(terms["coherence"])
    assert float(terms["loss"].detach()) == pytest.approx(whole, rel=1e-5)


def test_reinforce_moves_the_selector_by_the_cost_of_its_draw(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    torch.manual_seed(3)
    keys = {"selection": "reinforce", "lambda_sparsity": 2.0, "lambda_coherence": 0.3}
    terms = make_method("rnp", **keys)(examples, NOW)
    terms["loss"].backward()
    torch.manual_seed(3)
    scores = text_model.selector(examples.inputs)
    drawn = torch.rand(scores.score.shape) < torch.sigmoid(scores.score.detach())
    keep = (drawn & scores.view.selectable).float()
    with torch.no_grad():
        logits = text_model.classify_masked(scores.view, keep)
        cost = F.cross_entropy(logits, examples.labels, reduction="none")
        for row, own in enumerate(keep):
            valid = scores.view.selectable[row]
            own = own[valid]
            cost[row] += 2.0 * (own.mean() - text_model.rationale_ratio).abs()
            cost[row] += 0.3 * own.diff().abs().mean()
    chance = torch.sigmoid(scores.score)
    log_chance = torch.where(keep > 0, chance.log(), (1 - chance).log())
    surrogate = (cost * (log_chance * scores.view.selectable).sum(dim=1)).mean()
    (expected,) = torch.autograd.grad(surrogate, [text_model.selector.head.weight])
    found = text_model.selector.head.weight.grad
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert moved(text_model.predictor)


def test_the_multiplier_follows_its_rule() -> None:
    held = Multiplier(initial=0.5, rate=0.05, momentum=0.5)
    constraint = torch.tensor(0.4, requires_grad=True)
    term = held(constraint)
    weight = 0.5 * math.exp(0.05 * 0.2)
    assert float(held.weight) == pytest.approx(weight)
    assert float(term.detach()) == pytest.approx(weight * 0.2)
    term.backward()
    assert float(constraint.grad or 0.0) == pytest.approx(weight)
    held(torch.tensor(-9.0))
    assert float(held.average) == pytest.approx(0.5 * 0.2 - 0.5 * 9)
    assert float(held.weight) < weight
    for _ in range(400):
        held(torch.tensor(1.0))
    assert float(held.weight) == pytest.approx(5.0)  # no more than its bound
    assert set(held.state_dict()) == {"average", "weight"}


def test_hard_kuma_weighs_words_and_holds_the_expected_share(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method("rnp", selection="hard_kuma", lambda_coherence=0.0)
    terms = method(examples, NOW)
    terms["loss"].backward()
    assert moved(text_model.selector)
    assert isinstance(method.auxiliary, Multiplier)
    assert method.trained_auxiliary is None
    assert 0 < float(terms["expected_share"]) <= 1
    held = method.auxiliary.weight * method.auxiliary.average
    whole = float(terms["ce"]) + float(held)
    assert float(terms["loss"].detach()) == pytest.approx(whole, rel=1e-5)


def test_folded_parts_share_every_block(
    make_method: Make, folded_model: Rationalist, examples: Batch
) -> None:
    terms = make_method("fr", folded_model)(examples, NOW)
    terms["loss"].backward()
    assert moved(folded_model.predictor.encoder)
    assert moved(folded_model.selector.head)
    own = sum(p.numel() for p in folded_model.selector.parameters())
    assert own < 0.05 * sum(p.numel() for p in folded_model.parameters())


@pytest.mark.parametrize("norm_of", ["representation", "logits"])
@pytest.mark.parametrize("name", ["n2r", "mmi_n2r"])
def test_n2r_takes_two_turns(
    name: str, norm_of: str, make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method(name, lambda_norm=2.0, lambda_coherence=0.0, norm_of=norm_of)
    answer, norm = method.turns
    assert (answer.name, norm.name) == ("answer", "norm")
    assert set(answer.trained) == {text_model.selector, text_model.predictor}
    assert norm.trained == (text_model.selector,)

    method(examples, NOW, "answer")["loss"].backward()
    assert moved(text_model.predictor)
    # Without penalties the selector of N2R learns nothing from the answer.
    assert moved(text_model.selector) == (name == "mmi_n2r")

    text_model.zero_grad(set_to_none=True)
    text_model.predictor.requires_grad_(False)
    terms = method(examples, NOW, "norm")
    view, keep = rationale(text_model, examples)
    hidden = text_model.predictor.represent(view.content, view.position, keep)
    if norm_of == "logits":
        logits = hidden @ text_model.predictor.head.weight.T
        hidden = logits - logits.mean(dim=1, keepdim=True)
    expected = -2.0 * torch.log(hidden.norm(dim=1) + 1e-6).mean()
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    terms["loss"].backward()
    assert moved(text_model.selector)
    assert all(p.grad is None for p in text_model.predictor.parameters())


def test_n2r_norm_may_keep_more_than_the_answer(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method("n2r", lambda_coherence=0.0, norm_ratio=0.75)
    published = make_method("n2r", lambda_coherence=0.0)

    def loss(method: Method, turn: str) -> float:
        return float(method(examples, NOW, turn)["loss"].detach())

    scores = text_model.selector(examples.inputs)
    selectable = scores.view.selectable
    budget = torch.ceil(0.75 * selectable.sum(dim=1)).long()
    assert bool((budget > text_model.keep(scores).sum(dim=1)).any())
    rank = scores.score.masked_fill(~selectable, -torch.inf).argsort(dim=1, descending=True)
    keep = torch.zeros_like(scores.score).scatter_(
        1, rank, (torch.arange(rank.shape[1]) < budget[:, None]).float()
    )
    hidden = text_model.predictor.represent(scores.view.content, scores.view.position, keep)
    logits = hidden @ text_model.predictor.head.weight.T
    length = (logits - logits.mean(dim=1, keepdim=True)).norm(dim=1)
    expected = float(-torch.log(length + 1e-6).mean().detach())
    assert loss(method, "norm") == pytest.approx(expected, rel=1e-4)
    assert loss(published, "norm") != pytest.approx(expected, rel=1e-3)
    assert loss(method, "answer") == pytest.approx(loss(published, "answer"), rel=1e-6)


def test_n2r_selector_hears_the_penalties_in_both_turns(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    make_method("n2r", lambda_coherence=0.5)(examples, NOW, "answer")["loss"].backward()
    assert moved(text_model.selector)


def test_a2r_answers_softly_and_hard_and_holds_each_still_for_the_other(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method("a2r", lambda_divergence=0.6)
    soft = method.auxiliary
    assert isinstance(soft, nn.Linear)
    nn.init.normal_(soft.weight)
    terms = method(examples, NOW)
    scores = text_model.selector(examples.inputs)
    assert scores.hidden is not None
    score = scores.score.masked_fill(~scores.view.selectable, -torch.inf)
    attention = score.softmax(dim=1)
    softly = soft((attention.unsqueeze(2) * scores.hidden).sum(dim=1))
    keep = text_model.keep(scores)
    hard = text_model.classify_masked(scores.view, keep)
    divergence = losses.jensen_shannon(softly, hard)
    expected = (
        F.cross_entropy(hard, examples.labels)
        + F.cross_entropy(softly, examples.labels)
        + 2 * 0.6 * divergence  # once for each side
    )
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    terms["loss"].backward()
    # The selector's gradient is that of the soft side alone.
    selector = list(text_model.selector.parameters())
    side = F.cross_entropy(softly, examples.labels) + 0.6 * losses.jensen_shannon(
        softly, hard.detach()
    )
    for parameter, expected_gradient in zip(
        selector, torch.autograd.grad(side, selector, allow_unused=True), strict=True
    ):
        if expected_gradient is not None:
            torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-3, atol=1e-5)
    assert moved(soft)
    assert moved(text_model.predictor)


def test_a2i_attacks_and_doubts_in_turn(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    method = make_method("a2i", lambda_attack=0.8, lambda_coherence=0.0)
    attacker = method.auxiliary
    assert attacker is not None
    first, second = method.turns
    assert set(first.trained) == {text_model.selector, text_model.predictor}
    assert second.trained == (attacker,)

    torch.manual_seed(5)
    terms = method(examples, NOW, "model")
    torch.manual_seed(5)
    wrong = other_labels(examples.labels, 3)
    assert (wrong != examples.labels).all()
    view, keep = rationale(text_model, examples)
    ours = text_model.classify_masked(view, keep)
    attack = attacker(examples.inputs)
    shown = text_model.classify_masked(view, text_model.keep(attack).float())
    expected = F.cross_entropy(ours, examples.labels) + 0.8 * losses.doubt(shown, wrong)
    assert float(terms["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    terms["loss"].backward()
    assert moved(text_model.selector)
    assert moved(text_model.predictor)
    assert all(p.grad is None for p in attacker.parameters())

    text_model.zero_grad(set_to_none=True)
    text_model.requires_grad_(False)
    torch.manual_seed(5)
    terms = method(examples, NOW, "attacker")
    fooled = F.cross_entropy(shown, wrong)
    assert float(terms["loss"].detach()) == pytest.approx(float(fooled.detach()), rel=1e-4)
    terms["loss"].backward()
    assert moved(attacker)
    assert all(p.grad is None for p in text_model.parameters())


def test_the_other_label_of_two_is_the_flipped_one() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    assert other_labels(labels, 2).tolist() == [1, 0, 0, 1]
    torch.manual_seed(0)
    many = other_labels(torch.full((3000,), 2), 4)
    counts = torch.bincount(many, minlength=4) / 3000
    assert counts[2] == 0
    assert (counts[[0, 1, 3]] - 1 / 3).abs().max() < 0.04


def test_word_statistics_by_hand() -> None:
    # texts (5 5 6), (5 7), (8): idf of 5 is log 3/2, of the others log 3
    texts = torch.tensor([[5, 5, 6], [5, 7, 0], [8, 0, 0]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    noise = WordNoise([TokenView(texts, texts, valid, valid)], 10)
    rare, common = math.log(3), math.log(1.5)
    found = noise.inverse_document_frequency
    assert found[[5, 6, 7, 8]].tolist() == pytest.approx([common, rare, rare, rare])
    # summed term frequencies: 5: 2/3 + 1/2, 6: 1/3, 7: 1/2, 8: 1
    scores = {5: (2 / 3 + 1 / 2) * common, 6: rare / 3, 7: rare / 2, 8: rare}
    weights = {word: rare - score for word, score in scores.items()}
    total = sum(weights.values())
    for word in range(10):
        assert float(noise.chance[word]) == pytest.approx(weights.get(word, 0.0) / total, abs=1e-6)
    # in the first text: 5 twice with tf-idf 2/3 * common, 6 with rare / 3, which is the highest
    chance = noise.replaced_chance(TokenView(texts, texts, valid, valid), 0.2)
    low, high = 2 / 3 * common, rare / 3
    gap = (high - low) / (2 * (high - low))
    assert chance[0].tolist() == pytest.approx([0.6 * gap, 0.6 * gap, 0.0], abs=1e-6)
    assert float(chance[2, 0]) == pytest.approx(0.2)  # one word: nothing to compare with
    assert chance[2, 1] == 0


def test_noise_replaces_about_its_share_and_never_what_cannot_be_selected() -> None:
    torch.manual_seed(0)
    words = torch.randint(5, 60, (200, 20))
    valid = torch.ones_like(words, dtype=torch.bool)
    valid[:, 15:] = False
    view = TokenView(words, words, valid, valid)
    noised = WordNoise([view], 60)(view, 0.3)
    changed = noised != words
    assert not changed[:, 15:].any()
    assert float(changed[:, :15].float().mean()) == pytest.approx(0.3, abs=0.03)

    patches = torch.arange(64, dtype=torch.float32).reshape(4, 8, 2)
    everything = torch.ones(4, 8, dtype=torch.bool)
    view = TokenView(patches, everything.long(), everything, everything)
    noised = PatchNoise()(view, 0.5)
    changed = (noised != patches).any(dim=2)
    assert 0 < changed.sum() < 32
    # A new patch is one of another image.
    rows = noised[changed][:, 0] // 16
    assert (rows != torch.arange(4).repeat_interleave(8).reshape(4, 8)[changed]).all()
    alone = TokenView(patches[:1], everything[:1].long(), everything[:1], everything[:1])
    assert PatchNoise()(alone, 0.5) is alone.content


def test_nir_shows_noise_to_the_predictor_alone(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    torch.manual_seed(0)
    quiet = make_method("nir", noise_share=0.0)
    plain = make_method("a2r")
    assert quiet.auxiliary is not None
    assert plain.auxiliary is not None
    plain.auxiliary.load_state_dict(
        {
            "weight": quiet.auxiliary.state_dict()["soft.weight"],
            "bias": quiet.auxiliary.state_dict()["soft.bias"],
        }
    )
    assert set(quiet.auxiliary.state_dict()) == {"soft.weight", "soft.bias"}
    same = plain(examples, NOW)
    for name, term in quiet(examples, NOW).items():
        assert float(term.detach()) == pytest.approx(float(same[name].detach()), rel=1e-4), name
    loud = make_method("nir", noise_share=0.9)
    assert loud.auxiliary is not None
    loud.auxiliary.load_state_dict(quiet.auxiliary.state_dict())
    found = loud(examples, NOW)
    assert float(found["soft_ce"]) == pytest.approx(float(same["soft_ce"]), rel=1e-5)
    assert float(found["ce"]) != pytest.approx(float(same["ce"]), rel=1e-3)


def test_an_intervention_head_by_hand() -> None:
    head = InterventionHead(2, 1, 2, mapped=False)
    with torch.no_grad():
        head.labels.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        head.bias.fill_(0.5)
    set_label_shares(nn.Sequential(head), [3, 1])
    share = 1 / (1 + math.exp(2 * 2.0 - 1.0))  # softmax over (1 * 1, 2 * 2)
    context = (0.75 * share, 0.25 * (1 - share) * 2.0)
    expected = 1.0 + 10 * 2.0 + 100 * context[0] + 1000 * context[1] + 0.5
    found = float(head(torch.tensor([[1.0, 2.0]])).detach())
    assert found == pytest.approx(expected, rel=1e-5)


def test_inter_rat_adjusts_both_heads(
    make_method: Make, text_model: Rationalist, examples: Batch
) -> None:
    intervene_selector(text_model.selector, 3)
    intervene_predictor(text_model.predictor, 3)
    terms = make_method("inter_rat", lambda_coherence=0.0)(examples, NOW)
    view, keep = rationale(text_model, examples)
    ce = F.cross_entropy(text_model.classify_masked(view, keep), examples.labels)
    assert float(terms["loss"].detach()) == pytest.approx(float(ce.detach()), rel=1e-4)
    terms["loss"].backward()
    for part in (text_model.selector, text_model.predictor):
        assert isinstance(part.head, InterventionHead)
        assert part.head.labels.grad is not None
        assert part.head.labels.grad.any()


@pytest.mark.parametrize("name", ["rnp", "n2r", "a2r", "nir", "a2i", "inter_rat"])
def test_every_method_distils_from_a_teacher_too(
    name: str, text_model: Rationalist, folded_model: Rationalist, parts: Parts, examples: Batch
) -> None:
    teacher = Teacher(folded_model, text_model)
    keys = {"selection": "exactly_k", "selection_noise": 0.0}
    spec = ObjectiveSpec.model_validate(
        {"method": name, "alpha": 0.3, "lambda_rationale": 0.7, **keys}
    )
    torch.manual_seed(2)
    method = build_method(text_model, spec, teacher.targets, parts)
    alone = build_method(text_model, spec, None, replace(parts))
    if method.auxiliary is not None and alone.auxiliary is not None:
        alone.auxiliary.load_state_dict(method.auxiliary.state_dict())
    turn = method.turns[0].name if method.turns else None
    torch.manual_seed(4)
    terms = method(examples, NOW, turn)
    torch.manual_seed(4)
    own = alone(examples, NOW, turn)["loss"]
    kd = spec.kd_temperature**2
    taught = 0.7 * terms["kl_rationale"] + kd * terms["kl_prediction"]
    expected = 0.3 * own.detach() + 0.7 * taught
    assert float(terms["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)
    terms["loss"].backward()
    assert moved(text_model.selector)
    assert all(p.grad is None for p in folded_model.parameters())


@pytest.mark.parametrize(
    ("kind", "method", "keys"),
    [
        ("multi_label_classification", "rnp", {}),
        ("multi_label_classification", "rnp", {"selection": "reinforce"}),
        ("multi_label_classification", "n2r", {}),
        ("multi_label_classification", "a2r", {}),
        ("multi_label_classification", "nir", {}),
        ("regression", "rnp", {}),
        ("regression", "rnp", {"selection": "reinforce"}),
        ("regression", "mmi_n2r", {}),
    ],
)
def test_methods_train_for_several_labels_and_for_numbers(
    make_method: Make,
    text_model: Rationalist,
    examples: Batch,
    kind: ProblemType,
    method: str,
    keys: dict[str, object],
) -> None:
    outputs = text_model.predictor.head.out_features
    text_model.predictor.problem = make_problem(kind, outputs)
    labels = torch.randint(0, 2, (len(examples.labels), outputs)).float()
    batch = replace(examples, labels=labels)
    made = make_method(method, **keys)
    turn = made.turns[0].name if made.turns else None
    terms = made(batch, NOW, turn)
    assert ("squared_error" if kind == "regression" else "ce") in terms
    terms["loss"].backward()
    head = text_model.predictor.head.weight.grad
    assert head is not None
    assert bool(head.isfinite().all())
    assert float(head.abs().sum()) > 0


@pytest.mark.parametrize("selection", ["exactly_k", "bernoulli"])
@pytest.mark.parametrize("name", ["rnp", "n2r", "mmi_n2r", "a2i"])
def test_gathered_steps_have_the_loss_and_the_gradients_of_masked_ones(
    make_method: Make,
    text_model: Rationalist,
    examples: Batch,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    selection: str,
) -> None:
    text_model.double()
    method = make_method(name, selection=selection).double()
    used: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        used.append(given[-1])
        return represent_kept(*given)

    monkeypatch.setattr(base, "represent_kept", counted)
    monkeypatch.setattr(base, "SLOTS_APART", 1)  # half of so short texts is kept at first

    def step(gather: bool, turn: str | None) -> tuple[float, dict[str, torch.Tensor]]:
        method.gather = gather
        method.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        loss = method(examples, NOW, turn)["loss"]
        loss.backward()
        named = method.named_parameters()
        return float(loss.detach()), {n: p.grad for n, p in named if p.grad is not None}

    for turn in [turn.name for turn in method.turns] or [None]:
        loss, expected = step(False, turn)
        assert not used
        found_loss, found = step(True, turn)
        if not (name == "n2r" and turn == "answer"):  # its rationale has no gradient there
            assert used
            assert max(used) < examples.inputs["input_ids"].shape[1] - 1
        used.clear()
        assert found_loss == pytest.approx(loss, rel=1e-9)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-9)


def test_relaxed_weights_are_never_gathered(make_method: Make, examples: Batch) -> None:
    method = make_method("rnp", selection="hard_kuma")
    torch.manual_seed(3)
    masked = method(examples, NOW)["loss"]
    method = make_method("rnp", selection="hard_kuma")
    method.gather = True
    torch.manual_seed(3)
    assert float(method(examples, NOW)["loss"].detach()) == float(masked.detach())
