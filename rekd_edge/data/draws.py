"""numpy's own random numbers for many generators at once.

Augmentation gives each example a generator of its own, ``default_rng((seed, epoch, example))``, so
that what an example looks like depends on nothing else. Making one takes longer than training on a
small image does on a GPU; here a whole epoch is drawn in a few array operations, the same numbers
to the last bit. What is repeated: ``SeedSequence`` (M. E. O'Neill's seed_seq_fe), ``PCG64``
(128-bit PCG, XSL-RR) and Lemire's bounded integers.
"""

from __future__ import annotations

import numpy as np

from rekd_edge.recipe.schema import AugmentSpec

_WORD = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def crop_and_flip(
    seed: int, epoch: int, examples: np.ndarray, augment: AugmentSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The draws of :func:`rekd_edge.data.loader.augment_image` for ``examples`` int64
    ``[example]``: rows and columns that the crop starts at, int64 ``[example, 2]``, and whether it
    is flipped, bool ``[example]``."""
    if not 0 <= seed < 2**32 or not 0 <= epoch < 2**32:
        return _one_by_one(seed, epoch, examples, augment)
    choices = 2 * augment.crop_padding + 1
    streams = _Streams(seed, epoch, examples)
    start = np.zeros((len(examples), 2), dtype=np.int64)
    redrawn = np.zeros(len(examples), dtype=bool)
    if augment.crop_padding:
        word = streams.next()
        for column, half in enumerate((word & _LOW, word >> _WORD)):
            product = half * np.uint64(choices)
            start[:, column] = (product >> _WORD).astype(np.int64)
            # Lemire's rejection, once in some 10^8 draws: those examples are drawn by numpy.
            redrawn |= (product & _LOW) < np.uint64(2**32 % choices)
    flipped = np.zeros(len(examples), dtype=bool)
    if augment.flip:
        flipped = (streams.next() >> np.uint64(11)) * 2.0**-53 < 0.5
    if redrawn.any():
        rows = np.flatnonzero(redrawn)
        start[rows], flipped[rows] = _one_by_one(seed, epoch, examples[rows], augment)
    return start, flipped


def _one_by_one(
    seed: int, epoch: int, examples: np.ndarray, augment: AugmentSpec
) -> tuple[np.ndarray, np.ndarray]:
    start = np.zeros((len(examples), 2), dtype=np.int64)
    flipped = np.zeros(len(examples), dtype=bool)
    for row, example in enumerate(examples.tolist()):
        start[row], flipped[row] = draw_crop(np.random.default_rng((seed, epoch, example)), augment)
    return start, flipped


def draw_crop(rng: np.random.Generator, augment: AugmentSpec) -> tuple[np.ndarray, bool]:
    """Row and column that the crop starts at, int64 ``[2]``, and whether it is flipped."""
    start = np.zeros(2, dtype=np.int64)
    if augment.crop_padding:
        start = rng.integers(0, 2 * augment.crop_padding + 1, size=2)
    return start, bool(augment.flip and rng.random() < 0.5)


class _Streams:
    """One PCG64 for each example, as (high, low) halves of 128 bits."""

    def __init__(self, seed: int, epoch: int, examples: np.ndarray) -> None:
        words = _seed_words(seed, epoch, examples)
        state, sequence = (words[0], words[1]), (words[2], words[3])
        one = np.uint64(1)
        high = (sequence[0] << one) | (sequence[1] >> np.uint64(63))
        self.increment = (high, (sequence[1] << one) | one)
        # The state is stepped once from 0, the seed is added, and it is stepped again.
        self.state = _add(self.increment, state)
        self._step()

    def _step(self) -> None:
        self.state = _add(_multiply(self.state, _MULTIPLIER), self.increment)

    def next(self) -> np.ndarray:
        """The next 64 bits of every stream."""
        self._step()
        high, low = self.state
        value, turn = high ^ low, high >> np.uint64(58)
        return (value >> turn) | (value << ((np.uint64(64) - turn) & np.uint64(63)))


Wide = tuple[np.ndarray, np.ndarray]


def _add(first: Wide, second: Wide) -> Wide:
    low = first[1] + second[1]
    return first[0] + second[0] + (low < first[1]).astype(np.uint64), low


def _multiply(value: Wide, factor: int) -> Wide:
    """Modulo 2^128."""
    high, low = np.uint64(factor >> 64), np.uint64(factor & (2**64 - 1))
    a1, a0 = value[1] >> _WORD, value[1] & _LOW
    b1, b0 = low >> _WORD, low & _LOW
    first, middle, other = a0 * b0, a1 * b0, a0 * b1
    carried = (first >> _WORD) + (middle & _LOW) + (other & _LOW)
    upper = a1 * b1 + (middle >> _WORD) + (other >> _WORD) + (carried >> _WORD)
    return value[0] * low + value[1] * high + upper, value[1] * low


def _seed_words(seed: int, epoch: int, examples: np.ndarray) -> list[np.ndarray]:
    """``SeedSequence((seed, epoch, example)).generate_state(4, uint64)``, uint64 ``[example]``
    each."""
    u32 = np.uint32
    hashing = 0x43B0D7E5

    def hashed(value: np.ndarray) -> np.ndarray:
        nonlocal hashing
        value = value ^ u32(hashing)
        hashing = hashing * 0x931E8875 & 0xFFFFFFFF
        value = value * u32(hashing)
        return value ^ (value >> u32(16))

    def mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        result = first * u32(0xCA01F9DD) - second * u32(0x4973F715)
        return result ^ (result >> u32(16))

    own = examples.astype(u32)
    entropy = [np.full_like(own, seed), np.full_like(own, epoch), own, np.zeros_like(own)]
    pool = [hashed(value) for value in entropy]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    state, hashing = [], 0x8B51F9DD
    for index in range(8):
        value = pool[index % 4] ^ u32(hashing)
        hashing = hashing * 0x58F38DED & 0xFFFFFFFF
        value = value * u32(hashing)
        state.append((value ^ (value >> u32(16))).astype(np.uint64))
    return [state[2 * i] | (state[2 * i + 1] << _WORD) for i in range(4)]
