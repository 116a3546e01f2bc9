"""From the trained rationalist to the deterministic model that is exported, with the proof."""

from rekd_edge.fuse.class_wise import FusedClassWise, fuse_class_wise
from rekd_edge.fuse.fused import FusedRationalist, MaskedRationalist, PlainClassifier, fuse
from rekd_edge.fuse.pair import FusedPair, fuse_pair
from rekd_edge.fuse.report import FuseReport, fuse_report

__all__ = [
    "FuseReport",
    "FusedClassWise",
    "FusedPair",
    "FusedRationalist",
    "MaskedRationalist",
    "PlainClassifier",
    "fuse",
    "fuse_class_wise",
    "fuse_pair",
    "fuse_report",
]
