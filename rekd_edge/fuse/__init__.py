"""From the trained rationalist to the deterministic model that is exported, with the proof."""

from rekd_edge.fuse.fused import FusedRationalist, MaskedRationalist, PlainClassifier, fuse
from rekd_edge.fuse.report import FuseReport, fuse_report

__all__ = [
    "FuseReport",
    "FusedRationalist",
    "MaskedRationalist",
    "PlainClassifier",
    "fuse",
    "fuse_report",
]
