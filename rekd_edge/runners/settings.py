"""What ONNX Runtime can be told on a CPU that changes speed or memory, and no answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ExecutionMode = Literal["sequential", "parallel"]
GraphOptimization = Literal["all", "extended", "basic", "disabled"]


class RuntimeSettings(BaseModel):
    """Settings of one ONNX Runtime session; the defaults are those of a bundle without any.

    Threads that a query has woken always go to sleep with its answer
    (``session.force_spinning_stop``): by default they would burn a core for tens of milliseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    threads: int | None = Field(default=None, ge=1)
    """Threads of one operator, capped by the cores open to the process that runs it (affinity and
    cgroup quota); null for all of those."""
    execution_mode: ExecutionMode = "sequential"
    """`parallel` runs two branches of the graph at once, each with half of the threads."""
    graph_optimization: GraphOptimization = "all"
    """How far the graph is rewritten when it is loaded."""
    cpu_arena: bool = True
    """Keep freed memory for the next query, instead of giving it back."""
    memory_pattern: bool = True
    """Plan the memory of a query ahead where its shapes have been seen before."""
    prepacking: bool = True
    """Store weights again in the layout that the kernels read; costs memory."""
    spinning: bool = True
    """Threads wait for the next operator of a running query awake, not asleep."""
    dynamic_block_base: int = Field(default=0, ge=0, le=64)
    """Above 0, an operator's work is dealt to its threads in shrinking blocks, the first of them
    its size divided by threads times this; 0 deals it in equal parts."""

    @property
    def is_default(self) -> bool:
        return self == RuntimeSettings()

    def differences(self) -> dict[str, Any]:
        """The settings that are not the default's."""
        default = RuntimeSettings()
        return {
            name: value
            for name, value in self.model_dump().items()
            if value != getattr(default, name)
        }
