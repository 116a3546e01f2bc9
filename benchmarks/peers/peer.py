"""What all token-reduction methods of this folder share. They stand beside rekd-edge in its latency
table, on the same backbone and weights, and are no part of the package.

A peer takes the predictor of a trained plain classifier, and with nothing reduced is that
classifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from rekd_edge.fuse.fused import DeployModel
from rekd_edge.models.rationalist import Predictor


class Peer(DeployModel, ABC):
    """Positional tensors in, ``(logits,)`` out, as a plain classifier. The predictor is held, not
    copied."""

    needs_training = False
    """Whether the weights of a plain classifier are not enough."""

    def __init__(
        self, predictor: Predictor, *, label_names: tuple[str, ...], max_length: int | None = None
    ) -> None:
        super().__init__(predictor, label_names=label_names, max_length=max_length)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.answer(self.named_inputs(inputs)),)

    @abstractmethod
    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits ``[batch, class]``."""

    def training_answer(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Logits and a penalty, where training differs from inference."""
        return self.answer(inputs), None

    def fresh_parts(self) -> list[nn.Module]:
        """Modules that the plain classifier has not trained."""
        return []

    def classify(self, class_token: Tensor, content: Tensor, weight: Tensor) -> Tensor:
        """Logits as the plain predictor has them, where its mean counts content token j
        ``weight[b, j]`` times: ``[batch, channel]``, ``[batch, token, channel]``,
        float ``[batch, token]``."""
        predictor = self.predictor
        pooled = class_token
        if predictor.pooling == "mean":
            total = class_token + (content * weight.unsqueeze(2)).sum(dim=1)
            pooled = total / (1.0 + weight.sum(dim=1, keepdim=True))
        return predictor.head(predictor.dropout(pooled))


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and its weights ``[batch, head, query, key]``; ``bias`` is added to the logits
    before the softmax."""
    logit = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if bias is not None:
        logit = logit + bias
    weight = logit.softmax(dim=-1)
    return weight @ value, weight


def kept(share: float, count: int) -> int:
    """ceil(share * count), at least 1; the share counts to four decimals."""
    return max(1, -(-round(share * 10_000) * count // 10_000))
