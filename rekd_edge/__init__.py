"""rekd-edge: distill rationale-extracting models and put them on edge devices.

Importing this package imports nothing heavy; see the README for the commands.
"""

from __future__ import annotations

__version__ = "0.1.0"
