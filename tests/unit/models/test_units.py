"""Units of real texts, of patch grids, and of everything that scores them."""

from __future__ import annotations

import pytest
import torch

from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.errors import UsageError
from rekd_edge.models.build import build_rationalist
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.models.units import region_of_patch, require_regions, text_units
from rekd_edge.recipe import load_recipe
from rekd_edge.types import RationaleUnit

VOCABULARY = 30522


def pieces_of(unit: RationaleUnit, text: str, preprocessor: TextPreprocessor) -> list[str]:
    """The text by units, as its word pieces are written."""
    find = text_units(unit, preprocessor, VOCABULARY)
    assert find is not None
    names = preprocessor.pieces()
    ids = torch.from_numpy(preprocessor.encode([text])["input_ids"])[:, 1:-1]
    first = find(ids, torch.ones_like(ids, dtype=torch.bool))[0].tolist()
    pieces = [names[index].removeprefix("##") for index in ids[0].tolist()]
    units: dict[int, str] = {}
    for own, piece in zip(first, pieces, strict=True):
        units[own] = units.get(own, "") + piece
    return list(units.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A well-made film.", ["a", "well", "-", "made", "film", "."]),
        ("I don't like it", ["i", "don't", "like", "it"]),
        ("It 's the film’s best", ["it's", "the", "film’s", "best"]),  # noqa: RUF001
        ("unwatchably 'quoted'", ["unwatchably", "'", "quoted", "'"]),
        ("s t", ["s", "t"]),
    ],
)
def test_words(text: str, expected: list[str], bundled_text_preprocessor: TextPreprocessor) -> None:
    assert pieces_of("word", text, bundled_text_preprocessor) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good. Bad! Why?", ["good.", "bad!", "why?"]),
        ("So... it ends?! Yes", ["so...", "itends?!", "yes"]),
        ('He said "no." (Really.) Then he left', ['hesaid"no."', "(really.)", "thenheleft"]),
        ("No stop at all", ["nostopatall"]),
        ("Dr. Who is 3.5", ["dr.", "whois3.", "5"]),
        ("... and then", ["...", "andthen"]),
    ],
)
def test_sentences(
    text: str, expected: list[str], bundled_text_preprocessor: TextPreprocessor
) -> None:
    assert pieces_of("sentence", text, bundled_text_preprocessor) == expected


def test_special_tokens_and_padding_belong_to_no_unit(
    bundled_text_preprocessor: TextPreprocessor,
) -> None:
    find = text_units("sentence", bundled_text_preprocessor, VOCABULARY)
    assert find is not None
    ids = torch.tensor([[2003, 2204, 102, 2003, 102, 0, 0]])
    selectable = (ids != 102) & (ids != 0)
    assert find(ids, selectable).tolist() == [[0, 0, 2, 3, 4, 5, 6]]


def test_words_need_pieces_that_say_so(bundled_text_preprocessor: TextPreprocessor) -> None:
    class Unmarked(TextPreprocessor):
        def __init__(self) -> None:
            self._tokenizer = bundled_text_preprocessor._tokenizer

        @property
        def continuing_prefix(self) -> str | None:
            return None

    with pytest.raises(UsageError, match="needs a WordPiece tokenizer"):
        text_units("word", Unmarked(), VOCABULARY)
    assert text_units("sentence", Unmarked(), VOCABULARY) is not None
    assert text_units("token", Unmarked(), VOCABULARY) is None


def test_regions_are_blocks_of_the_grid() -> None:
    found = region_of_patch((4, 6), 2, torch.device("cpu")).reshape(4, 6)
    assert found.tolist() == [
        [0, 0, 2, 2, 4, 4],
        [0, 0, 2, 2, 4, 4],
        [12, 12, 14, 14, 16, 16],
        [12, 12, 14, 14, 16, 16],
    ]
    require_regions((4, 6), 2, 4, "it")
    with pytest.raises(UsageError, match="does not divide the 4 x 6 patches of it"):
        require_regions((4, 6), 3, 24, "it")
    with pytest.raises(UsageError, match="more than the 3 of 24 patches"):
        require_regions((4, 6), 2, 3, "it")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("smoke/text", ["rationale_unit=word"]),
        ("smoke/text", ["rationale_unit=sentence", "student.selector.kind=shared"]),
        ("smoke/text", ["rationale_unit=word", "student.selector.kind=convolution"]),
        ("smoke/image", ["rationale_unit=region"]),
        ("smoke/image", ["rationale_unit=region", "student.selector.kind=narrow"]),
        ("smoke/image", ["rationale_unit=region", "student.selector.resolution=0.5"]),
        ("smoke/image-conv", ["rationale_unit=region"]),
    ],
)
def test_every_selector_scores_units(name: str, changes: list[str]) -> None:
    torch.manual_seed(0)
    recipe = load_recipe(name, changes)
    model = build_rationalist(recipe.student, recipe, 2).model.eval()
    assert isinstance(model, Rationalist)
    torch.nn.init.normal_(model.selector.head.weight)
    if recipe.modality == "text":
        ids = torch.randint(999, 3000, (3, 24))
        ids[:, 0], ids[:, -1] = 101, 102
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        size = recipe.data.image_size
        inputs = {"pixel_values": torch.randn(3, 3, size, size)}
    scores = model.selector(inputs)
    unit = scores.view.unit
    assert unit is not None
    assert torch.equal(scores.score, scores.score.gather(1, unit))
    # The features of the small convolution are one cell, the same for all patches.
    assert (len(scores.score[0].unique()) > 1) == (name != "smoke/image-conv")
    keep = model.keep(scores)
    assert bool((keep.sum(dim=1) <= model.budget(scores.view)).all())
    assert bool((keep.sum(dim=1) <= model.slots(scores.view)).all())
    assert torch.isfinite(model(inputs)).all()
    with_weights = model.state_dict()
    assert not [key for key in with_weights if "unit" in key]


def test_a_grid_that_regions_do_not_cover_is_refused() -> None:
    recipe = load_recipe("smoke/image", ["rationale_unit=region", "region_size=3"])
    with pytest.raises(UsageError, match="region_size 3 does not divide the 4 x 4 patches"):
        build_rationalist(recipe.student, recipe, 2)
    recipe = load_recipe("smoke/image", ["rationale_unit=region", "rationale_ratio=0.15"])
    with pytest.raises(UsageError, match="more than the 3 of 16 patches"):
        build_rationalist(recipe.student, recipe, 2)
