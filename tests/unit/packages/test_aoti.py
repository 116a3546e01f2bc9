"""One package is really compiled, on the CPU, and held to everything that a file is held to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rekd_edge.bench import BenchSettings, bench_files
from rekd_edge.check import GateSet, LabelledBatch, TextEdges, load_gates
from rekd_edge.check.inputs import queries
from rekd_edge.convert import OnnxArtefact, weights_sha256
from rekd_edge.errors import BackendError, GateError
from rekd_edge.fuse import FusedRationalist
from rekd_edge.packages.backend import cxx, find_compiler
from rekd_edge.packages.build import made_of, package_for, require_runnable
from rekd_edge.packages.spec import MadeOf, PackageSpec
from rekd_edge.packages.store import StoredPackage, find_packages
from rekd_edge.packages.verify import check_package
from rekd_edge.runners import PackageRunner, RunError, TorchRunner, file_runner
from rekd_edge.types import OUTPUTS, TEXT_INPUTS

pytestmark = pytest.mark.skipif(cxx() is None, reason="needs a C++ compiler")
QUICK = BenchSettings(
    min_duration_s=0.0, min_count=4, warmup_count=1, cold_starts=1, rss_queries=1, quick=True
)


@pytest.fixture(scope="module")
def package(
    tiny_text: FusedRationalist,
    tiny_text_onnx: OnnxArtefact,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKD_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield package_for(tiny_text, wanted(tiny_text, tiny_text_onnx))


def wanted(model: FusedRationalist, onnx: OnnxArtefact) -> MadeOf:
    spec = PackageSpec(backend="aoti")
    return made_of(
        spec,
        find_compiler(spec),
        model.io_spec(),
        onnx_sha256=onnx.sha256,
        weights_sha256=weights_sha256(model),
        profiles={},
        max_length=model.max_length,
    )


def test_it_answers_at_every_size_as_the_torch_model_does(
    package: StoredPackage, tiny_text: FusedRationalist, text_batches: list[LabelledBatch]
) -> None:
    threads = torch.get_num_threads()
    with (
        file_runner(package.path, runtime="aoti", threads=1) as runner,
        TorchRunner(tiny_text, TEXT_INPUTS, threads=1) as reference,
    ):
        assert isinstance(runner, PackageRunner)
        assert runner.providers == ["aoti cpu"]
        assert tuple(runner.output_names) == OUTPUTS
        one = {name: value[:1, :4] for name, value in text_batches[0].inputs.items()}
        for inputs in (one, *(batch.inputs for batch in text_batches)):
            have, want = runner.run(inputs), reference.run(inputs)
            assert np.array_equal(have.rationale_mask, want.rationale_mask)
            for name in ("logits", "selection_score"):
                assert getattr(have, name) == pytest.approx(getattr(want, name), abs=1e-4)
        ids = np.ones((1, 900), dtype=np.int64)
        with pytest.raises(RunError, match=r"package failed on .*900 tokens, must be at most 48"):
            runner.run({"input_ids": ids, "attention_mask": ids})
    assert torch.get_num_threads() == threads


def test_it_runs_without_tf32_whatever_the_process_has(
    package: StoredPackage, text_batches: list[LabelledBatch]
) -> None:
    seen = []

    def spied(*tensors: torch.Tensor) -> Any:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return compiled(*tensors)

    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with PackageRunner(package.path, threads=1) as runner:
            compiled, runner._session = runner._session, spied
            runner.run(text_batches[0].inputs)
        assert seen == [("highest", False)]
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = before


def test_it_runs_where_there_is_no_compiler(
    package: StoredPackage,
    text_batches: list[LabelledBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("PATH", "/nowhere")
    with PackageRunner(package.path, threads=1) as runner:
        assert len(runner.run(text_batches[0].inputs).logits) == len(text_batches[0].labels)


def test_it_is_held_to_the_gates_of_its_file(
    package: StoredPackage,
    tiny_text: FusedRationalist,
    text_batches: list[LabelledBatch],
    text_edges: TextEdges,
) -> None:
    gates = load_gates("default")

    def checked(held: GateSet) -> StoredPackage:
        return check_package(
            package,
            model=tiny_text,
            io_spec=tiny_text.io_spec(),
            label_names=tiny_text.label_names,
            batches=text_batches,
            gates=held,
            edges=text_edges,
            threads=1,
        )

    checks = checked(gates).record.checks
    assert (checks.parity, checks.accuracy, checks.exclusion) == ("passed",) * 3
    assert checks.latency == "not run"
    assert (checks.metrics["rationale_exact"], checks.metrics["exclusion_changed"]) == (1.0, 0.0)
    assert checks.metrics["exclusion_control"] == 1.0
    assert find_packages(package.record.made_of.onnx_sha256)[0].record.checks == checks
    strict = tuple(
        gate.model_copy(update={"value": -1.0}) if gate.metric == "exclusion_changed" else gate
        for gate in gates.gates
    )
    with pytest.raises(GateError, match="package of aoti for cpu fails its gates") as raised:
        checked(gates.model_copy(update={"gates": strict}))
    assert "exclusion_changed is 0, must be <= -1" in str(raised.value)


def test_it_is_compiled_once_and_timed_beside_its_file(
    package: StoredPackage,
    tiny_text: FusedRationalist,
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", again)
    same = package_for(tiny_text, wanted(tiny_text, tiny_text_onnx))
    assert same.path == package.path
    require_runnable(same)
    found = bench_files(
        {"file": tiny_text_onnx.path, "package": package.path},
        queries([text_batches[0].inputs], 8, 0),
        settings=QUICK,
        elsewhere={"package": ("aoti", "cpu")},
        reference="file",
    )
    mine = found.candidates["package"]
    assert mine.providers == ("aoti cpu",)
    assert mine.query_count == 6
    assert mine.cold_start is not None
    assert mine.cold_start.load_ns[0] > 0


def test_a_copy_of_it_in_a_bundle_is_not_run(package: StoredPackage, tmp_path: Path) -> None:
    shutil.copytree(package.path.parent, tmp_path / "bundle" / "packages")
    stray = tmp_path / "bundle" / "packages" / package.path.name
    with pytest.raises(BackendError, match="lies outside"), PackageRunner(stray):
        pass
