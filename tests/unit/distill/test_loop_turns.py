"""Phases whose batches get several updates, and what is trained beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from rekd_edge.distill import loop
from rekd_edge.distill.loop import DevResult, Phase, Rates, Turn, fit
from rekd_edge.distill.objectives import LossTerms, Progress
from rekd_edge.errors import IntegrityError
from rekd_edge.recipe.schema import TrainSpec
from rekd_edge.types import Batch

TRAIN = TrainSpec(
    epochs=1,
    learning_rate=0.1,
    weight_decay=0.1,
    lr_schedule="constant",
    lr_warmup_share=0,
    gradient_clip=None,
    checkpoint_every_steps=1,
)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 1)


class Game(nn.Module):
    """Turn `both` lowers the answer, turn `first` raises it through what stands still."""

    def __init__(self, model: Pair, beside: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self.beside = beside
        self.seen: list[str | None] = []

    def forward(self, batch: Batch, progress: Progress, turn: str | None = None) -> LossTerms:
        self.seen.append(turn)
        inputs: Tensor = batch.inputs["x"]
        answer = self.model.second(self.model.first(inputs)).square().mean()
        if turn == "first":
            return {"loss": -answer + torch.rand(())}
        return {"loss": answer + self.beside(inputs).square().mean()}


def batches(count: int) -> list[Batch]:
    made = []
    for row in range(count):
        values = torch.randn(2, 3, generator=torch.Generator().manual_seed(row))
        made.append(Batch({"x": values}, torch.zeros(2, dtype=torch.long), torch.arange(2)))
    return made


def run(
    folder: Path,
    count: int = 3,
    *,
    resume: bool = False,
    stop: int | None = None,
    train: TrainSpec = TRAIN,
) -> tuple[Pair, list[str | None]]:
    model = Pair()
    beside = nn.Linear(3, 1)
    game = Game(model, beside)
    rates = Rates(0.1, 0.1)

    class Stop:
        left = -1 if stop is None else stop

        def phase(self, name: str, total_steps: int, done_steps: int) -> None: ...
        def epoch(self, name: str, result: DevResult) -> None: ...
        def warning(self, warning: object) -> None: ...
        def step(self, terms: dict[str, float]) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    phase = Phase(
        "joint",
        game,
        1,
        {model.first: rates, model.second: rates, beside: rates},
        select=True,
        auxiliary=beside,
        turns=(
            Turn("both", (model.first, model.second, beside)),
            Turn("first", (model.first,)),
        ),
    )
    fit(
        model,
        [phase],
        train=train,
        epoch_loader=lambda _: batches(count),
        evaluate=lambda _: DevResult(0.0, 0.0),
        folder=folder,
        seed=0,
        device="cpu",
        resume=resume,
        listener=Stop(),
    )
    return model, game.seen


@pytest.mark.parametrize(
    ("asked", "apart_s", "expected"), [(2, 1e9, 2), (None, 0, 1), (None, 1e9, 0)]
)
def test_checkpoints_are_apart_in_steps_and_unless_a_number_is_given_in_time(
    asked: int | None,
    apart_s: float,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
    monkeypatch.setattr(loop, "CHECKPOINT_APART_S", apart_s)
    written: list[int] = []
    write = loop.save_training_state

    def counted(path: Path, model: nn.Module, optimizer: Any, state: Any, beside: Any) -> None:
        written.append(state["step"])
        write(path, model, optimizer, state, beside)

    monkeypatch.setattr(loop, "save_training_state", counted)
    train = TRAIN.model_copy(update={"checkpoint_every_steps": asked})
    run(tmp_path, count=5, train=train)
    assert written[-1] == 0  # the end of the phase
    assert len(written) - 1 == expected


def test_a_turn_moves_its_own_parts_as_their_own_optimizer_would(tmp_path: Path) -> None:
    found, seen = run(tmp_path, count=3)
    assert seen == ["both", "first"] * 3
    assert all(parameter.requires_grad for parameter in found.parameters())

    expected, beside = Pair(), nn.Linear(3, 1)
    game = Game(expected, beside)
    # One optimizer for each part: what a turn leaves out must not even be counted.
    optimizers = {
        name: torch.optim.AdamW(
            [
                {"params": [module.weight], "weight_decay": 0.1},
                {"params": [module.bias], "weight_decay": 0.0},
            ],
            lr=0.1,
        )
        for name, module in (("f", expected.first), ("s", expected.second), ("b", beside))
    }
    for batch in batches(3):
        for turn, moving in (("both", "fsb"), ("first", "f")):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            game(batch, Progress(0, 3), turn)["loss"].backward()
            for name in moving:
                optimizers[name].step()
    for (name, ours), theirs in zip(
        found.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("stop", [1, 2])
def test_what_is_beside_the_model_is_resumed_and_not_in_the_result(
    tmp_path: Path, stop: int
) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=stop)
    run(tmp_path / "cut", resume=True)
    for name in ("last.safetensors", "best/model.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    with safe_open(tmp_path / "cut" / "last.safetensors", framework="pt") as file:
        keys = set(file.keys())
    assert {"auxiliary.weight", "auxiliary.bias", "model.first.weight"} <= keys
    best = load_file(tmp_path / "cut" / "best" / "model.safetensors")
    assert set(best) == {"first.weight", "first.bias", "second.weight", "second.bias"}


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    from rekd_edge.distill.checkpoint import restore_model

    with pytest.raises(IntegrityError, match="does not fit"):
        restore_model(nn.Linear(3, 1), {"model.weight": torch.zeros(1, 3)}, prefix="auxiliary.")
