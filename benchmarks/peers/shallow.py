"""A smaller plain student: the first blocks of the plain classifier, to be distilled."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor

from benchmarks.peers.peer import Peer
from rekd_edge.errors import UsageError
from rekd_edge.models.encoder import BertEncoder, Encoder, VitEncoder
from rekd_edge.models.rationalist import Classifier, Predictor


class Shallow(Peer):
    """``depth`` blocks of a copy of the predictor, on all tokens."""

    needs_training = True

    def __init__(
        self,
        predictor: Predictor,
        *,
        depth: int,
        label_names: tuple[str, ...],
        max_length: int | None = None,
    ) -> None:
        encoder = predictor.encoder
        if not isinstance(encoder, Encoder) or not 1 <= depth <= encoder.num_blocks:
            raise UsageError(f"there is no shallower form with {depth} block(s)")
        cut = copy.deepcopy(predictor)
        if isinstance(cut.encoder, BertEncoder):
            layers = cut.encoder.backbone.encoder
            layers.layer = layers.layer[:depth]
        else:
            assert isinstance(cut.encoder, VitEncoder)
            cut.encoder.backbone.blocks = cut.encoder.backbone.blocks[:depth]
        super().__init__(cut, label_names=label_names, max_length=max_length)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return Classifier(self.predictor)(inputs)
