"""Batches of model inputs, in an order that is a pure function of seed and epoch."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rekd_edge.data.draws import draw_crop
from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
from rekd_edge.data.split import Split
from rekd_edge.errors import DataError, UsageError
from rekd_edge.recipe.schema import AugmentSpec
from rekd_edge.types import Batch, TeacherSide

BUCKET_BATCHES = 50
"""Batches whose texts are sorted by length together while shuffling."""

_Cache = weakref.WeakKeyDictionary[Split, dict[str, list[np.ndarray]]]
_TOKEN_IDS: _Cache = weakref.WeakKeyDictionary()
_SPANS: _Cache = weakref.WeakKeyDictionary()


def split_token_ids(split: Split, preprocessor: TextPreprocessor) -> list[np.ndarray]:
    """Token ids of every text of ``split``: int64 ``[token]`` each, unpadded.

    Encoded once for each split and tokenizer, and kept while the split lives.

    Raises:
        DataError: a text has no tokens.
    """
    cached = _TOKEN_IDS.setdefault(split, {})
    if preprocessor.fingerprint not in cached:
        cached[preprocessor.fingerprint] = preprocessor.token_ids(_texts(split))
    return cached[preprocessor.fingerprint]


def split_spans(split: Split, preprocessor: TextPreprocessor) -> list[np.ndarray]:
    """Characters of each token of every text of ``split``, int32 ``[token, 2]`` each; kept as
    :func:`split_token_ids` are."""
    cached = _SPANS.setdefault(split, {})
    if preprocessor.fingerprint not in cached:
        cached[preprocessor.fingerprint] = preprocessor.spans(_texts(split))
    return cached[preprocessor.fingerprint]


def _texts(split: Split) -> list[str]:
    texts: list[str] = []
    for index in range(len(split)):
        text = split.raw(index)
        if not isinstance(text, str):
            raise DataError(f"the {split.name} split holds images, not texts")
        texts.append(text)
    return texts


def make_loader(
    split: Split,
    preprocessor: Preprocessor,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    augment: AugmentSpec | None = None,
    teacher: Preprocessor | None = None,
    drop_last: bool = False,
    bucket: bool = True,
) -> DataLoader[Batch]:
    """A torch ``DataLoader`` of :class:`~rekd_edge.types.Batch`.

    Texts of like length share a batch. Shuffled: the order is random, texts are then sorted by
    length inside windows of :data:`BUCKET_BATCHES` batches, and the batches are shuffled. Not
    shuffled: texts go from the longest to the shortest (``Batch.index`` says which is which),
    images in the order of the split. Without ``bucket`` texts are ordered as images are.
    Augmentation depends on (seed, epoch, example) alone. ``teacher`` adds what a teacher with that
    preprocessor reads (``Batch.teacher``).

    Raises:
        UsageError: ``teacher`` reads another kind of data, or shares no character with
            ``preprocessor`` on one of the texts.
        DataError: an example cannot be read or encoded; images raise it while iterating.
    """
    dataset = _dataset(split, preprocessor, teacher, augment, (seed, epoch))
    sampler = BucketSampler(
        dataset.lengths if bucket else None,
        len(split),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        drop_last=drop_last,
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_it_is)


def _dataset(
    split: Split,
    preprocessor: Preprocessor,
    teacher: Preprocessor | None,
    augment: AugmentSpec | None,
    place: tuple[int, int],
) -> _BatchDataset:
    if teacher is not None and teacher.modality != preprocessor.modality:
        raise UsageError(
            f"the teacher reads {teacher.modality} and the student {preprocessor.modality}",
            hint="name a teacher of the recipe's modality",
        )
    if isinstance(preprocessor, TextPreprocessor):
        assert teacher is None or isinstance(teacher, TextPreprocessor)
        return _TextBatches(split, preprocessor, teacher)
    assert teacher is None or isinstance(teacher, ImagePreprocessor)
    return _ImageBatches(split, preprocessor, teacher, augment, place)


class WorkerLoader:
    """The shuffled batches of :func:`make_loader`, epoch by epoch, made ahead by processes that
    live as long as this does, in pinned memory where there is a CUDA device.

    Raises:
        as :func:`make_loader`.
    """

    def __init__(
        self,
        split: Split,
        preprocessor: Preprocessor,
        *,
        workers: int,
        batch_size: int,
        seed: int = 0,
        augment: AugmentSpec | None = None,
        teacher: Preprocessor | None = None,
        bucket: bool = True,
    ) -> None:
        dataset = _dataset(split, preprocessor, teacher, augment, (seed, 0))

        def order(epoch: int) -> BucketSampler:
            return BucketSampler(
                dataset.lengths if bucket else None,
                len(split),
                batch_size=batch_size,
                shuffle=True,
                seed=seed,
                epoch=epoch,
                drop_last=False,
            )

        self._order = _EpochOrder(order, len(split))
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_sampler=self._order,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
        )

    def epoch(self, number: int) -> DataLoader[Batch]:
        """The batches of an epoch; asking for another one ends it."""
        self._order.epoch = number
        return self._loader


class _EpochOrder(Sampler[list[int]]):
    """Batches of ``epoch * count + index``: workers that outlive an epoch are told it so."""

    def __init__(self, order: Callable[[int], BucketSampler], count: int) -> None:
        self.order = order
        self.count = count
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.order(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        offset = self.epoch * self.count
        for batch in self.order(self.epoch):
            yield [offset + index for index in batch]


class BucketSampler(Sampler[list[int]]):
    """Batches of example indices; see :func:`make_loader` for the order."""

    def __init__(
        self,
        lengths: np.ndarray | None,
        count: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        epoch: int,
        drop_last: bool,
    ) -> None:
        self.batch_size = batch_size
        self.drop_last = drop_last
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(count) if shuffle else np.arange(count)
        if lengths is not None:
            window = BUCKET_BATCHES * batch_size if shuffle else max(count, 1)
            pieces = [order[start : start + window] for start in range(0, count, window)]
            pieces = [piece[np.argsort(-lengths[piece], kind="stable")] for piece in pieces]
            order = np.concatenate(pieces) if pieces else order
        batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
        if drop_last and batches and len(batches[-1]) < batch_size:
            batches.pop()
        if shuffle:
            batches = [batches[position] for position in rng.permutation(len(batches))]
        self.batches = [batch.tolist() for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _as_it_is(batch: Any) -> Any:
    return batch


class _BatchDataset(Dataset[Batch], ABC):
    """A data set that makes whole batches: torch calls ``__getitems__`` where it exists."""

    lengths: np.ndarray | None = None

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), max(1, len(self)))
        inputs, teacher = self.encode(positions.tolist(), int(epochs.max(initial=0)))
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(self.split.labels[positions]),
            index=torch.from_numpy(positions),
            teacher=teacher,
        )

    @abstractmethod
    def encode(
        self, indices: Sequence[int], later: int
    ) -> tuple[dict[str, torch.Tensor], TeacherSide | None]:
        """The inputs of examples, ``later`` epochs after the data set's own."""


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


class _TextBatches(_BatchDataset):
    def __init__(
        self, split: Split, preprocessor: TextPreprocessor, teacher: TextPreprocessor | None
    ) -> None:
        super().__init__(split)
        self.preprocessor = preprocessor
        self.teacher = teacher
        self.token_ids = split_token_ids(split, preprocessor)
        self.lengths = np.asarray([len(ids) for ids in self.token_ids], dtype=np.int64)
        if teacher is not None:
            self.teacher_ids = split_token_ids(split, teacher)
            self.spans = split_spans(split, preprocessor)
            self.teacher_spans = split_spans(split, teacher)
            _require_shared_characters(split, self.spans, self.teacher_spans)

    def encode(
        self, indices: Sequence[int], later: int
    ) -> tuple[dict[str, torch.Tensor], TeacherSide | None]:
        inputs = _tensors(self.preprocessor.pad([self.token_ids[index] for index in indices]))
        if self.teacher is None:
            return inputs, None
        side = TeacherSide(
            _tensors(self.teacher.pad([self.teacher_ids[index] for index in indices])),
            _padded_spans([self.teacher_spans[index] for index in indices]),
            _padded_spans([self.spans[index] for index in indices]),
        )
        return inputs, side


def _padded_spans(spans: Sequence[np.ndarray]) -> torch.Tensor:
    padded = torch.zeros(len(spans), max(map(len, spans)), 2, dtype=torch.int64)
    for row, own in enumerate(spans):
        padded[row, : len(own)] = torch.from_numpy(own)
    return padded


def _require_shared_characters(
    split: Split, spans: Sequence[np.ndarray], teacher_spans: Sequence[np.ndarray]
) -> None:
    for index, (mine, theirs) in enumerate(zip(spans, teacher_spans, strict=True)):
        last = np.minimum(mine[:, None, 1], theirs[None, :, 1])
        if not (last > np.maximum(mine[:, None, 0], theirs[None, :, 0])).any():
            raise UsageError(
                f"text {index} of the {split.name} split: the tokens of teacher and student share "
                "no character, so a rationale cannot be carried from one to the other",
                hint="use tokenizers that read the same text and keep character offsets",
            )


class _ImageBatches(_BatchDataset):
    def __init__(
        self,
        split: Split,
        preprocessor: ImagePreprocessor,
        teacher: ImagePreprocessor | None,
        augment: AugmentSpec | None,
        place: tuple[int, int],
    ) -> None:
        super().__init__(split)
        self.preprocessor = preprocessor
        self.teacher = teacher
        self.augment = augment
        self.seed, self.epoch = place

    def encode(
        self, indices: Sequence[int], later: int
    ) -> tuple[dict[str, torch.Tensor], TeacherSide | None]:
        images = [self._image(index, self.epoch + later) for index in indices]
        inputs = _tensors(self.preprocessor.encode(images))
        if self.teacher is None:
            return inputs, None
        return inputs, TeacherSide(_tensors(self.teacher.encode(images)))

    def _image(self, index: int, epoch: int) -> np.ndarray:
        image = self.split.raw(index)
        if isinstance(image, str):
            raise DataError(f"the {self.split.name} split holds texts, not images")
        if self.augment is None:
            return image
        rng = np.random.default_rng((self.seed, epoch, index))
        return augment_image(image, self.augment, rng)


def augment_image(image: np.ndarray, augment: AugmentSpec, rng: np.random.Generator) -> np.ndarray:
    """A random crop out of the zero-padded image, then a random flip.

    uint8 ``[height, width, 3]`` in and out, of the same size.
    """
    padding = augment.crop_padding
    (top, left), flipped = draw_crop(rng, augment)
    if padding:
        height, width = image.shape[:2]
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        image = padded[top : top + height, left : left + width]
    if flipped:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
