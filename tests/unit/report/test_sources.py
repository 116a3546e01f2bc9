"""What of a message is shown to others."""

from __future__ import annotations

import pytest

from rekd_edge.report_sources import without_folders


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/data/Anna Smith/study 3/run is no run folder", "run is no run folder"),
        (
            "cannot read /data/study/run: it and/or its parent",
            "cannot read run: it and/or its parent",
        ),
        ("4 / 5 of bundle/model.onnx", "4 / 5 of bundle/model.onnx"),
    ],
)
def test_folders_are_left_out_of_messages(message: str, shown: str) -> None:
    assert without_folders(message) == shown
