"""Runs a compiled package in torch, on the CPU or the GPU that it was compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rekd_edge.errors import BackendError, UsageError
from rekd_edge.packages.build import require_runnable
from rekd_edge.packages.exact import exact_fp32
from rekd_edge.packages.spec import MadeOf
from rekd_edge.packages.store import read_package
from rekd_edge.runners.file_runner import FileRunner, first_line
from rekd_edge.runners.threads import resolve_threads

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings


class PackageRunner(FileRunner):
    """A context manager around one loaded package; the process's number of threads is ``threads``
    while it is open.

    ``model`` is a package of this user's cache. Raises :class:`BackendError` where it lies
    elsewhere or was made for another torch, CPU or GPU, :class:`IntegrityError` where it is not the
    one of its side-car: it is never loaded then. Inputs are held to the side-car's types and sizes
    first; compiled code would read past them. ``provider`` means nothing here.
    """

    runtime = "package"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "",
        settings: RuntimeSettings | None = None,
    ) -> None:
        super().__init__(model, resolve_threads(threads, settings.threads if settings else None))
        self._made_of: MadeOf | None = None
        self._threads_before: int | None = None

    def __enter__(self) -> Self:
        if isinstance(self.model, bytes):
            raise UsageError("a package is run from its file: its side-car lies beside it")
        package = read_package(self.model)
        require_runnable(package)
        import torch

        made_of = package.record.made_of
        if made_of.backend == "torch-trt":
            from rekd_edge.packages.backend import load_torch_tensorrt

            load_torch_tensorrt()  # the package calls its operators
        try:
            self._session = torch._inductor.aoti_load_package(str(self.model))
        except Exception as error:  # torch raises whatever the library raises
            raise BackendError(f"torch cannot load {self.model}: {first_line(error)}") from error
        self._made_of = made_of
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        self.start_options = {"inputs": self.input_names, "device": made_of.device}
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._made_of = None
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def _facts(self) -> MadeOf:
        self._opened()
        assert self._made_of is not None
        return self._made_of

    @property
    def call(self) -> Any:
        """The package as a function of tensors on its device, for what holds them itself; they are
        not looked at. Whoever calls it does so in :func:`~rekd_edge.packages.exact.exact_fp32`."""
        return self._opened()

    @property
    def providers(self) -> list[str]:
        facts = self._facts()
        return [f"{facts.backend} {facts.device}"]

    @property
    def input_names(self) -> list[str]:
        return [one.name for one in self._facts().inputs]

    @property
    def output_names(self) -> list[str]:
        return list(self._facts().outputs)

    def _answer(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Sequence[np.ndarray]:
        import torch

        package, facts = self._opened(), self._facts()
        require_fit(facts, feeds)
        held = [
            torch.from_numpy(np.ascontiguousarray(feeds[one.name])).to(facts.device)
            for one in facts.inputs
        ]
        with torch.inference_mode(), exact_fp32():
            answers = package(*held)
        found = dict(zip(facts.outputs, answers, strict=False))
        return [found[name].cpu().numpy() for name in outputs]


def require_fit(facts: MadeOf, feeds: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for inputs that the package was not compiled for."""
    sizes: dict[str, int] = {}
    for one in facts.inputs:
        given = feeds[one.name]
        if given.dtype != np.dtype(one.dtype):
            raise ValueError(f"{one.name} is {given.dtype}, must be {one.dtype}")
        fixed = [size for size in one.sizes if size is not None]
        if given.ndim != len(one.sizes) or fixed != [
            have for have, size in zip(given.shape, one.sizes, strict=True) if size is not None
        ]:
            raise ValueError(f"{one.name} must be {list(one.sizes)} (None: any size)")
        for name, have in zip(one.axes, given.shape, strict=True):
            if have < 1:
                raise ValueError(f"{one.name} has none of {name}")
            wanted = sizes.setdefault(name, have)
            if have != wanted:
                raise ValueError(f"{one.name} has {have} of {name}, must be {wanted}")
        profile = facts.profiles.get(one.name)
        if profile is not None and not all(
            least <= have <= most
            for least, have, most in zip(profile.min, given.shape, profile.max, strict=True)
        ):
            raise ValueError(
                f"{one.name} {given.shape} is not served ({profile.min} to {profile.max})"
            )
    if facts.max_length is not None and sizes.get("token", 0) > facts.max_length:
        raise ValueError(f"{sizes['token']} tokens, must be at most {facts.max_length}")
