"""Attributions on a predictor whose answer is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rekd_edge.distill.attribution import mask_gradient, normalise_attribution, occlusion
from rekd_edge.models.encoder import TokenView


class SumOfTokens(nn.Module):
    """Logits (sum of weight * content, 0): removing token i changes the margin by content i."""

    def forward(
        self, content: Tensor, position: Tensor, key_weight: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        total = (content.float() * key_weight.float()).sum(dim=1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def view() -> TokenView:
    content = torch.tensor([[3, -1, 2, 9], [-4, 1, 5, -8]])
    selectable = torch.tensor([[True, True, True, False], [True, True, False, True]])
    return TokenView(content, torch.arange(4).expand(2, 4), selectable, selectable)


def test_both_attributions_find_the_contribution_to_the_predicted_class() -> None:
    # Row 0 sums to 4: class 0. Row 1 sums to -11: class 1, so contributions change sign.
    expected = [[3.0, -1.0, 2.0, 0.0], [4.0, -1.0, 0.0, 8.0]]
    predictor = SumOfTokens()
    assert mask_gradient(predictor, view()).tolist() == expected  # pyright: ignore[reportArgumentType]
    assert occlusion(predictor, view(), chunk=2).tolist() == expected  # pyright: ignore[reportArgumentType]


def test_normalised_attributions_have_unit_root_mean_square() -> None:
    attribution = torch.tensor([[3.0, -4.0, 100.0], [0.0, 0.0, 0.0]])
    selectable = torch.tensor([[True, True, False], [True, True, True]])
    normalised = normalise_attribution(attribution, selectable)
    assert normalised[0, 2] == 0
    assert float(normalised[0, :2].pow(2).mean()) == 1.0
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]
