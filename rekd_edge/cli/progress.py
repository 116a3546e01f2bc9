"""Progress of training on the terminal: one bar a phase, loss components, one line an epoch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rekd_edge.cli.console import status_console

if TYPE_CHECKING:
    from rich.progress import TaskID

    from rekd_edge.distill.loop import DevResult
    from rekd_edge.distill.monitor import TrainingWarning


class TrainingProgress:
    """A context manager and a :class:`rekd_edge.distill.loop.ProgressListener`.

    Draws on standard error; without a terminal, or without ``bars`` (where several processes share
    one), it prints one line a phase and one an epoch.
    """

    def __init__(self, title: str = "", *, bars: bool = True) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = status_console()
        self._title = title
        self._draws = bars and self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._draws,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def retitle(self, title: str) -> None:
        """Names what is trained from now on."""
        self._title = title

    def phase(self, name: str, total_steps: int, done_steps: int) -> None:
        label = f"{self._title}: {name}" if self._title else name
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(label, total=total_steps, completed=done_steps, losses="")
        if not self._draws:
            self._console.print(f"{label}: {total_steps - done_steps} steps")

    def step(self, terms: dict[str, float]) -> None:
        if self._task is None:
            return
        self._bar.advance(self._task)
        if terms:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self._bar.update(self._task, losses=losses)

    def epoch(self, name: str, result: DevResult) -> None:
        label = f"{self._title}: {name}" if self._title else name
        name, score = result.headline
        self._console.print(f"{label}: dev {name} {score:.3f}, loss {result.loss:.3f}")

    def warning(self, warning: TrainingWarning) -> None:
        label = f"{self._title}: {warning.phase}" if self._title else warning.phase
        self._console.print(f"[yellow]warning[/] {label}, step {warning.step}: {warning}")


class ExportProgress(TrainingProgress):
    """A spinner that says ``what`` is done, and bars from when something is trained or built."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._status = self._console.status(what)
        self.builds = BuildProgress(before=self._status.stop)

    def __enter__(self) -> ExportProgress:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()
        self.builds.__exit__(kind, error, trace)
        if self._task is not None:
            super().__exit__(kind, error, trace)

    def phase(self, name: str, total_steps: int, done_steps: int) -> None:
        if self._task is None:
            self._status.stop()
            self._bar.start()
        super().phase(name, total_steps, done_steps)


class BuildProgress:
    """A context manager and a :class:`rekd_edge.engines.build.BuildListener`: one bar for each
    phase of a TensorRT build, gone when it is over. ``before`` is called before the first."""

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._before = before
        self._console = status_console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def engine(self, name: str) -> None:
        if self._before is not None:
            self._before()
        self._bars.start()
        self._console.print(f"building: {name}")

    def phase_start(self, name: str, steps: int) -> None:
        self._tasks[name] = self._bars.add_task(name, total=steps)

    def phase_step(self, name: str, step: int) -> None:
        self._bars.update(self._tasks[name], completed=step)

    def phase_finish(self, name: str) -> None:
        self._bars.remove_task(self._tasks.pop(name))
