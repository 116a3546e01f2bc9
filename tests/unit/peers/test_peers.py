"""Token-reduction peers: nothing reduced is the plain classifier, and every export is the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.peers.bert import PowerBert, Truncated, most_attended
from benchmarks.peers.build import KINDS, build_peer, chosen_blocks, strength_for
from benchmarks.peers.peer import Peer, kept
from benchmarks.peers.shallow import Shallow
from benchmarks.peers.vit import DynamicVit, EVit, ToMe, VitPeer, keep_and_fuse, match, merge
from rekd_edge.convert import convert_to_onnx, load_target
from rekd_edge.errors import UsageError
from rekd_edge.fuse import PlainClassifier
from rekd_edge.fuse.report import model_flops
from rekd_edge.models.encoder import BertEncoder, VitEncoder
from rekd_edge.models.rationalist import Predictor
from rekd_edge.recipe.latency_file import PeerSpec
from rekd_edge.runners import OnnxRunner

LABELS = ("a", "b", "c")
CLS, SEP, MAX_LENGTH = 101, 102, 40
FINE_TUNE = {"epochs": 1}


def vit(pooling: str = "mean", registers: int = 0) -> Predictor:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "test_vit", img_size=64, num_classes=0, depth=4, reg_tokens=registers, pretrained=False
    )
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    predictor = Predictor(VitEncoder(backbone), 3, pooling=pooling).eval()
    torch.nn.init.normal_(predictor.head.weight)
    return predictor


def bert(pooling: str = "mean") -> Predictor:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
    )
    encoder = BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)
    predictor = Predictor(encoder, 3, pooling=pooling).eval()
    torch.nn.init.normal_(predictor.head.weight)
    return predictor


def plain(predictor: Predictor) -> PlainClassifier:
    return PlainClassifier(predictor, label_names=LABELS, max_length=MAX_LENGTH).eval()


def images(count: int = 3) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)


def texts(lengths: tuple[int, ...] = (14, 9, 3), width: int | None = None) -> tuple[Tensor, ...]:
    """Word pieces between special tokens, padded to the longest or to ``width``."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.zeros(len(lengths), width or max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(200, 300, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = CLS, SEP
    return ids, (torch.arange(ids.shape[1]) < torch.tensor(lengths).unsqueeze(1)).long()


VIT_PEERS: dict[str, Callable[[Predictor, bool], Peer]] = {
    "evit": lambda p, off: EVit(p, keep=1 if off else 0.5, blocks=(1, 2), label_names=LABELS),
    "tome": lambda p, off: ToMe(p, merges=0 if off else 3, label_names=LABELS),
    "dynamicvit": lambda p, off: DynamicVit(
        p, keep=1 if off else 0.5, blocks=(1, 3), label_names=LABELS
    ),
    "shallow": lambda p, off: Shallow(p, depth=4 if off else 2, label_names=LABELS),
}
BERT_PEERS: dict[str, Callable[[Predictor, bool], Peer]] = {
    "power": lambda p, off: PowerBert(
        p, shares=(1, 1, 1) if off else (0.7, 0.5, 0.3), label_names=LABELS, max_length=MAX_LENGTH
    ),
    "truncate": lambda p, off: Truncated(p, keep=1 if off else 0.4, label_names=LABELS),
    "shallow": lambda p, off: Shallow(p, depth=3 if off else 1, label_names=LABELS),
}


def make(modality: str, kind: str, *, off: bool, pooling: str = "mean") -> tuple[Peer, Predictor]:
    predictor = vit(pooling, registers=2) if modality == "image" else bert(pooling)
    peers = VIT_PEERS if modality == "image" else BERT_PEERS
    return peers[kind](predictor, off).eval(), predictor


ALL = [("image", kind) for kind in VIT_PEERS] + [("text", kind) for kind in BERT_PEERS]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("modality", "kind"), ALL)
@torch.no_grad()
def test_with_nothing_reduced_it_is_the_plain_classifier(
    modality: str, kind: str, pooling: str
) -> None:
    given = images() if modality == "image" else texts()
    # In float64, where a difference is one of the computation and not of a processor's rounding.
    inputs = [one.double() if one.is_floating_point() else one for one in given]
    peer, predictor = make(modality, kind, off=True, pooling=pooling)
    expected = plain(predictor.double())(*inputs)[0]
    assert float((peer.double()(*inputs)[0] - expected).abs().max()) < 1e-10
    reduced, _ = make(modality, kind, off=False, pooling=pooling)
    assert float((reduced.double()(*inputs)[0] - expected).abs().max()) > 1e-3
    assert model_flops(reduced, 14) < model_flops(peer, 14)


@pytest.mark.parametrize(("modality", "kind"), ALL)
@torch.no_grad()
def test_the_exported_file_answers_as_torch_does(modality: str, kind: str, tmp_path: Path) -> None:
    peer, _ = make(modality, kind, off=False)
    path = tmp_path / "peer.onnx"
    convert_to_onnx(peer, peer.io_spec(), path, target=load_target("onnx"), metadata={})
    names = [tensor.name for tensor in peer.io_spec().inputs]
    shapes: list[tuple[Tensor, ...]] = [images(1), images(3)]
    if modality == "text":
        shapes = [texts((9,)), texts((14, 9, 3)), texts((40, 3, 5)), texts((3,)), texts((2, 2))]
    with OnnxRunner(path, threads=1) as runner:
        assert runner.output_names == ["logits"]
        for inputs in shapes:
            named = {n: value.numpy() for n, value in zip(names, inputs, strict=True)}
            found = runner.run_named(named, ["logits"])["logits"]
            assert np.abs(found - peer(*inputs)[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", list(BERT_PEERS))
@torch.no_grad()
def test_a_text_is_answered_alike_whatever_it_is_padded_to(kind: str) -> None:
    peer, _ = make("text", kind, off=False)
    together = peer(*texts((14, 9, 3), width=30))[0]
    ids, attended = texts((14, 9, 3))
    for row, length in enumerate((14, 9, 3)):
        alone = peer(ids[row : row + 1, :length], attended[row : row + 1, :length])[0]
        assert float((alone[0] - together[row]).abs().max()) < 1e-5


def test_truncation_keeps_the_first_words_and_the_special_tokens() -> None:
    seen: list[tuple[Tensor, ...]] = []
    predictor = bert()
    predictor.register_forward_pre_hook(lambda _, given: seen.append(given))
    peer = Truncated(predictor, keep=0.5, label_names=LABELS).eval()
    ids, attended = texts((9, 4, 3))
    peer(ids, attended)
    content, position, valid = seen[0]
    # 7, 2 and 1 words: 4, 1 and 1 of them stay, each before its own `[SEP]`.
    for row, words in enumerate((4, 1, 1)):
        assert content[row][valid[row]].tolist() == [*ids[row, 1 : words + 1].tolist(), SEP]
        assert position[row][valid[row]].tolist() == list(range(1, words + 2))
    assert content.shape[1] == 5


def test_padding_is_never_kept_before_content() -> None:
    received = torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.8]])
    valid = torch.tensor([[True, True, True, False, False]])
    content = torch.arange(5.0).reshape(1, 5, 1)
    left, used = most_attended(content, received, valid, torch.tensor([2]), 4)
    assert left[used].flatten().tolist() == [1.0, 2.0]
    left, used = most_attended(content, received, valid, torch.tensor([3]), 4)
    assert sorted(left[used].flatten().tolist()) == [0.0, 1.0, 2.0]


def test_word_vectors_stay_that_received_most_attention() -> None:
    predictor = bert()
    peer = PowerBert(predictor, shares=(1, 0.5, 0.2), label_names=LABELS)
    widths: list[int] = []
    for layer in peer.layers:
        layer.intermediate.register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[1]))
    peer(*texts((8, 5)))
    # 7 content tokens: ceil(.5 * 7) = 4, ceil(.2 * 7) = 2; and `[CLS]`.
    assert widths == [8, 5, 3]
    with pytest.raises(UsageError, match="must not rise"):
        PowerBert(predictor, shares=(0.5, 0.6, 0.2), label_names=LABELS)
    with pytest.raises(UsageError, match="2 shares for 3 blocks"):
        PowerBert(predictor, shares=(0.5, 0.2), label_names=LABELS)


def by_hand_matching(key: np.ndarray, merges: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Places of even tokens that stay, and the merged pairs (even place, odd place)."""
    unit = key / np.sqrt((key * key).sum(axis=1, keepdims=True))
    proposals = []
    for a in range(0, len(key), 2):
        partners = [(float(unit[a] @ unit[b]), -b) for b in range(1, len(key), 2)]
        similarity, negative = max(partners)
        proposals.append((similarity, a, -negative))
    proposals.sort(reverse=True)
    pairs = [(a, b) for _, a, b in proposals[:merges]]
    return [a for _, a, _ in proposals[merges:]], pairs


@pytest.mark.parametrize(("count", "merges"), [(8, 3), (7, 2), (6, 3)])
def test_tome_matches_and_merges_as_by_hand(count: int, merges: int) -> None:
    rng = np.random.default_rng(count)
    key = rng.standard_normal((count, 5))
    content = rng.standard_normal((count, 4))
    size = rng.integers(1, 4, count).astype(np.float64)
    stay, pairs = by_hand_matching(key, merges)
    rows = [(content[a], size[a]) for a in stay]
    for b in range(1, count, 2):
        members = [b, *(a for a, partner in pairs if partner == b)]
        total = sum(size[m] for m in members)
        rows.append((sum(content[m] * size[m] for m in members) / total, total))
    found = match(torch.from_numpy(key)[None], merges)
    merged, sizes = merge(torch.from_numpy(content)[None], torch.from_numpy(size)[None], found)
    np.testing.assert_allclose(merged[0].numpy(), np.stack([row for row, _ in rows]), atol=1e-12)
    np.testing.assert_allclose(sizes[0].numpy(), [each for _, each in rows])
    assert float(sizes.sum()) == pytest.approx(size.sum())
    mean = (merged[0].numpy() * sizes[0].numpy()[:, None]).sum(0) / size.sum()
    np.testing.assert_allclose(mean, (content * size[:, None]).sum(0) / size.sum(), atol=1e-12)


def test_evit_keeps_and_fuses_as_by_hand() -> None:
    rng = np.random.default_rng(3)
    content, score = rng.standard_normal((2, 6, 4)), rng.random((2, 6)) + 0.01
    size = rng.integers(1, 4, (2, 6)).astype(np.float64)
    given = [torch.from_numpy(values) for values in (content, size, score)]
    found, sizes = keep_and_fuse(given[0], given[1], given[2], 3)
    for row in range(2):
        order = sorted(range(6), key=lambda i: -score[row, i])
        total = sum(score[row, i] for i in order[3:])
        fused = sum(content[row, i] * score[row, i] / total for i in order[3:])
        expected = np.stack([*(content[row, i] for i in order[:3]), np.asarray(fused)])
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-12)
        left = [*(size[row, i] for i in order[:3]), sum(size[row, i] for i in order[3:])]
        np.testing.assert_allclose(sizes[row].numpy(), left)


@pytest.mark.parametrize("kind", ["evit", "tome"])
@torch.no_grad()
def test_sizes_sum_to_the_number_of_patches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, _ = make("image", kind, off=False)
    seen: list[Tensor] = []
    assert isinstance(peer, VitPeer)
    finish = peer.finish

    def watched(tokens: Tensor, size: Tensor) -> Tensor:
        seen.append(size)
        return finish(tokens, size)

    monkeypatch.setattr(peer, "finish", watched)
    peer(*images(2))
    assert seen[0].sum(dim=1).tolist() == pytest.approx([16.0, 16.0])
    assert seen[0].shape[1] < 16


def test_dynamic_vit_drops_by_stage_and_is_penalised_for_other_shares() -> None:
    peer, _ = make("image", "dynamicvit", off=False)
    assert isinstance(peer, DynamicVit)
    assert peer.stages == {1: 0.5, 3: 0.25}
    widths: list[int] = []
    for block in peer.blocks:
        block.mlp.register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[1]))
    peer(*images(1))
    assert [width - 3 for width in widths] == [16, 8, 8, 4]
    logits, penalty = peer.training_answer(dict(zip(["pixel_values"], images(2), strict=True)))
    assert penalty is not None
    assert 0 < penalty.item() < 1
    (logits.sum() + penalty).backward()
    gradients = [p.grad for p in peer.scorers.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients if g is not None)


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize(("modality", "kind"), ALL)
def test_the_strength_comes_nearest_to_the_wanted_share(
    modality: str, kind: str, share: float
) -> None:
    predictor = vit() if modality == "image" else bert()
    tune = FINE_TUNE if kind in {"dynamicvit", "shallow"} else None
    spec = PeerSpec.model_validate({"kind": kind, "share": share, "fine_tune": tune})

    def built(spec: PeerSpec) -> float:
        found = build_peer(predictor, spec, label_names=LABELS, max_length=MAX_LENGTH, tokens=30)
        assert found.strength == (spec.strength or found.strength)
        return found.flops_share

    chosen = build_peer(predictor, spec, label_names=LABELS, max_length=MAX_LENGTH, tokens=30)
    step = 1 if kind in {"tome", "shallow"} else 0.01
    again = {"kind": kind, "fine_tune": tune}
    for other in (chosen.strength - step, chosen.strength + step):
        if 0 < other <= (4 if kind == "shallow" else 8 if kind == "tome" else 1):
            if modality == "text" and kind == "shallow" and other > 3:
                continue
            found = built(PeerSpec.model_validate({**again, "strength": round(other, 4)}))
            assert abs(found - share) >= abs(chosen.flops_share - share) - 1e-9


def test_of_a_ladder_the_nearest_rung_is_taken() -> None:
    predictor = vit()

    def make(depth: float) -> Peer:
        return Shallow(predictor, depth=int(depth), label_names=LABELS).eval()

    costs = {depth: model_flops(make(depth), 3) for depth in (4, 3, 2, 1)}
    for depth, cost in costs.items():
        assert strength_for(make, (4, 3, 2, 1), wanted=cost * 1.01, tokens=3) == depth
    assert strength_for(make, (4, 3, 2, 1), wanted=0, tokens=3) == 1
    assert strength_for(make, (4, 3, 2, 1), wanted=1e12, tokens=3) == 4


def test_counts_and_stages() -> None:
    assert [kept(share, 36) for share in (1, 0.5, 0.15, 0.01)] == [36, 18, 6, 1]
    assert chosen_blocks(PeerSpec(kind="evit", share=0.5), 12) == (3, 6, 9)
    assert chosen_blocks(PeerSpec(kind="tome", share=0.5), 12) == ()
    with pytest.raises(UsageError, match="no block 12 of 12"):
        chosen_blocks(PeerSpec(kind="evit", share=0.5, blocks=(3, 12)), 12)


def test_a_peer_has_weights_of_its_own_and_the_right_backbone() -> None:
    predictor = bert()
    spec = PeerSpec(kind="power", strength=0.5)
    peer = build_peer(predictor, spec, label_names=LABELS, max_length=MAX_LENGTH, tokens=20).model
    with torch.no_grad():
        peer.predictor.head.weight.zero_()
    assert predictor.head.weight.abs().max().item() > 0
    for modality, other in (("text", vit()), ("image", predictor)):
        kind = KINDS[modality][0]
        with pytest.raises(UsageError, match="is not for"):
            build_peer(
                other,
                PeerSpec.model_validate({"kind": kind, "share": 0.5}),
                label_names=LABELS,
                max_length=MAX_LENGTH,
                tokens=20,
            )


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"kind": "evit"}, "either `share` or `strength`"),
        ({"kind": "evit", "share": 0.5, "strength": 0.5}, "either `share` or `strength`"),
        ({"kind": "dynamicvit", "share": 0.5}, "needs `fine_tune`"),
        ({"kind": "shallow", "strength": 2}, "needs `fine_tune`"),
        ({"kind": "tome", "share": 0.5, "blocks": [1]}, "in no chosen `blocks`"),
        ({"kind": "evit", "share": 0.5, "blocks": [1, 1]}, "distinct"),
        ({"kind": "tome", "strength": 1.5}, "whole number"),
        ({"kind": "power", "strength": 2}, "is a share"),
    ],
)
def test_descriptions_without_a_meaning_are_refused(
    stated: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PeerSpec.model_validate(stated)
