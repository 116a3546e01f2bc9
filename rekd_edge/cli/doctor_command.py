"""``rekd-edge doctor``: what this machine can do, what is wrong with it, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import BackendError
from rekd_edge.types import EngineBackend

if TYPE_CHECKING:
    from rich.console import Console

REQUIRED = ("torch", "torchvision", "transformers", "timm", "tokenizers", "safetensors", "numpy")
EXPORTING = ("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
OPTIONAL = {
    "optuna": "pip install 'rekd-edge[sweep]' (sweeps)",
    "matplotlib": "pip install 'rekd-edge[figures]' (rekd-edge costs; sweeps have it too)",
    "openvino": "pip install 'rekd-edge[openvino]' (for --target openvino)",
    "mlcommons-loadgen": "pip install 'rekd-edge[loadgen]' (for bench --loadgen)",
    "tensorrt": "pip install 'rekd-edge[trt]' (downloads from NVIDIA; needs a GPU to build)",
    "tensorrt-rtx-cu13": "pip install 'rekd-edge[trt-rtx]' (builds engines without a GPU)",
    "torch-tensorrt": "pip install torch-tensorrt of torch's own number (for --target torch-trt)",
    "optimum": "an environment of its own: optimum's ONNX part needs transformers < 4.58",
    "optimum-onnx": "an environment of its own: pip install optimum-onnx 'transformers<4.58'",
}
"""Packages that this project can use and does not install, with how to get each."""


ENGINES: dict[str, EngineBackend] = {"trt-rtx": "tensorrt-rtx", "trt": "tensorrt"}
"""Targets with engines, and what builds them."""
PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}
"""Targets that ONNX Runtime runs on a GPU, and by which provider."""
PACKAGES = {
    "aoti": ("aoti", "cpu"),
    "aoti-cuda": ("aoti", "cuda"),
    "torch-trt": ("torch-trt", "cuda"),
}
"""Targets with packages: what compiles them, and for which device."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found, before it is judged."""

    python: tuple[int, int]
    versions: Mapping[str, str | None]
    """Version of every package asked for by its distribution name; None where absent."""
    import_errors: Mapping[str, str] = field(default_factory=dict)
    """Installed packages that do not import, with the error's first line."""
    torch_cuda: str | None = None
    """The CUDA version that torch was built for; None for a CPU-only build."""
    torchvision_cuda: str | None = None
    cuda_devices: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    """Execution providers that onnxruntime was built with (not: that work here)."""
    cpu_quota: float | None = None
    """Cores that the container may use, from its cgroup; None where it sets no limit."""
    affinity_cores: int | None = None
    cores: int = 1
    """Cores that are used by default: the affinity mask capped by the quota."""
    memory_bytes: int = 0
    cache: str = ""
    offline: bool = False
    ssh: str | None = None
    """The OpenSSH client's path, for boards; None where there is none."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """What each target beyond the CPU's own does here, or why it does nothing and how to get it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong (``error``: commands will fail) or will surprise (``warning``)."""

    level: Literal["error", "warning"]
    message: str
    hint: str


def judge(facts: Facts) -> Iterator[Finding]:
    """Everything that is wrong, with its mend."""
    if not (3, 11) <= facts.python < (3, 13):
        found = ".".join(map(str, facts.python))
        yield Finding("error", f"Python {found} is not supported", "use Python 3.11 or 3.12")
    for name in REQUIRED:
        if facts.versions.get(name) is None:
            yield Finding("error", f"{name} is not installed", f"pip install {name}")
    yield from _judge_torchvision(facts)
    for name, message in facts.import_errors.items():
        if name != "torchvision":
            yield Finding(
                "error",
                f"{name} does not import: {message}",
                f"pip install --force-reinstall {name}",
            )
    yield from _judge_onnxruntime(facts)


def _judge_torchvision(facts: Facts) -> Iterator[Finding]:
    if facts.versions.get("torch") is None or facts.versions.get("torchvision") is None:
        return
    broken = facts.import_errors.get("torchvision")
    if facts.torch_cuda is None and (facts.torchvision_cuda or broken):
        yield Finding(
            "error",
            "a CPU-only torch lies beside a torchvision that was built for the CUDA build: "
            "timm and transformers will not import ('operator torchvision::nms does not exist')",
            "take both from the same place: either reinstall torch from the package registry "
            "(pip install --force-reinstall torch; it runs without a GPU, too), or install the "
            "CPU build of torchvision from where that torch came",
        )
    elif broken:
        yield Finding(
            "error",
            f"torchvision does not import: {broken}",
            "reinstall torch and torchvision together: "
            "pip install --force-reinstall torch torchvision",
        )


def _judge_onnxruntime(facts: Facts) -> Iterator[Finding]:
    plain = facts.versions.get("onnxruntime")
    gpu = facts.versions.get("onnxruntime-gpu")
    if plain and gpu:
        yield Finding(
            "error",
            "onnxruntime and onnxruntime-gpu are both installed: they are the same module, and "
            "which of them runs is chance",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them",
        )
    elif not plain and not gpu:
        yield Finding(
            "warning",
            "onnxruntime is not installed: export, check and bench are not available",
            "pip install 'rekd-edge[onnx]'",
        )
    elif gpu and not facts.cuda_devices:
        yield Finding(
            "warning",
            "onnxruntime-gpu without a usable GPU lists CUDA and runs on the CPU",
            "install onnxruntime instead",
        )
    for name in ("onnx", "onnxscript"):
        if (plain or gpu) and facts.versions.get(name) is None:
            yield Finding(
                "warning",
                f"{name} is not installed: export is not available",
                "pip install 'rekd-edge[onnx]'",
            )


def gather_facts() -> Facts:
    """Look at this machine. Imports torch, so it takes seconds."""
    import importlib
    import os
    import shutil
    import sys

    import psutil

    from rekd_edge.data.storage import cache_dir, is_offline
    from rekd_edge.runners.threads import available_cores, cpu_quota

    versions = {name: _version_of(name) for name in (*REQUIRED, *EXPORTING, *OPTIONAL)}
    import_errors: dict[str, str] = {}
    modules: dict[str, Any] = {}
    for name in ("torch", "torchvision", "timm", "transformers", "onnxruntime", "openvino"):
        installed = versions[name] or (name == "onnxruntime" and versions["onnxruntime-gpu"])
        if not installed:
            continue
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:  # a broken binary raises whatever it likes
            import_errors[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    torch, torchvision = modules.get("torch"), modules.get("torchvision")
    devices: tuple[str, ...] = ()
    if torch is not None and torch.cuda.is_available():
        devices = tuple(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
    runtime = modules.get("onnxruntime")
    affinity = getattr(os, "sched_getaffinity", None)
    return Facts(
        python=sys.version_info[:2],
        versions=versions,
        import_errors=import_errors,
        torch_cuda=torch.version.cuda if torch is not None else None,
        torchvision_cuda=_torchvision_cuda(torchvision),
        cuda_devices=devices,
        providers=tuple(runtime.get_available_providers()) if runtime is not None else (),
        cpu_quota=cpu_quota(),
        affinity_cores=len(affinity(0)) if affinity else None,
        cores=available_cores(),
        memory_bytes=psutil.virtual_memory().total,
        cache=str(cache_dir()),
        offline=is_offline(),
        ssh=shutil.which("ssh"),
        targets={
            **{target: _engines_of(name, bool(devices)) for target, name in ENGINES.items()},
            **{target: _provider_here(name) for target, name in PROVIDERS.items()},
            **{target: _package_here(spec) for target, spec in PACKAGES.items()},
        },
    )


def _engines_of(backend: EngineBackend, has_gpu: bool) -> str:
    """In words: whether engines can be built and run."""
    from rekd_edge.engines.backend import load_backend

    try:
        found = load_backend(backend)
    except BackendError as error:
        return f"{error.message}: {error.hint}"
    runs = "runs those of its GPU" if has_gpu else "runs none: no GPU"
    if found.backend.builds_ahead:
        known = ", ".join(map(str, found.compute_capabilities))
        return f"{found.version} builds engines for SM {known}; {runs}"
    return f"{found.version} " + (f"builds engines; {runs}" if has_gpu else "does nothing: no GPU")


def _provider_here(provider: str) -> str:
    """In words: whether ONNX Runtime can be asked for a provider."""
    from rekd_edge.runners.gpu_runner import require_provider

    try:
        require_provider(provider)
    except BackendError as error:
        return f"{error.message}: {error.hint}"
    return "is there; whether its libraries load is seen when a file is opened"


def _package_here(target: tuple[str, str]) -> str:
    """In words: whether packages can be compiled and run."""
    from rekd_edge.packages.backend import cxx, find_compiler, find_host
    from rekd_edge.packages.spec import PackageSpec

    spec = PackageSpec.model_validate(dict(zip(_FIELDS, target, strict=True)))
    try:
        host = find_host(spec)
    except BackendError as error:
        return f"{error.message}: {error.hint}"
    try:
        find_compiler(spec)
    except BackendError as error:
        return f"{error.message}: {error.hint}; packages that were compiled here before run"
    where = "this CPU" if host.device is None else host.device.name
    return f"compiles for {where}, with torch {host.torch} and {cxx()}"


_FIELDS = ("backend", "device")


def _version_of(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _torchvision_cuda(torchvision: Any) -> str | None:
    return getattr(getattr(torchvision, "version", None), "cuda", None)


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(json_path: JsonOption = None) -> None:
    """Say what is wrong with this installation.

    Exit code 4 where commands will fail; warnings alone end with 0.
    """
    facts = gather_facts()
    findings = list(judge(facts))
    passed = not any(finding.level == "error" for finding in findings)
    result = {
        "passed": passed,
        "findings": [asdict(finding) for finding in findings],
        "facts": asdict(facts),
        "optional": {
            name: {"version": facts.versions[name], "how": how} for name, how in OPTIONAL.items()
        },
    }

    def render(console: Console) -> None:
        _render(console, facts, findings)

    emit(result, json_path=json_path, render=render)
    if not passed:
        raise typer.Exit(BackendError.exit_code)


def _render(console: Console, facts: Facts, findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("python", ".".join(map(str, facts.python)))
    for name in (*REQUIRED, *EXPORTING):
        if facts.versions[name] is not None or name in REQUIRED:
            table.add_row(name, facts.versions[name] or "missing")
    table.add_row("CUDA", ", ".join(facts.cuda_devices) or "no usable GPU")
    if facts.providers:
        table.add_row("providers", ", ".join(facts.providers))
    quota = "none" if facts.cpu_quota is None else f"{facts.cpu_quota:g}"
    table.add_row("cores", f"{facts.cores} (affinity {facts.affinity_cores}, quota {quota})")
    table.add_row("memory", f"{facts.memory_bytes / 2**30:.1f} GiB")
    table.add_row("cache", facts.cache + (" (offline)" if facts.offline else ""))
    for name, how in OPTIONAL.items():
        if "tensorrt" not in name:  # the targets below say more
            table.add_row(name, facts.versions[name] or f"not installed: {how}")
    table.add_row("ssh", facts.ssh or "not installed: needed for bench --device ssh://...")
    for target, what in facts.targets.items():
        table.add_row(f"--target {target}", what)
    console.print(table, markup=False)
    for finding in findings:
        console.print(f"\n{finding.level}: {finding.message}", markup=False, soft_wrap=True)
        console.print(f"  hint: {finding.hint}", markup=False, soft_wrap=True)
    if not findings:
        console.print("\nnothing is wrong")
