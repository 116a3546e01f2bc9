"""Data: one interface for images and text, from bundled sets to the user's own files.

``load_data(recipe)`` reads the source, cuts it by class with the recipe's split seed and answers
three disjoint splits. Test data are never part of the other two.
"""

from __future__ import annotations

from rekd_edge.data.load import TaskData, load_data
from rekd_edge.data.split import Split

__all__ = ["Split", "TaskData", "load_data"]
