from __future__ import annotations

import pytest
import torch

from rekd_edge.distill.loop import make_accelerator
from rekd_edge.errors import UsageError
from rekd_edge.recipe.schema import TrainSpec


@pytest.mark.parametrize(
    ("native", "precision", "expected"),
    [(True, "auto", "bf16"), (False, "auto", "no"), (True, "no", "no"), (False, "bf16", "bf16")],
)
def test_auto_takes_bf16_only_where_the_cpu_multiplies_it(
    native: bool, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
    train = TrainSpec.model_validate({"precision": precision})
    assert str(make_accelerator(train, "cpu").mixed_precision) == expected


def test_auto_takes_none_where_torch_does_not_know_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert str(make_accelerator(TrainSpec(precision="auto"), "cpu").mixed_precision) == "no"


def test_fp16_needs_cuda() -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        make_accelerator(TrainSpec(precision="fp16"), "cpu")
