"""The bundle: everything that goes to a device, in one folder that proves its own integrity.

``write_bundle`` makes one, ``verify_bundle`` checks every byte of one, ``open_bundle`` checks
and opens one. The files inside are listed in :mod:`rekd_edge.bundle.manifest`.
"""

from __future__ import annotations

from rekd_edge.bundle.manifest import (
    BundleConfig,
    BundleManifest,
    FileEntry,
    GateRecord,
    Lineage,
)
from rekd_edge.bundle.read import Bundle, open_bundle, verify_bundle
from rekd_edge.bundle.write import write_bundle

__all__ = [
    "Bundle",
    "BundleConfig",
    "BundleManifest",
    "FileEntry",
    "GateRecord",
    "Lineage",
    "open_bundle",
    "verify_bundle",
    "write_bundle",
]
