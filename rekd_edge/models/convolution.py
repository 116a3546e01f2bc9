"""Convolutional backbones of timm as selector or predictor.

A convolution has no tokens that could be left out, so the image is cut into raw patches on a grid
that the recipe chooses, and what was kept is put back in its place on a canvas of one constant: 0,
the mean of normalised pixels. The network then runs on the canvas. It costs the same however few
patches are kept (docs/adr/0007).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge.errors import UsageError
from rekd_edge.models.encoder import PatchGrid, TokenReader, TokenView
from rekd_edge.types import PixelScale


class ConvEncoder(PatchGrid, TokenReader):
    """A timm network that ends in a feature map.

    As a predictor (``with_head``) it answers timm's own pooled features, or the mean of the map
    where the network was cut to ``depth`` feature levels; as a selector its last feature map,
    resampled to the grid (bilinear, with antialiasing where that makes it smaller).
    """

    modality = "image"

    def __init__(
        self,
        backbone: Any,
        *,
        image_size: int,
        patch_size: int,
        depth: int | None = None,
        with_head: bool = True,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UsageError(
                f"data.image_size {image_size} is not a multiple of patch_size {patch_size}"
            )
        side = image_size // patch_size
        self.grid = (side, side)
        self.patch_size = (patch_size, patch_size)
        self.backbone = backbone
        self.level = None if depth is None else depth - 1
        self.with_head = with_head and depth is None
        if not self.with_head:
            _prune(backbone, self.level)
        backbone.eval()  # measuring must not move the statistics of batch norms
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, image_size, image_size))
            self.embed_dim = int(self._pool(features).shape[1])
        self.token_dim = int(features.shape[1])
        # Fixed matrices instead of a resize: every runtime multiplies alike.
        rows, columns = (_resampling(size, side) for size in features.shape[2:])
        self.register_buffer("_row_weight", rows, persistent=False)
        self.register_buffer("_column_weight", columns.T.contiguous(), persistent=False)
        self.pixel_scale: PixelScale | None = None

    def fold_pixels(self, scale: PixelScale) -> None:
        # The first convolution pads, so its zeros must stay those of normalised pixels.
        self.pixel_scale = scale

    def _normalised(self, content: Tensor) -> Tensor:
        if self.pixel_scale is None:
            return content
        std = content.new_tensor(self.pixel_scale.std, dtype=torch.float32)
        mean = content.new_tensor(self.pixel_scale.mean, dtype=torch.float32)
        area = self.patch_size[0] * self.patch_size[1]
        factor = (1 / (255 * std)).repeat_interleave(area)
        return content.float() * factor - (mean / std).repeat_interleave(area)

    def token_features(self, view: TokenView) -> Tensor:
        features = self._features(self._canvas(self._normalised(view.content)))
        row_weight = self.get_buffer("_row_weight")
        column_weight = self.get_buffer("_column_weight")
        on_grid = row_weight @ (features @ column_weight)
        return on_grid.flatten(2).transpose(1, 2)

    def pooled_features(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None,
        scale: Tensor | None,
        pooling: str,
        prefix_scale: Tensor | None = None,
    ) -> Tensor:
        """``key_weight`` and ``scale`` both multiply patches; ``pooling`` and ``prefix_scale`` have
        no meaning here."""
        content = self._normalised(content)
        for weight in (key_weight, scale):
            if weight is not None:
                content = content * weight.to(content.dtype).unsqueeze(2)
        count = self.grid[0] * self.grid[1]
        if content.shape[1] < count:
            content = _put_back(content, position, count)
        return self._pool(self._features(self._canvas(content)))

    def _canvas(self, content: Tensor) -> Tensor:
        """All patches in order, ``[batch, token, pixel]``, as ``[batch, 3, height, width]``."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        patches = content.reshape(-1, rows, columns, 3, height, width).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(-1, 3, rows * height, columns * width)

    def _features(self, canvas: Tensor) -> Tensor:
        if self.level is None:
            return self.backbone.forward_features(canvas)
        return self.backbone.forward_intermediates(
            canvas, indices=[self.level], intermediates_only=True
        )[0]

    def _pool(self, features: Tensor) -> Tensor:
        if self.with_head:
            return self.backbone.forward_head(features, pre_logits=True)
        return features.mean(dim=(2, 3))

    def embedding_parameters(self) -> list[nn.Parameter]:
        first = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
        return list(first.parameters())


def _put_back(content: Tensor, position: Tensor, count: int) -> Tensor:
    """Patches ``[batch, slot, pixel]`` at ``position`` int64 ``[batch, slot]`` of ``count``, 0
    elsewhere. A product with a one-hot matrix: exact, and no scatter in the exported graph."""
    every = torch.arange(count, device=position.device)
    placed = every.view(1, count, 1) == position.unsqueeze(1)
    return placed.to(content.dtype) @ content


def _resampling(size: int, wanted: int) -> Tensor:
    """``[wanted, size]``: the matrix that resamples a line of cells; its rows sum to 1."""
    line = torch.eye(size).reshape(1, size, size, 1)
    resized = F.interpolate(line, size=(wanted, 1), mode="bilinear", antialias=True)
    return resized.reshape(size, wanted).T.contiguous()


def _prune(backbone: Any, level: int | None) -> None:
    """Drops what lies behind feature ``level`` (None: behind the last feature map)."""
    if level is None:
        last = len(backbone.feature_info) - 1
        backbone.prune_intermediate_layers([last], prune_norm=False, prune_head=True)
    else:
        backbone.prune_intermediate_layers([level], prune_norm=True, prune_head=True)


def new_convolutional(name: str, source: str, image_size: int, depth: int | None) -> Any:
    """A timm network with random weights and without its classifier.

    Raises:
        UsageError: it ends in no feature map at this image size, or has fewer levels than
            ``depth``.
    """
    import timm

    try:
        module: Any = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:  # timm's answer to an unknown pretrained tag
        raise UsageError(f"weights: {source}: {error}") from error
    reason = _unsupported(module, image_size)
    if reason is not None:
        raise UsageError(
            f"weights: {source} cannot be used as a convolutional backbone: {reason}",
            hint="patch_size is for convolutional backbones such as resnet18 or mobilenetv3; "
            "a vision transformer has its own",
        )
    levels = len(module.feature_info)
    if depth is not None and depth > levels:
        raise UsageError(f"depth {depth}: {source} has {levels} feature levels")
    return module


def _unsupported(module: Any, image_size: int) -> str | None:
    needed = ("forward_features", "forward_head", "forward_intermediates", "feature_info")
    if not all(hasattr(module, name) for name in (*needed, "prune_intermediate_layers")):
        return "it has no feature map that can be read"
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return "it has no convolution"
    module.eval()
    try:
        with torch.no_grad():
            features = module.forward_features(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        return f"it does not take images of {image_size} pixels ({str(error).splitlines()[0]})"
    if features.dim() != 4 or features.shape[1] != module.num_features:
        return "it ends in no feature map"
    return None
