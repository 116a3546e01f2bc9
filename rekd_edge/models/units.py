"""Where words, sentences and image regions begin, found inside the model.

What a vocabulary says of each word piece is a constant table, so every runtime finds the units that
training found, and nothing new is fed to a model. A table does not see whitespace, and these are
the rules (docs/units.md):

- A *word* is a piece and the pieces that continue it (``##``). Punctuation is a word of its own, as
  BERT's tokenizer splits it, but for English contractions and possessives: an apostrophe that is
  followed by one of :data:`ENDINGS` joins what is before it and what follows (``don ' t``).
- A *sentence* ends with a run of :data:`TERMINATORS` and up to two closing quotes or brackets
  directly after it. Abbreviations and decimal points end sentences too.
- A *region* is a square block of the patch grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.errors import UsageError
from rekd_edge.selection import unit_of_starts
from rekd_edge.types import RationaleUnit

TERMINATORS = frozenset(".!?…。！？｡؟।۔")  # noqa: RUF001
CLOSERS = frozenset("\"'”’»)]}」』）】")  # noqa: RUF001
"""Quotes and brackets that belong to the sentence whose terminator stands directly before."""
APOSTROPHES = frozenset("'’")  # noqa: RUF001
ENDINGS = frozenset(("s", "t", "re", "ve", "ll", "d", "m"))
"""What an apostrophe joins to the word before it; in any case of letters."""

_CONTINUES, _APOSTROPHE, _ENDING = 1, 2, 3
_TERMINATOR, _CLOSER = 1, 2


class TextUnits(nn.Module, ABC):
    """Units of a text, from what ``meaning`` int ``[vocabulary]`` says of each word piece."""

    name: RationaleUnit
    meaning: Tensor

    def __init__(self, meaning: Sequence[int]) -> None:
        super().__init__()
        table = torch.tensor(meaning, dtype=torch.int32)
        self.register_buffer("meaning", table, persistent=False)

    def forward(self, content: Tensor, selectable: Tensor) -> Tensor:
        """The first token of each token's unit, int64 ``[batch, token]``, of ``content`` int64 and
        ``selectable`` bool ``[batch, token]``; what is not selectable is a unit of its own."""
        within = selectable & _before(selectable)
        meaning = self.meaning.index_select(0, content.flatten()).view_as(content)
        return unit_of_starts(self.starts(meaning) | ~within)

    @abstractmethod
    def starts(self, meaning: Tensor) -> Tensor:
        """Whether a unit starts at each token, bool, from int ``[batch, token]``."""


class WordUnits(TextUnits):
    name = "word"

    def starts(self, meaning: Tensor) -> Tensor:
        apostrophe, ending = meaning == _APOSTROPHE, meaning == _ENDING
        joins = apostrophe & F.pad(ending[:, 1:], (0, 1), value=False)
        return ~((meaning == _CONTINUES) | joins | (ending & _before(apostrophe)))


class SentenceUnits(TextUnits):
    name = "sentence"

    def starts(self, meaning: Tensor) -> Tensor:
        ended, closer = meaning == _TERMINATOR, meaning == _CLOSER
        once = closer & _before(ended)
        ended = ended | once | (closer & _before(once))
        return (meaning == 0) & _before(ended)


def _before(values: Tensor) -> Tensor:
    """The value of the token before, bool ``[batch, token]``; False at the first."""
    return F.pad(values[:, :-1], (1, 0), value=False)


def text_units(
    unit: RationaleUnit, preprocessor: TextPreprocessor, vocabulary: int
) -> TextUnits | None:
    """What finds the units of texts that ``preprocessor`` cuts into pieces, for a model that knows
    ``vocabulary`` of them; None where tokens are the units.

    Raises:
        UsageError: the tokenizer does not mark the pieces that continue a word.
    """
    if unit not in ("word", "sentence"):
        return None
    pieces = preprocessor.pieces()
    pieces += [""] * (vocabulary - len(pieces))
    prefix = preprocessor.continuing_prefix
    if unit == "word":
        if prefix is None:
            raise UsageError(
                "rationale_unit: word needs a WordPiece tokenizer, which marks the pieces that "
                "continue a word (##); this one marks none",
                hint="choose BERT weights, or rationale_unit: token or sentence",
            )
        return WordUnits([_word_meaning(piece, prefix) for piece in pieces])
    return SentenceUnits([_sentence_meaning(piece, prefix or "##") for piece in pieces])


def _word_meaning(piece: str, prefix: str) -> int:
    if piece.startswith(prefix) and piece != prefix:
        return _CONTINUES
    if piece in APOSTROPHES:
        return _APOSTROPHE
    return _ENDING if piece.lower() in ENDINGS else 0


def _sentence_meaning(piece: str, prefix: str) -> int:
    characters = piece.removeprefix(prefix).strip("\u2581\u0120 ")  # word marks of other tokenizers
    if not characters or not CLOSERS.union(TERMINATORS).issuperset(characters):
        return 0
    return _TERMINATOR if characters[0] in TERMINATORS else _CLOSER


def region_of_patch(grid: tuple[int, int], size: int, device: torch.device) -> Tensor:
    """The first patch (row by row) of the block of ``size`` x ``size`` patches that each patch is
    in; int64 ``[patch]``."""
    columns = grid[1]
    patch = torch.arange(grid[0] * columns, device=device)
    row = patch // (columns * size) * size
    return row * columns + patch % columns // size * size


def require_regions(grid: tuple[int, int], size: int, budget: int, whose: str) -> None:
    """Raises :class:`UsageError` unless blocks of ``size`` cover the grid and one of them fits the
    ``budget``, in patches. Blocks cut off at the border would be of several sizes, and images have
    a constant number of slots."""
    rows, columns = grid
    if rows % size or columns % size:
        raise UsageError(
            f"region_size {size} does not divide the {rows} x {columns} patches of {whose}",
            hint="choose another region_size, data.image_size or patch_size",
        )
    if size * size > budget:
        raise UsageError(
            f"one region of {size} x {size} patches is more than the {budget} of {rows * columns} "
            f"patches that rationale_ratio lets {whose} keep",
            hint="raise rationale_ratio or lower region_size",
        )
