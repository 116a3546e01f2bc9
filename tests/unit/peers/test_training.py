"""Peers are trained with the project's loop, on real examples and tiny random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.peers.build import build_peer
from benchmarks.peers.training import PeerObjective, fine_tune, whole_answer
from rekd_edge.data import load_data
from rekd_edge.data.loader import make_loader
from rekd_edge.distill.loop import FitReport
from rekd_edge.distill.objectives import Progress
from rekd_edge.models.build import build_classifier, build_rationalist
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.latency_file import FineTuneSpec, PeerSpec

TUNE = FineTuneSpec(epochs=1, learning_rate=1e-3, alpha=0.25, temperature=3.0)
FROZEN = "student.predictor.train_embeddings=false"


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    ("recipe_name", "kind", "strength"),
    [
        ("smoke/image", "dynamicvit", 0.6),
        ("smoke/image", "evit", 0.6),
        ("smoke/image", "tome", 3),
        ("smoke/text", "power", 0.6),
        ("smoke/text", "truncate", 0.6),
    ],
)
def test_a_peer_is_trained_and_a_finished_training_is_not_repeated(
    recipe_name: str, kind: str, strength: float, precision: str, tmp_path: Path
) -> None:
    changes = ["data.limit={train: 20, dev: 10, test: 10}", "student.predictor.depth=2", FROZEN]
    recipe = load_recipe(recipe_name, [*changes, f"student.train.precision='{precision}'"])
    data = load_data(recipe)
    torch.manual_seed(0)
    built = build_classifier(recipe.student, recipe, len(data.label_names))
    plain = built.model
    assert isinstance(plain, Classifier)
    stated = {"kind": kind, "strength": strength, "fine_tune": TUNE.model_dump()}
    spec = PeerSpec.model_validate(stated)
    peer = build_peer(
        plain.predictor, spec, label_names=data.label_names, max_length=32, tokens=20
    ).model
    before = {name: value.clone() for name, value in peer.state_dict().items()}

    def train() -> FitReport:
        return fine_tune(
            peer,
            data.train,
            data.dev,
            preprocessor=built.preprocessor,
            teacher=plain,
            spec=TUNE,
            train=recipe.student.train,
            folder=tmp_path / "peer",
            device="cpu",
        )

    report = train()
    after = peer.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "predictor.head.weight" in moved
    assert any(name.startswith("scorers") for name in moved) == (kind == "dynamicvit")
    assert not [name for name in moved if "word_embeddings" in name or "patch_embed" in name]
    assert report.best is not None
    assert [entry["phase"] for entry in report.history] == ["fine-tuning"]
    assert not peer.training
    again = train()
    assert again.best == report.best
    assert all(torch.equal(after[name], value) for name, value in peer.state_dict().items())


def test_the_objective_is_the_stated_formula() -> None:
    recipe = load_recipe("smoke/text", ["data.limit={train: 16, dev: 8, test: 8}"])
    data = load_data(recipe)
    torch.manual_seed(0)
    built = build_classifier(recipe.student, recipe, len(data.label_names))
    teacher = build_rationalist(recipe.student, recipe, len(data.label_names)).model
    plain = built.model
    assert isinstance(plain, Classifier)
    assert isinstance(teacher, Rationalist)
    plain.eval()
    teacher.eval()
    peer = build_peer(
        plain.predictor,
        PeerSpec(kind="power", strength=1.0),
        label_names=data.label_names,
        max_length=32,
        tokens=20,
    ).model
    batch = next(iter(make_loader(data.train, built.preprocessor, batch_size=8, shuffle=False)))
    with torch.no_grad():
        for head in (plain.predictor.head, peer.predictor.head, teacher.predictor.head):
            torch.nn.init.normal_(head.weight)
        terms = PeerObjective(peer, teacher, TUNE)(batch, Progress(0, 1))
        logits, theirs = peer.answer(batch.inputs), whole_answer(teacher, batch)
        view = teacher.predictor.encoder.view(batch.inputs)
        assert torch.equal(theirs, teacher.classify_masked(view, view.selectable))
        assert torch.equal(whole_answer(plain, batch), plain(batch.inputs))
        left, right = (theirs / 3).softmax(1), (logits / 3).softmax(1)
        divergence = (left * (left.log() - right.log())).sum(1).mean()
        expected = 0.25 * F.cross_entropy(logits, batch.labels) + 0.75 * 9 * divergence
    assert terms["loss"].item() == pytest.approx(float(expected), rel=1e-5)
