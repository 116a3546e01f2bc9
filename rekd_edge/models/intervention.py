"""Inter_RAT's heads: they read a state beside what it says of the labels (Yue et al. 2023).

The labels are the confounder that the backdoor adjustment sums over:

    c(h) = sum_y P(y) softmax_y(h . k(e_y)) e_y,        answer = W [h ; c(h)] + b

e_y is a learned embedding of label y, and P(y) its share of the training data. k is a linear map
in the selector and the identity in the predictor, as in the official code. The heads belong to the
model and are deployed with it; what the predictor's head reads comes from the kept tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rekd_edge.models.rationalist import Predictor, Selector, initialise_head

LABEL_DEVIATION = 0.1
"""Standard deviation of the label embeddings at the start (official code)."""


class InterventionHead(nn.Linear):
    """``outputs`` from states of ``channels`` and their adjusted context."""

    prior: Tensor

    def __init__(self, channels: int, outputs: int, num_labels: int, *, mapped: bool) -> None:
        super().__init__(2 * channels, outputs)
        self.labels = nn.Parameter(torch.empty(num_labels, channels))
        nn.init.normal_(self.labels, std=LABEL_DEVIATION)
        self.key = nn.Linear(channels, channels) if mapped else nn.Identity()
        self.register_buffer("prior", torch.full((num_labels,), 1 / num_labels))
        initialise_head(self, xavier=False)

    def context(self, hidden: Tensor) -> Tensor:
        """c(h), in the shape of ``hidden`` ``[..., channel]``."""
        keys, values = self.tables()
        return (hidden @ keys).softmax(dim=-1) @ values

    def tables(self) -> tuple[Tensor, Tensor]:
        """Keys ``[channel, label]`` and P(y) e_y ``[label, channel]``."""
        if hasattr(self, "keys"):
            return self.keys, self.values
        return self.key(self.labels).T, self.labels * self.prior.unsqueeze(1)

    def fold(self) -> None:
        """Keeps only the tables, which is all that an answer needs."""
        self.keys, self.values = (nn.Parameter(table.contiguous()) for table in self.tables())
        del self.labels, self.key, self.prior

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat([input, self.context(input)], dim=-1))


def intervene_selector(selector: Selector, num_labels: int) -> None:
    """Gives ``selector`` such a head, in place."""
    selector.head = InterventionHead(selector.head.in_features, 2, num_labels, mapped=True)


def intervene_predictor(predictor: Predictor, num_labels: int) -> None:
    """Gives ``predictor`` such a head, in place."""
    head = predictor.head
    predictor.head = InterventionHead(head.in_features, head.out_features, num_labels, mapped=False)


def set_label_shares(model: nn.Module, counts: Sequence[int]) -> None:
    """P(y) of every such head in ``model`` from the number of training examples of each label."""
    shares = torch.tensor(counts, dtype=torch.float32) / max(1, sum(counts))
    for module in model.modules():
        if isinstance(module, InterventionHead):
            module.prior.copy_(shares)
