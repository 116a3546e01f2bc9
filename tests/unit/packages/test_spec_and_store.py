"""Packages: what they are keyed by, and what is never loaded. Nothing is compiled here."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rekd_edge.engines.backend import Device
from rekd_edge.engines.spec import Profile
from rekd_edge.errors import BackendError, IntegrityError
from rekd_edge.fuse import FusedRationalist
from rekd_edge.packages import backend, build
from rekd_edge.packages.backend import Host, find_compiler, find_host, instruction_set
from rekd_edge.packages.build import _refused, made_of, package_for, require_runnable
from rekd_edge.packages.spec import MadeOf, PackageRecord, PackageSpec
from rekd_edge.packages.store import (
    PACKAGE_FILE,
    find_packages,
    place_of,
    read_package,
    write_record,
)
from rekd_edge.runners import PackageRunner
from rekd_edge.runners.package_runner import require_fit

SHA = "0" * 64
AOTI = PackageSpec(backend="aoti")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def facts(model: FusedRationalist, **changes: Any) -> MadeOf:
    found = made_of(
        AOTI,
        Host(torch.__version__, None, None),
        model.io_spec(),
        onnx_sha256=SHA,
        weights_sha256=SHA,
        profiles={},
        max_length=model.max_length,
    )
    return found.model_copy(update=changes)


def stored(made: MadeOf, content: dict[str, bytes] | None = None) -> Path:
    """A package with its side-car; what is inside is no code."""
    from rekd_edge.data.storage import sha256_of

    place = place_of(made)
    place.mkdir(parents=True, mode=0o700)
    with zipfile.ZipFile(place / PACKAGE_FILE, "w") as archive:
        for name, data in (content or {"model/data/aotinductor/model/a.so": b"no code"}).items():
            archive.writestr(name, data)
    (place / PACKAGE_FILE).chmod(0o600)
    digest = sha256_of(place / PACKAGE_FILE)
    record = PackageRecord(made_of=made, package_sha256=digest, size_bytes=1, build_s=0)
    write_record(place, record)
    return place / PACKAGE_FILE


def test_another_torch_cpu_gpu_weights_or_sizes_is_another_package(
    tiny_text: FusedRationalist,
) -> None:
    base = facts(tiny_text)
    others = [
        facts(tiny_text, torch="2.11.0"),
        facts(tiny_text, instruction_set="AVX2 0"),
        facts(tiny_text, compute_capability=90),
        facts(tiny_text, device="cuda"),
        facts(tiny_text, tensorrt="11.1.0"),
        facts(tiny_text, device_name="some GPU"),
        facts(tiny_text, onnx_sha256="1" * 64),
        facts(tiny_text, weights_sha256="1" * 64),
        facts(tiny_text, profiles={"input_ids": Profile(min=(1, 3), opt=(1, 3), max=(1, 3))}),
    ]
    places = {place_of(one) for one in (base, *others)}
    assert len(places) == len(others) + 1
    assert place_of(facts(tiny_text)) == place_of(base)
    assert base.instruction_set == instruction_set()
    assert base.instruction_set.split()[0] == torch.backends.cpu.get_cpu_capability()


def test_the_instruction_set_is_that_of_the_cpu(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("processor: 0\nflags\t\t: sse avx2\n")
    two.write_text("processor: 0\nflags\t\t: avx2 sse amx\n")
    assert instruction_set(one) != instruction_set(two)
    two.write_text("processor: 0\nflags\t\t: avx2 sse\n")
    assert instruction_set(one) == instruction_set(two)
    assert instruction_set(tmp_path / "none")


def test_a_package_outside_the_users_cache_is_never_loaded(
    tiny_text: FusedRationalist, tmp_path: Path
) -> None:
    inside = stored(facts(tiny_text))
    assert read_package(inside).record.made_of == facts(tiny_text)
    bundle = tmp_path / "bundle" / "packages" / "aoti"
    shutil.copytree(inside.parent, bundle)
    with pytest.raises(BackendError, match="compiled code and lies outside"):
        read_package(bundle / PACKAGE_FILE)
    with pytest.raises(BackendError, match="lies outside"), PackageRunner(bundle / PACKAGE_FILE):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_package_that_others_may_write_to_is_never_loaded(tiny_text: FusedRationalist) -> None:
    path = stored(facts(tiny_text))
    for one in (path, path.parent, path.parent.parent):
        before = one.stat().st_mode
        one.chmod(0o777)
        with pytest.raises(BackendError, match="others may write to it"):
            read_package(path)
        assert find_packages(SHA) == ()
        one.chmod(before)
    assert [one.path for one in find_packages(SHA)] == [path]


def test_changed_bytes_a_foreign_side_car_and_pickles_are_integrity_errors(
    tiny_text: FusedRationalist,
) -> None:
    path = stored(facts(tiny_text))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match="not the package that its side-car describes"):
        read_package(path)
    other = stored(facts(tiny_text, torch="2.0"))
    shutil.copy(other, path)
    shutil.copy(other.with_name("package.json"), path.with_name("package.json"))
    with pytest.raises(IntegrityError, match="not the package"):
        read_package(path)
    path.with_name("package.json").write_text("{}")
    with pytest.raises(IntegrityError, match="is broken"):
        read_package(path)
    path.with_name("package.json").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        read_package(path)
    pickled = stored(facts(tiny_text, torch="2.1"), {"model/data/weights/w.pkl": b"cos\nsystem"})
    with pytest.raises(IntegrityError, match=r"holds a pickle, model/data/weights/w\.pkl"):
        read_package(pickled)


def engine_object(pickled: bytes | None = None) -> bytes:
    """An engine as torch-tensorrt stores it: its class, and its state, a list of texts."""
    texts = torch._C._pickle_save(["9", "name", "an engine in base64"])
    (place,) = [n for n in zipfile.ZipFile(io.BytesIO(texts)).namelist() if n.endswith("data.pkl")]
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(texts)) as source, zipfile.ZipFile(content, "w") as made:
        for name in source.namelist():
            data = source.read(name)
            if name == place:
                state = data[2:-1]  # without protocol and end
                head = b"\x80\x02c__torch__.torch.classes.tensorrt\nEngine\n)\x81"
                data = head + state + b"b." if pickled is None else pickled
            made.writestr(name, data)
    return content.getvalue()


FOLDER = "model/data/aotinductor/model"


def test_of_torch_tensorrt_its_engines_are_data_and_nothing_else_is(
    tiny_text: FusedRationalist,
) -> None:
    made = facts(tiny_text, backend="torch-trt", device="cuda")
    listed = json.dumps({"engine": "custom_obj_0"}).encode()
    mine = {f"{FOLDER}/custom_obj_0": engine_object(), f"{FOLDER}/custom_objs_config.json": listed}
    assert read_package(stored(made, mine)).record.made_of == made
    with pytest.raises(IntegrityError, match=r"holds a pickle, .*custom_obj_0"):
        read_package(stored(facts(tiny_text), mine))  # AOTInductor alone has none

    also = b"\x80\x02c__torch__.torch.classes.tensorrt\nEngine\ncos\nsystem\n\x86."
    others = [
        engine_object(also),
        engine_object(also.replace(b"os\nsystem", b"__torch__.torch.classes.quantized\nAny")),
        torch._C._pickle_save(["texts", "of no engine"]),
        engine_object(pickle.dumps(print)),
        engine_object(b"\x80\x02cos\nsystem\n."),
        engine_object(b"\x80\x02X"),
        b"no archive",
    ]
    for index, content in enumerate(others):
        one = {**mine, f"{FOLDER}/custom_obj_0": content}
        with pytest.raises(IntegrityError, match=r"holds a pickle, .*custom_obj_0"):
            read_package(stored(made.model_copy(update={"torch": f"2.{index}"}), one))
    hidden = {**mine, f"{FOLDER}/custom_objs_config.json": b'{"engine": "constants.bin"}'}
    with pytest.raises(IntegrityError, match=r"holds a pickle, constants\.bin"):
        read_package(stored(made.model_copy(update={"torch": "1.0"}), hidden))


def test_a_package_of_another_torch_is_refused_before_it_is_loaded(
    tiny_text: FusedRationalist,
) -> None:
    path = stored(facts(tiny_text, torch="2.11.0"))
    with (
        pytest.raises(BackendError, match=r"compiled for torch 2\.11\.0") as raised,
        PackageRunner(path),
    ):
        pass
    assert raised.value.exit_code == 4
    with pytest.raises(BackendError, match="cannot load"), PackageRunner(stored(facts(tiny_text))):
        pass  # this one may run here, and is no code


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"torch": "2.11.0"}, r"compiled for torch 2\.11\.0 \(here: "),
        ({"machine": "riscv64"}, r"compiled for processors of kind riscv64 \(here: "),
        ({"instruction_set": "AVX9 0"}, r"compiled for the processor AVX9 0 \(here: "),
        ({"torch": "2.1", "machine": "x"}, r"for torch 2\.1 \(.*\), processors of kind x \("),
    ],
)
def test_a_package_that_does_not_run_here_says_what_differs_and_no_compiler_is_missed(
    changes: dict[str, str], why: str, tiny_text: FusedRationalist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    require_runnable(read_package(stored(facts(tiny_text))))
    with pytest.raises(BackendError, match=why):
        require_runnable(read_package(stored(facts(tiny_text, **changes))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of machines without a GPU")
def test_a_package_for_a_gpu_says_that_there_is_none(tiny_text: FusedRationalist) -> None:
    package = read_package(stored(facts(tiny_text, device="cuda", compute_capability=90)))
    with pytest.raises(BackendError, match=r"for cuda .* there is none here"):
        require_runnable(package)


def test_inputs_are_held_to_the_side_car_before_compiled_code_sees_them(
    tiny_text: FusedRationalist, tiny_image: FusedRationalist
) -> None:
    made = facts(tiny_text)
    ids = np.ones((2, 8), dtype=np.int64)
    require_fit(made, {"input_ids": ids, "attention_mask": ids})
    wrong = [
        (ids.astype(np.int32), ids, "must be int64"),
        (ids[0], ids, "must be"),
        (ids, ids[:, :4], "4 of token, must be 8"),
        (ids[:0], ids[:0], "has none of batch"),
        (np.ones((1, 900), np.int64), np.ones((1, 900), np.int64), "at most 48"),
    ]
    for one, two, why in wrong:
        with pytest.raises(ValueError, match=why):
            require_fit(made, {"input_ids": one, "attention_mask": two})
    pixels = np.zeros((1, 3, 32, 64), dtype=np.float32)
    with pytest.raises(ValueError, match="must be"):
        require_fit(facts(tiny_image), {"pixel_values": pixels})
    few = {
        name: Profile(min=(1, 3), opt=(1, 8), max=(1, 8))
        for name in ("input_ids", "attention_mask")
    }
    with pytest.raises(ValueError, match="is not served"):
        require_fit(facts(tiny_text, profiles=few), {"input_ids": ids, "attention_mask": ids})


def test_without_a_gpu_a_compiler_or_the_right_torch_tensorrt_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = find_compiler(AOTI)
    assert (found.torch, found.device) == (torch.__version__, None)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(BackendError, match="there is no /nowhere/g") as raised:
        find_compiler(AOTI)
    assert "apt-get install g++" in str(raised.value.hint)
    assert find_host(AOTI) == found  # what is compiled already runs without
    if not torch.cuda.is_available():
        for kind in ("aoti", "torch-trt"):
            spec = PackageSpec(backend=kind, device="cuda")
            with pytest.raises(BackendError, match="there is none here") as raised:
                find_compiler(spec)
            assert raised.value.exit_code == 4
    minor = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr(backend, "installed", lambda name: None)
    with pytest.raises(BackendError, match="is not installed") as raised:
        backend.load_torch_tensorrt()
    assert f"torch-tensorrt=={minor}.*" in str(raised.value.hint)
    monkeypatch.setattr(backend, "installed", lambda name: "1.4.0")
    with pytest.raises(BackendError, match=r"1\.4\.0 does not belong to torch"):
        backend.load_torch_tensorrt()
    monkeypatch.setattr(backend, "installed", lambda name: f"{minor}.3")
    monkeypatch.setattr(backend, "load_backend", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(BackendError, match="does not import"):
        backend.load_torch_tensorrt()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("g++: fatal error: Killed signal terminated program cc1plus"), "of memory"),
        (OSError(28, "No space left on device"), "no space left"),
        (RuntimeError("unsupported\nand a page of advice"), "RuntimeError: unsupported"),
    ],
)
def test_what_stops_a_compilation_is_one_line_with_exit_code_4(
    error: Exception, what: str, tiny_text: FusedRationalist
) -> None:
    found = _refused(facts(tiny_text), error)
    assert found.exit_code == 4
    assert what in found.message
    assert "\n" not in found.message
    assert found.hint


def test_a_failed_compilation_leaves_nothing(
    tiny_text: FusedRationalist, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        assert not torch.backends.cudnn.allow_tf32
        raise RuntimeError("cc1plus: out of memory allocating 65536 bytes")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuses)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(BackendError, match="ran out of memory while compiling for cpu"):
        package_for(tiny_text, facts(tiny_text))
    assert torch.backends.cudnn.allow_tf32
    assert list((own_cache / "packages").iterdir()) == []


def test_the_compiler_for_a_gpu_is_keyed_by_it(tiny_text: FusedRationalist) -> None:
    gpu = Device("some GPU", 90, "580.1")
    kinds: dict[Any, tuple[Any, ...]] = {
        "aoti": ("", 90, None, None, None),
        "torch-trt": ("", 90, "580.1", "11.1.0", "some GPU"),
    }
    for kind, expected in kinds.items():
        made = made_of(
            PackageSpec(backend=kind, device="cuda"),
            Host("2.15.0", "2.15.0", gpu, "11.1.0")
            if kind == "torch-trt"
            else Host("2.15.0", None, gpu),
            tiny_text.io_spec(),
            onnx_sha256=SHA,
            weights_sha256=SHA,
            profiles={"input_ids": Profile(min=(1, 3), opt=(1, 8), max=(1, 8))},
            max_length=48,
        )
        bound_to = (made.driver, made.tensorrt, made.device_name)
        assert (made.instruction_set, made.compute_capability, *bound_to) == expected
        assert bool(made.profiles) == (kind == "torch-trt")
        assert json.loads(made.model_dump_json())["inputs"][0]["axes"] == ["batch", "token"]


def test_an_engine_of_another_tensorrt_or_gpu_model_is_not_run(
    tiny_text: FusedRationalist, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Host("2.15.0", "2.15.0", Device("H100", 90, "580.1"), "11.1.0")
    made = made_of(
        PackageSpec(backend="torch-trt", device="cuda"),
        here,
        tiny_text.io_spec(),
        onnx_sha256=SHA,
        weights_sha256=SHA,
        profiles={},
        max_length=48,
    )
    monkeypatch.setattr(build, "find_host", lambda spec: here)
    require_runnable(read_package(stored(made)))
    for changes, why in (
        ({"tensorrt": "10.15.0"}, r"for TensorRT 10\.15\.0 \(here: 11\.1\.0\)"),
        ({"device_name": "H200"}, r"for the GPU H200 \(here: H100\)"),
        ({"device_name": None}, r"for the GPU None \(here: H100\)"),
    ):
        other = read_package(stored(made.model_copy(update=changes)))
        with pytest.raises(BackendError, match=why):
            require_runnable(other)


def test_code_for_a_gpu_needs_the_headers_of_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import cpp_extension

    monkeypatch.setattr(backend, "present_device", lambda: Device("H100", 90, "580.1"))
    monkeypatch.setattr(backend, "cxx", lambda: "g++")
    spec = PackageSpec(backend="aoti", device="cuda")
    for home, why in ((None, "there is none"), (str(tmp_path), r"has no include/cuda\.h")):
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        with pytest.raises(BackendError, match=why) as raised:
            find_compiler(spec)
        assert raised.value.exit_code == 4
        assert "CUDA_HOME" in str(raised.value.hint)
        assert find_host(spec).device is not None  # what is compiled already runs without
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda.h").touch()
    assert find_compiler(spec) == find_host(spec)
    assert find_compiler(AOTI).device is None  # a CPU needs none


def test_the_compiler_that_was_found_is_the_one_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch by itself takes g++ alone, and knows CXX as it was when torch was imported."""
    other = tmp_path / "clang++"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiler_options()["cpp.cxx"] == (None, str(other))
    monkeypatch.setenv("CXX", f"{other} -m64")
    assert build.compiler_options()["cpp.cxx"] == (None, f"{other} -m64")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(BackendError, match="there is no /nowhere/g\\+\\+, which CXX names"):
        find_compiler(AOTI)
