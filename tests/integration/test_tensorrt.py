"""Targets with engines, on runs that were really trained: TensorRT-RTX builds without a GPU.

No engine is run here, and no test says that one was; the last test runs one where a GPU is.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch

from rekd_edge.bundle import open_bundle, verify_bundle
from rekd_edge.check import check_answers, load_gates
from rekd_edge.cli.engine_command import engine
from rekd_edge.convert import TargetSpec, load_target, matrix_products
from rekd_edge.engines import build
from rekd_edge.engines.backend import load_backend, present_device
from rekd_edge.engines.build import build_engines
from rekd_edge.engines.builder import EngineBuilder
from rekd_edge.engines.find import engine_for
from rekd_edge.engines.layers import compare_precision, parse_layers, requested_precision
from rekd_edge.engines.spec import BuildRecipe
from rekd_edge.engines.store import ENGINES_FOLDER, Kind, StoredEngine, read_engine, read_engines
from rekd_edge.errors import BackendError, GateError, IntegrityError, UsageError
from rekd_edge.export_pipeline import (
    check_bundle,
    convert_run,
    engine_recipe,
    export_bundle,
    fit_engine,
)
from rekd_edge.export_pipeline import test_batches as batches_of
from rekd_edge.fuse import FusedRationalist
from rekd_edge.pipeline import train_run
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run
from rekd_edge.runners import OnnxRunner, TensorRtRunner, file_runner
from rekd_edge.types import OUTPUTS

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT-RTX has packages for Linux on x86-64 alone",
)
TARGETS = ("trt-rtx", "trt-rtx-fp16", "trt-rtx-int8")
GPUS = (86, 120)


@dataclass
class Made:
    """A trained run with its file in fp32, from which the others are made as they are needed."""

    run: Run
    fused: FusedRationalist
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def file(self, target: TargetSpec) -> Path:
        if target.name not in self.files:
            path = self.folder / f"{target.name}.onnx"
            if target.name == "onnx":
                convert_run(self.run, self.fused, target, path)
            elif target.precision == "fp32":
                shutil.copy(self.file(load_target("onnx")), path)
                fit_engine(path, target)
            else:
                fp32 = self.file(load_target("onnx"))
                convert_run(self.run, self.fused, target, path, {}, fp32=fp32)
            self.files[target.name] = path
        return self.files[target.name]

    def recipe(self, target: TargetSpec) -> BuildRecipe:
        return engine_recipe(self.fused, target, self.file(target))


def made(run: Run) -> Made:
    return Made(run, run.fused(), run.path.parent)


@pytest.fixture(scope="module")
def text(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(smoke_run("text", tmp_path_factory.mktemp("text") / "run"))


@pytest.fixture(scope="module")
def image(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(smoke_run("image", tmp_path_factory.mktemp("image") / "run"))


@pytest.fixture(params=["text", "image"])
def either(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(request.param)


def for_gpus(name: str, gpus: tuple[int, ...] = GPUS) -> TargetSpec:
    """A shipped target that builds for other GPUs."""
    target = load_target(name)
    assert target.engine is not None
    options = target.engine.model_copy(update={"compute_capabilities": gpus})
    return target.model_copy(update={"engine": options})


def target_file(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """A shipped target as a file with other lines."""
    from rekd_edge.convert.targets import targets_dir

    content = (targets_dir() / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("name", TARGETS)
def test_engines_are_built_for_two_gpus(either: Made, name: str, tmp_path: Path) -> None:
    target = for_gpus(name)
    file = either.file(target)
    recipe = either.recipe(target)
    engines = build_engines(file, tmp_path, recipe, load_backend("tensorrt-rtx"))
    assert engines == tuple(
        sorted(read_engines(tmp_path), key=lambda one: GPUS.index(capability(one)))
    )
    assert [capability(one) for one in engines] == list(GPUS)
    asked = requested_precision(onnx.load(str(file)))
    counted = matrix_products(onnx.load(str(file)))
    for one in engines:
        record = one.record
        assert one.path.stat().st_size == record.size_bytes > 1_000_000
        assert record.driver is None
        assert {product.node: product.declared for product in record.products} == asked
        kinds = [product.declared for product in record.products]
        if name == "trt-rtx-int8":
            assert kinds.count("int8") == sum(part["int8"] for part in counted.values()) >= 10
        else:
            assert set(kinds) == {"fp16" if name == "trt-rtx-fp16" else "fp32"}
        assert record.layers > 20
        assert record.recipe.profiles.keys() == {t.name for t in either.fused.io_spec().inputs}
        assert set(record.checks.model_dump().values()) == {"not run", ""}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".engine",
        ".engine",
        ".json",
        ".json",
        ".json",
    ]


def capability(one: StoredEngine) -> int:
    return one.record.compute_capability


def test_the_builder_reports_and_a_fallback_to_fp32_is_an_error(image: Made) -> None:
    target = for_gpus("trt-rtx")
    events: list[tuple[str, str, int]] = []
    builder = EngineBuilder(load_backend("tensorrt-rtx"), lambda *event: events.append(event))
    built = builder.build(
        image.file(target).read_bytes(), image.recipe(target), compute_capability=86
    )
    assert {what for what, _, _ in events} == {"start", "step", "finish"}
    started = [phase for what, phase, _ in events if what == "start"]
    assert sorted(started) == sorted(phase for what, phase, _ in events if what == "finish")

    layers = parse_layers(built.layers)
    half = requested_precision(onnx.load(str(image.file(for_gpus("trt-rtx-fp16")))))
    int8 = requested_precision(onnx.load(str(image.file(for_gpus("trt-rtx-int8")))))
    for asked in (half, int8):
        compared = compare_precision(asked, layers)
        wrong = {one.node for one in compared.wrong}
        assert wrong == {node for node, kind in asked.items() if kind != "fp32"}
        with pytest.raises(GateError, match=r"asks for (fp16|int8), .* has it in fp32"):
            compared.require("the engine")
    with pytest.raises(GateError, match="node_of_nothing asks for fp32"):
        compare_precision({"node_of_nothing": "fp32"}, layers).require("the engine")


@pytest.mark.parametrize("name", ["onnx", "onnx-fp16", "onnx-fp16-predictor", "onnx-int8-static"])
def test_pixels_cast_first_answer_the_same_to_the_last_bit(
    image: Made, name: str, tmp_path: Path
) -> None:
    plain = load_target(name)
    before = image.file(plain)
    after = tmp_path / "after.onnx"
    shutil.copy(before, after)
    fit_engine(after, for_gpus("trt-rtx"))
    reading = [n.op_type for n in onnx.load(str(after)).graph.node if "pixel_values" in n.input]
    assert sorted(reading) == ["Cast", "Shape"]
    with OnnxRunner(before, threads=1) as one, OnnxRunner(after, threads=1) as two:
        for batch in batches_of(image.run.data().test, image.run.preprocessor):
            expected, found = one.run(batch.inputs), two.run(batch.inputs)
            for output in OUTPUTS:
                assert np.array_equal(getattr(expected, output), getattr(found, output))


@pytest.fixture(scope="module")
def exported(text: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    target = target_file(folder, "trt-rtx", ("[86, 89, 120]", "[86]"))
    result = export_bundle(
        text.run, target=target, output=text.run.path / "bundle", threads=1, twins=False
    )
    assert result.passed, result.reasons
    assert [one.path.is_file() for one in result.engines] == [True]
    return result.path


def test_a_bundle_holds_engines_and_says_that_none_was_run(exported: Path) -> None:
    manifest = verify_bundle(exported)
    listed = {entry.path for entry in manifest.files}
    (kept,) = read_engines(exported / ENGINES_FOLDER)
    assert {f"engines/{kept.path.name}", f"engines/{kept.path.stem}.json"} <= listed
    assert "engines/recipe.json" in listed
    stored = json.loads(kept.path.with_suffix(".json").read_text())
    assert stored["recipe"]["onnx_sha256"] == next(
        entry.sha256 for entry in manifest.files if entry.path == "model.onnx"
    )
    assert stored["recipe"]["profiles"]["input_ids"] == {
        "min": [1, 3],
        "opt": [8, 32],
        "max": [64, 32],
    }
    if not torch.cuda.is_available():
        assert stored["checks"] == {
            "parity": "not run",
            "accuracy": "not run",
            "latency": "not run",
            "reason": "needs a GPU of SM 86; there was no GPU",
        }
        assert "| not run | not run | not run |" in (exported / "README.md").read_text()
    assert all(gate.passed for gate in manifest.gates)  # of the ONNX file
    report, place = check_bundle(exported, threads=1, reject_failed=False)
    assert report.passed
    assert place == exported


def test_another_engine_than_shipped_is_built_again_or_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    bundle = open_bundle(exported)
    assert engine_for(bundle, compute_capability=86).path.parent == exported / ENGINES_FOLDER
    with pytest.raises(BackendError, match="it is for SM 86, the GPU named is SM 80"):
        engine_for(bundle, compute_capability=80, build=False)
    assert not list(tmp_path.iterdir())
    made = engine_for(bundle, compute_capability=80)
    assert tmp_path in made.path.parents
    assert capability(made) == 80
    assert engine_for(bundle, compute_capability=80, build=False) == made
    made.path.with_suffix(".json").write_text("{}")  # a broken cache is no cache
    with pytest.raises(BackendError, match="no engine here may run"):
        engine_for(bundle, compute_capability=80, build=False)
    again = engine_for(bundle, compute_capability=80)
    assert again.path == made.path
    assert read_engine(again.path) == again
    verify_bundle(exported)


def test_the_command_names_the_engine_of_a_gpu(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    engine(bundle=exported, sm=86, build=False, json_path="-")
    found = json.loads(capsys.readouterr().out)
    assert Path(found["path"]) == next((exported / ENGINES_FOLDER).glob("sm86-*.engine"))
    engine(bundle=exported, sm=86, build=False, json_path=None)
    shown = capsys.readouterr().out
    assert shown.count("not run") == 3
    assert found["path"] in shown.splitlines()
    engine(bundle=exported, sm=89, json_path=None)
    shown = capsys.readouterr()
    assert "building: tensorrt-rtx fp32, SM 89" in shown.err
    assert str(tmp_path) in shown.out


def test_a_side_car_of_other_bytes_is_refused(exported: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(exported, tmp_path / "bundle")
    (stored,) = read_engines(copied / ENGINES_FOLDER)
    stored.path.write_bytes(stored.path.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="is not the engine that"):
        read_engines(copied / ENGINES_FOLDER)
    with pytest.raises(IntegrityError):
        open_bundle(copied)


def test_what_cannot_be_built_ends_before_anything_is_written(text: Made, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    far = target_file(tmp_path, "trt-rtx", ("[86, 89, 120]", "[86, 90]"))
    with pytest.raises(BackendError, match="builds no engine for SM 90") as found:
        export_bundle(text.run, target=far, output=output)
    assert "--target trt" in (found.value.hint or "")
    with pytest.raises(UsageError, match="times files in ONNX Runtime"):
        export_fastest(text.run, target="trt-rtx", output=output)
    with pytest.raises(UsageError, match="for tensorrt-rtx"):
        export_bundle(text.run, target="trt-rtx", output=output, tune=True)
    assert {path.name for path in tmp_path.iterdir()} == {"trt-rtx.yaml"}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"version_compatible": True}, "libnvinfer_lean", "set it to false"),
        ({"compute_capabilities": (75,)}, r"for Turing \(SM75\): FP32 GEMM", "fp16"),
    ],
)
def test_the_reason_of_a_failed_build_is_told(
    image: Made, options: dict[str, object], message: str, hint: str, tmp_path: Path
) -> None:
    target = for_gpus("trt-rtx", (86,))
    recipe = image.recipe(target).model_copy(update=options)
    with pytest.raises(BackendError, match=message) as found:
        build_engines(image.file(target), tmp_path, recipe, load_backend("tensorrt-rtx"))
    assert hint in (found.value.hint or "")
    assert "/_src/" not in found.value.message
    assert not list(tmp_path.iterdir())


class Killer:
    """Ends the process that builds, as a system without memory does."""

    def engine(self, name: str) -> None: ...

    def phase_start(self, name: str, steps: int) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # killed before, and not yet waited for
                if "rekd_edge.engines" in child.cmdline():
                    child.kill()

    def phase_step(self, name: str, step: int) -> None: ...

    def phase_finish(self, name: str) -> None: ...


class Impatient(Killer):
    def phase_start(self, name: str, steps: int) -> None:
        raise KeyboardInterrupt


def test_out_of_memory_while_building_is_one_clear_error(image: Made, tmp_path: Path) -> None:
    target = for_gpus("trt-rtx", (86,))
    file, recipe = image.file(target), image.recipe(target)
    trt = load_backend("tensorrt-rtx")
    with pytest.raises(BackendError, match="ended by signal 9 while building for SM 86") as found:
        build_engines(file, tmp_path, recipe, trt, listener=Killer())
    assert "memory" in (found.value.hint or "")
    with pytest.raises(KeyboardInterrupt):
        build_engines(file, tmp_path, recipe, trt, listener=Impatient())
    assert not [one for one in psutil.Process().children() if "rekd_edge.engines" in one.cmdline()]
    assert not list(tmp_path.iterdir())


def test_a_rejected_engine_leaves_the_other_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is built in fp32 and then held to fp16."""

    def half(model: onnx.ModelProto) -> dict[str, Kind]:
        return dict.fromkeys(requested_precision(model), "fp16")

    monkeypatch.setattr(build, "requested_precision", half)
    recipe = load_recipe(
        find_recipe("smoke/text"), ["data.limit={train: 64, dev: 100, test: 32}"]
    )  # as many as a calibration needs
    run = train_run(recipe, tmp_path / "run", device="cpu")
    target = target_file(tmp_path, "trt-rtx", ("[86, 89, 120]", "[86]"))
    result = export_bundle(run, target=target, output=tmp_path / "bundle", threads=1, twins=False)
    assert not result.passed
    assert result.path == tmp_path / "rejected" / "bundle"
    assert "asks for fp16" in result.reasons[0]
    assert result.report is not None
    assert result.report.passed
    assert result.calibration is not None


def test_without_tensorrt_the_command_says_how_to_get_it(text: Made, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorrt'] = None\n")
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    words = ("export", text.run.path, "--target", "trt", "--output", tmp_path / "out")
    ended = subprocess.run(
        [sys.executable, "-m", "rekd_edge", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        check=False,
    )
    assert ended.returncode == 4, ended.stderr
    assert "pip install 'rekd-edge[trt]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_answers_are_held_to_the_gates_whatever_gives_them(text: Made) -> None:
    """What an engine will be asked on a GPU, asked of ONNX Runtime: in batches that fit."""
    gates = load_gates("default")
    found = {}
    for name in ("trt-rtx", "trt-rtx-int8"):
        with OnnxRunner(text.file(for_gpus(name)), threads=1) as runner:
            found[name] = check_answers(
                runner,
                model=text.fused,
                io_spec=text.fused.io_spec(),
                label_names=text.run.label_names,
                batches=batches_of(text.run.data().test, text.run.preprocessor),
                gates=gates,
                largest_batch=4,
            )
    asked = {gate.metric for gate in gates.applicable("single_label_classification").gates}
    assert {gate.metric for gate in found["trt-rtx"].gates} == {
        metric for metric in asked if "exclusion" not in metric
    } - {"io_valid", "rationale_mismatches"}
    assert not found["trt-rtx"].failures
    assert any("max_scaled_score_error" in reason for reason in found["trt-rtx-int8"].failures)


def test_an_engine_does_not_run_without_a_gpu(exported: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    (stored,) = read_engines(exported / ENGINES_FOLDER)
    with (
        pytest.raises(BackendError, match="needs a CUDA GPU, and there is none here"),
        file_runner(stored.path, runtime="tensorrt-rtx"),
    ):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")
def test_an_engine_answers_as_onnx_runtime_does(
    exported: Path, text: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = present_device()
    assert device is not None
    fp32 = {*load_backend("tensorrt-rtx").compute_capabilities} - {75}  # it takes fp16 alone
    if device.compute_capability not in fp32:
        pytest.skip(
            f"TensorRT-RTX builds no fp32 engine for {device.name}, SM {device.compute_capability}"
        )
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    bundle = open_bundle(exported)
    with (
        TensorRtRunner(engine_for(bundle).path) as gpu,
        OnnxRunner(bundle.model_path, threads=1) as cpu,
    ):
        for batch in batches_of(text.run.data().test, text.run.preprocessor):
            mine, theirs = gpu.run(batch.inputs), cpu.run(batch.inputs)
            assert np.allclose(mine.logits, theirs.logits, atol=5e-4)
            assert np.array_equal(mine.rationale_mask, theirs.rationale_mask)
