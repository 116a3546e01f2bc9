"""NIR (Storek et al. 2023): A2R whose predictor sees some of the selected words replaced by noise.

A word is replaced with chance noise_share * n * w, n words in the text, w proportional to (highest
TF-IDF of the text - its own), so that a word which carries little is replaced most often; in its
place comes a word drawn from the vocabulary with a chance that falls with its TF-IDF over the whole
training data. A selector that hides its answer in unimportant words loses it.

Images have no vocabulary: a kept patch is replaced with chance noise_share, by a patch of
another image of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rekd_edge.distill.targets import TargetSource
from rekd_edge.methods.a2r import A2r
from rekd_edge.methods.base import Parts
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.selection import gather_slots


class WordNoise(nn.Module):
    """``inverse_document_frequency`` and ``chance`` of each word piece, float ``[vocabulary]``."""

    inverse_document_frequency: Tensor
    chance: Tensor

    def __init__(self, views: Iterable[TokenView], vocabulary: int) -> None:
        """Counts the selectable tokens of ``views``: idf = log(texts / texts with it), and chance
        proportional to (highest of sum of tf * idf - its own), among the words that occur."""
        super().__init__()
        texts = 0
        having, frequency = (torch.zeros(vocabulary, dtype=torch.float64) for _ in range(2))
        for view in views:
            for words, own in zip(view.content.cpu(), view.selectable.cpu(), strict=True):
                found, count = words[own].unique(return_counts=True)
                if not len(found):
                    continue
                having[found] += 1
                frequency[found] += count.double() / count.sum()
                texts += 1
        occurs = having > 0
        idf = torch.where(occurs, (texts / having.clamp_min(1)).log(), 0.0)
        score = frequency * idf
        highest = score[occurs].max() if occurs.any() else score.new_zeros(())
        weight = torch.where(occurs, highest - score, 0.0)
        if weight.sum() == 0:  # one word, or all alike
            weight = occurs.double()
        self.register_buffer("inverse_document_frequency", idf.float(), persistent=False)
        self.register_buffer("chance", (weight / weight.sum()).float(), persistent=False)

    def replaced_chance(self, view: TokenView, share: float) -> Tensor:
        """How likely each token is replaced if it is selected, ``[batch, token]``."""
        words, valid = view.content, view.selectable
        count = valid.sum(dim=1, keepdim=True).clamp_min(1)
        same = (words.unsqueeze(2) == words.unsqueeze(1)) & valid.unsqueeze(1)
        score = same.sum(dim=2) / count * self.inverse_document_frequency[words]
        score = score.masked_fill(~valid, 0.0)
        weight = (score.amax(dim=1, keepdim=True) - score) * valid
        total = weight.sum(dim=1, keepdim=True)
        even = valid / count
        weight = torch.where(total > 0, weight / total.clamp_min(1e-12), even)
        return (share * count * weight).clamp_max(1.0)

    def forward(self, view: TokenView, share: float) -> Tensor:
        """The words of ``view`` with noise."""
        replaced = torch.rand(view.content.shape, device=view.content.device)
        replaced = (replaced < self.replaced_chance(view, share)) & view.selectable
        drawn = torch.multinomial(self.chance, view.content.numel(), replacement=True)
        return torch.where(replaced, drawn.view_as(view.content), view.content)


class PatchNoise(nn.Module):
    """Patches of other images of the batch."""

    def forward(self, view: TokenView, share: float) -> Tensor:
        content = view.content
        batch, tokens = content.shape[:2]
        if batch == 1:
            return content
        replaced = torch.rand((batch, tokens), device=content.device) < share
        away = torch.randint(1, batch, (batch, tokens), device=content.device)
        other = (torch.arange(batch, device=content.device).unsqueeze(1) + away) % batch
        place = torch.randint(0, tokens, (batch, tokens), device=content.device)
        return torch.where(replaced.unsqueeze(2), content[other, place], content)


class Nir(A2r):
    """``method: nir``."""

    def __init__(
        self,
        model: Rationalist,
        spec: ObjectiveSpec,
        targets: TargetSource | None,
        parts: Parts,
    ) -> None:
        super().__init__(model, spec, targets, parts)
        self.noise = parts.noise()
        self._beside = nn.ModuleDict({"soft": self.soft, "noise": self.noise})

    @property
    def auxiliary(self) -> nn.Module | None:
        return self._beside

    def hard_answer(self, view: TokenView, keep: Tensor) -> Tensor:
        noised = TokenView(
            self.noise(view, self.spec.noise_share), view.position, view.attended, view.selectable
        )
        slots = max(1, int(keep.sum(dim=1).max()))
        index, valid = gather_slots(keep > 0.5, slots)
        return self.model.classify_gathered(noised, index, valid)
