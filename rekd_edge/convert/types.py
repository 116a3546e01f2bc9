"""Words that targets and the quantizer share; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Int8 = Literal["int8-dynamic", "int8-static"]
Lower = Literal["fp16"] | Int8
Precision = Literal["fp32"] | Lower
Part = Literal["selector", "predictor"]
