from __future__ import annotations

import pytest
import torch

from rekd_edge.distill.loop import Rates, make_accelerator, make_optimizer
from rekd_edge.errors import UsageError
from rekd_edge.recipe.schema import TrainSpec


@pytest.mark.parametrize(
    ("native", "precision", "expected"),
    [
        ("amx_bf16", "auto", "bf16"),
        ("avx512_bf16", "auto", "bf16"),
        (None, "auto", "no"),
        ("amx_bf16", "no", "no"),
        (None, "bf16", "bf16"),
    ],
)
def test_auto_takes_bf16_only_where_the_cpu_multiplies_it(
    native: str | None, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, native: True})
    train = TrainSpec.model_validate({"precision": precision})
    assert str(make_accelerator(train, "cpu").mixed_precision) == expected


def test_auto_takes_none_where_torch_does_not_know_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert str(make_accelerator(TrainSpec(precision="auto"), "cpu").mixed_precision) == "no"


def test_fp16_needs_cuda() -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        make_accelerator(TrainSpec(precision="fp16"), "cpu")


class Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(2, 2)


def test_a_first_training_has_a_rate_of_its_own_and_its_head_keeps_the_factor() -> None:
    train = TrainSpec.model_validate(
        {
            "learning_rate": 2e-5,
            "head_learning_rate": 1e-4,
            "weight_decay": 0.1,
            "warmup": {"predictor_learning_rate": 1e-4},
        }
    )
    assert Rates.of(train) == Rates(body=2e-5, head=1e-4)
    first = Rates.first_of(train)
    assert (first.body, first.head) == pytest.approx((1e-4, 5e-4))
    assert Rates.first_of(TrainSpec(learning_rate=3e-5)) == Rates(3e-5, 3e-5)

    part = Part()
    trained = set(part.parameters()) - {part.body.bias}
    optimizer = make_optimizer({part: first}, trained, train, torch.device("cpu"))
    groups = {
        (group["lr"], group["weight_decay"]): group["params"] for group in optimizer.param_groups
    }
    assert {key: len(found) for key, found in groups.items()} == {
        (first.body, 0.1): 1,
        (first.head, 0.1): 1,
        (first.head, 0.0): 1,
    }
    assert groups[(first.body, 0.1)][0] is part.body.weight
    assert all(group["base_lr"] == group["lr"] for group in optimizer.param_groups)


def test_without_one_kernel_the_optimizer_is_pytorchs_own_default() -> None:
    """`fused=False` would turn the default of CUDA off, too: the published code has the default."""
    device = torch.device("cuda")  # parameters may be elsewhere: nothing is computed
    part = Part()
    plain, fused = (
        make_optimizer(
            {part: Rates(1e-3, 1e-3)}, set(part.parameters()), TrainSpec(), where, fused=wanted
        )
        for wanted, where in ((False, device), (True, torch.device("cpu")))
    )
    assert (plain.defaults["fused"], plain.defaults["foreach"]) == (None, None)
    assert fused.defaults["fused"] is True
