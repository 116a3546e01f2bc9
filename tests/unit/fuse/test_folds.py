"""What a fold may ask of the machine; what it does to a model is in test_fused.py."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from rekd_edge.fuse.folds import BERT_ATTENTION, FOLDS, VIT_ATTENTION

LIBRARIES = ("timm", "timm.models.vision_transformer", "transformers")


def test_a_model_without_their_layers_needs_neither_timm_nor_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*LIBRARIES, VIT_ATTENTION[0], BERT_ATTENTION[0]):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    assert not any(fold(nn.Linear(2, 2)) for fold in FOLDS.values())
