"""How much each token matters to a predictor that was trained on random subsets.

Both attributions explain the class that the predictor itself predicts on the full input, by its
logit margin (that class's logit minus the mean of the others). The predictor's parameters get
no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Predictor


def _margin(logits: Tensor, predicted: Tensor) -> Tensor:
    """Logit of ``predicted`` int64 ``[batch]`` minus the mean of the other logits; ``[batch]``."""
    own = logits.gather(1, predicted.unsqueeze(1)).squeeze(1)
    others = (logits.sum(dim=1) - own) / max(1, logits.shape[1] - 1)
    return own - others


def mask_gradient(predictor: Predictor, view: TokenView) -> Tensor:
    """d margin / d key weight of each token at the full input; float ``[batch, token]``.

    The key weight of a token is the factor with which every attention (and the pooling) counts
    it, so this is the first-order effect of removing the token: one forward and one backward
    pass an example, whatever its length.
    """
    with torch.enable_grad():
        weight = view.selectable.to(torch.float32).requires_grad_(True)
        logits = predictor(view.content, view.position, weight)
        total = _margin(logits, logits.detach().argmax(dim=1)).sum()
        (gradient,) = torch.autograd.grad(total, weight)
    return gradient * view.selectable


@torch.no_grad()
def occlusion(predictor: Predictor, view: TokenView, *, chunk: int = 512) -> Tensor:
    """Drop of the margin when one token is excluded; float ``[batch, token]``.

    One forward pass a token, ``chunk`` sequences at a time.
    """
    batch, count = view.selectable.shape
    logits = predictor(view.content, view.position, view.selectable)
    predicted = logits.argmax(dim=1)
    example, token = view.selectable.nonzero(as_tuple=True)
    drop = torch.zeros(batch, count, device=logits.device)
    full = _margin(logits, predicted)
    for start in range(0, len(example), chunk):
        row, column = example[start : start + chunk], token[start : start + chunk]
        keep = view.selectable[row].clone()
        keep[torch.arange(len(row), device=row.device), column] = False
        without = predictor(view.content[row], view.position[row], keep)
        drop[row, column] = (full[row] - _margin(without, predicted[row])).to(drop.dtype)
    return drop


def normalise_attribution(attribution: Tensor, selectable: Tensor) -> Tensor:
    """Divides by the root mean square over each example's selectable tokens."""
    kept = attribution * selectable
    count = selectable.sum(dim=1, keepdim=True).clamp_min(1)
    scale = (kept.pow(2).sum(dim=1, keepdim=True) / count).sqrt()
    return kept / scale.clamp_min(1e-6)


def centre(score: Tensor, selectable: Tensor) -> Tensor:
    """Subtracts the mean over each example's selectable tokens; 0 elsewhere."""
    count = selectable.sum(dim=1, keepdim=True).clamp_min(1)
    mean = (score * selectable).sum(dim=1, keepdim=True) / count
    return (score - mean) * selectable
