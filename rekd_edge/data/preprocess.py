"""From raw examples to model inputs, in numpy. No torch: a device does exactly the same.

The bundle's runtime repeats these rules in a file of its own; a test holds them equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rekd_edge.data.storage import write_text
from rekd_edge.errors import BackendError, DataError, IntegrityError, UsageError
from rekd_edge.types import PixelScale

if TYPE_CHECKING:
    from PIL import Image

PREPROCESSOR_FILE = "preprocessor_config.json"
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
_SPECIAL_TOKENS = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
}
_PIL_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


class TextPreprocessor:
    """A fast tokenizer with this project's own truncation and padding.

    Truncation and padding that ``tokenizer.json`` brings along are switched off. Texts longer
    than ``max_length`` tokens, special tokens included, lose their end; that is the documented
    behaviour and not an error. Whether the model has ``max_length`` positions is checked where
    the model is opened.

    Raises:
        IntegrityError: the file is not a tokenizer.
        UsageError: it has no class, separator or padding token, or no room is left for text.
    """

    modality: Literal["text"] = "text"

    def __init__(self, tokenizer_file: Path, max_length: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendError("text needs `tokenizers`", hint="pip install tokenizers") from error
        try:
            content = tokenizer_file.read_bytes()
            self._tokenizer = Tokenizer.from_buffer(content)
        except FileNotFoundError as error:
            raise IntegrityError(f"{tokenizer_file} is missing") from error
        except Exception as error:  # tokenizers raises bare Exception for a malformed file
            raise IntegrityError(f"{tokenizer_file} is not a tokenizer.json: {error}") from error
        self.max_length = max_length
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.special_ids: dict[str, int] = {}
        for role, candidates in _SPECIAL_TOKENS.items():
            found = [i for i in map(self._tokenizer.token_to_id, candidates) if i is not None]
            if not found:
                raise UsageError(f"{tokenizer_file} has none of {', '.join(candidates)}")
            self.special_ids[role] = found[0]
        if max_length <= self._tokenizer.num_special_tokens_to_add(is_pair=False):
            raise UsageError(f"max_length {max_length} leaves no room for text")
        self._json = self._tokenizer.to_str()
        self._tokenizer.enable_truncation(max_length)
        digest = hashlib.sha256(self._json.encode()).hexdigest()
        self.fingerprint = f"text:{max_length}:{digest}"
        """Equal fingerprints encode equally."""
        self.pixel_scale = None

    def deployed(self) -> TextPreprocessor:
        """As deployed models read: just as while training."""
        return self

    def token_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, truncated and unpadded: int64 ``[token]`` each.

        Raises:
            DataError: a text is empty, or nothing of it is left after normalisation.
        """
        try:
            encodings = self._tokenizer.encode_batch(list(texts))
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError(f"a text is not valid Unicode: {error}") from error
        for position, encoding in enumerate(encodings):
            if all(encoding.special_tokens_mask):
                raise DataError(
                    f"text {position} has no tokens: {texts[position]!r}",
                    hint="leave empty texts out",
                )
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def pad(self, token_ids: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Model inputs, int64 ``[batch, token]`` each, padded at the end to the longest."""
        longest = max((len(ids) for ids in token_ids), default=0)
        input_ids = np.full((len(token_ids), longest), self.special_ids["pad"], dtype=np.int64)
        attention_mask = np.zeros((len(token_ids), longest), dtype=np.int64)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, int64 ``[batch, token]``, padded to the longest.

        Raises:
            DataError: a text is empty.
        """
        return self.pad(self.token_ids(texts))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token of :meth:`encode` in ``text``, in characters;
        ``(0, 0)`` for special tokens."""
        return [(int(start), int(end)) for start, end in self.spans([text])[0]]

    def spans(self, texts: Sequence[str]) -> list[np.ndarray]:
        """:meth:`offsets` of each text, int32 ``[token, 2]`` each."""
        return [
            np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            * (1 - np.asarray(encoding.special_tokens_mask, dtype=np.int32))[:, None]
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]

    def tokens(self, text: str) -> list[str]:
        """The token strings of ``text``, special tokens included, as :meth:`encode` sees them."""
        return list(self._tokenizer.encode(text).tokens)

    def pieces(self) -> list[str]:
        """The string of each token id; empty where the vocabulary has a gap."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [""] * (1 + max(ids.values()))
        for piece, index in ids.items():
            pieces[index] = piece
        return pieces

    @property
    def continuing_prefix(self) -> str | None:
        """What marks a piece that continues a word (``##``); None where nothing does."""
        prefix = json.loads(self._json)["model"].get("continuing_subword_prefix")
        return prefix or None

    def save_tokenizer(self, folder: Path) -> None:
        """Write ``tokenizer.json`` (truncation and padding off) and ``tokenizer_config.json``, as
        transformers reads them."""
        special = {role: self._tokenizer.id_to_token(i) for role, i in self.special_ids.items()}
        write_text(folder / "tokenizer.json", self._json)
        configuration = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            "cls_token": special["cls"],
            "sep_token": special["sep"],
            "pad_token": special["pad"],
            "model_input_names": ["input_ids", "attention_mask"],
        }
        for role, candidates in {"unk": ("[UNK]", "<unk>"), "mask": ("[MASK]", "<mask>")}.items():
            found = [c for c in candidates if self._tokenizer.token_to_id(c) is not None]
            if found:
                configuration[f"{role}_token"] = found[0]
        _write_json(folder / "tokenizer_config.json", configuration)

    def save(self, folder: Path) -> None:
        """Write the tokenizer and ``preprocessor_config.json``."""
        self.save_tokenizer(folder)
        _write_json(
            folder / PREPROCESSOR_FILE,
            {
                "modality": "text",
                "max_length": self.max_length,
                "special_ids": self.special_ids,
            },
        )


class ImagePreprocessor:
    """Resize the short side, crop the centre, scale to 0..1 and normalise.

    All arithmetic up to the crop is Pillow's on 8-bit RGB; normalisation is float32. Deployed
    models take the 8-bit pixels (``model_normalises``).
    """

    modality: Literal["image"] = "image"

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: Interpolation = "bicubic",
        *,
        model_normalises: bool = False,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError("mean and std are three numbers each, std above 0")
        if interpolation not in _PIL_RESAMPLE:
            raise UsageError(
                f"unknown interpolation {interpolation!r}: one of {', '.join(_PIL_RESAMPLE)}"
            )
        self.image_size = image_size
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.interpolation: Interpolation = interpolation
        self.model_normalises = model_normalises
        self.fingerprint = f"image:{image_size}:{self.mean}:{self.std}:{interpolation}"
        """Equal fingerprints show a model the same image."""

    @property
    def pixel_scale(self) -> PixelScale:
        """What a model has to do that normalises."""
        return PixelScale(self.mean, self.std)

    def deployed(self) -> ImagePreprocessor:
        """The same for a model that normalises."""
        return ImagePreprocessor(
            self.image_size, self.mean, self.std, self.interpolation, model_normalises=True
        )

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 ``[height, width, 3]`` -> uint8 ``[image_size, image_size, 3]``.

        The short side becomes ``image_size`` (the long one is rounded down), then the centre
        is cut out.
        """
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"an image is uint8 [height, width, 3], not {image.dtype} {image.shape}"
            )
        size = self.image_size
        height, width = image.shape[:2]
        if min(height, width) < 1:
            raise DataError(f"an image of {width}x{height} pixels is empty")
        if (height, width) == (size, size):
            return image
        if width <= height:
            new_width, new_height = size, max(size, size * height // width)
        else:
            new_width, new_height = max(size, size * width // height), size
        resample = _PIL_RESAMPLE[self.interpolation]
        picture: Image.Image = Image.fromarray(image).resize((new_width, new_height), resample)
        left, top = (new_width - size) // 2, (new_height - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))

    def encode(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """``pixel_values`` ``[batch, 3, image_size, image_size]``, float32, or uint8 where the
        model normalises, from uint8 ``[height, width, 3]`` images.

        Raises:
            DataError: an array is not such an image.
        """
        size = self.image_size
        pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            pixels[row] = self.resize(image)
        if self.model_normalises:
            return {"pixel_values": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        scale = np.float32(1 / 255) / np.asarray(self.std, dtype=np.float32)
        shift = np.asarray(self.mean, dtype=np.float32) / np.asarray(self.std, dtype=np.float32)
        values = pixels.astype(np.float32) * scale - shift
        return {"pixel_values": np.ascontiguousarray(values.transpose(0, 3, 1, 2))}

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``, which transformers' image processors also read."""
        size = self.image_size
        _write_json(
            folder / PREPROCESSOR_FILE,
            {
                "modality": "image",
                "image_size": size,
                "mean": list(self.mean),
                "std": list(self.std),
                "interpolation": self.interpolation,
                "patch_size": None,
                "image_processor_type": "BitImageProcessor",
                "do_convert_rgb": True,
                "do_resize": True,
                "size": {"shortest_edge": size},
                "resample": _PIL_RESAMPLE[self.interpolation],
                "do_center_crop": True,
                "crop_size": {"height": size, "width": size},
                "model_normalises": self.model_normalises,
                "do_rescale": not self.model_normalises,
                "rescale_factor": 1 / 255,
                "do_normalize": not self.model_normalises,
                "image_mean": list(self.mean),
                "image_std": list(self.std),
            },
        )


Preprocessor = TextPreprocessor | ImagePreprocessor


def load_preprocessor(folder: Path) -> Preprocessor:
    """Read back what ``save`` wrote.

    Raises:
        IntegrityError: a file is missing or malformed.
    """
    path = folder / PREPROCESSOR_FILE
    try:
        configuration = json.loads(path.read_text(encoding="utf-8"))
        if configuration["modality"] == "text":
            return TextPreprocessor(folder / "tokenizer.json", int(configuration["max_length"]))
        return ImagePreprocessor(
            int(configuration["image_size"]),
            configuration["mean"],
            configuration["std"],
            configuration["interpolation"],
            model_normalises=configuration.get("model_normalises", False) is True,
        )
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is malformed: {error!r}") from error


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
