"""Words that targets and the quantizer share; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Int8 = Literal["int8-dynamic", "int8-static"]
Precision = Literal["fp32"] | Int8
Part = Literal["selector", "predictor"]
