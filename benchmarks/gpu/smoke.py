"""Whether what a GPU computes is what the CPU computes: the first question to a CUDA machine.

Facts of device and versions, and one check after the other, each of which may fail by itself:
deployed forms in torch (fp32, fp16, CUDA graphs), the hand-written attention, a step of joint
training with its gradients (fp32, bf16, compiled, CUDA graphs), images prepared on the device and
the optimiser. Weights and inputs are random; only the tokenizer of the text models must be at hand.
The file is written after every check, and read by another call: what passed with the same versions,
on the same device and at the same size is not asked again.

    python benchmarks/gpu/smoke.py --device cuda --output smoke.json --limit-s 60

Ends with 3 where a check failed.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rekd_edge.bench.on_device import describe_device, gpu_state
from rekd_edge.bench.residents import TorchResident, exact_fp32
from rekd_edge.data import load_data
from rekd_edge.data.loader import make_loader
from rekd_edge.data.on_device import DeviceImages
from rekd_edge.data.preprocess import ImagePreprocessor
from rekd_edge.device_suite import halve
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.distill.compiled import CompiledBackbones, no_compiler
from rekd_edge.distill.loop import Rates, make_optimizer, move_batch
from rekd_edge.distill.objectives import JointObjective, Progress
from rekd_edge.distill.teacher import Teacher
from rekd_edge.fuse import fuse
from rekd_edge.fuse.folds import unfold_attention
from rekd_edge.fuse.fused import DeployModel, masked_form, plain_form
from rekd_edge.machine import hardware, package_versions
from rekd_edge.models.build import Built, build_classifier, build_rationalist
from rekd_edge.models.encoder import weighted_attention, weighted_formula
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.types import Batch

SCHEMA_VERSION = 1
COMPILES_S = 60.0
"""What a check that compiles may take; with less time left it is not begun."""
RANDOM_DATA = ("data.source=random", "data.limit={train: 256, dev: 64, test: 64}")
VIT, MINILM = "random:vit_small_patch14_dinov2.lvd142m", "random:minilm-l3"
LARGEST_DIFFERENCE = {"fp32": 2e-3, "fp16": 0.1, "bf16": 0.2}
"""Of logits and losses, relative to the largest logit: what rounding explains."""
LARGEST_GRADIENT_DIFFERENCE = {"fp32": 1e-2, "bf16": 0.5}
"""Of all gradients together, the length of the difference relative to their own."""
MARGIN = {"fp32": 1e-4, "fp16": 2e-2}
"""Of the largest score: rationales with a smaller margin may differ."""

PARTS = ("selector", "predictor")

Figures = dict[str, Any]


class OutOfBoundsError(Exception):
    """A check whose figures are out of bounds."""

    def __init__(self, figures: Figures) -> None:
        super().__init__("out of bounds")
        self.figures = figures


def recipe_of(modality: str, *, small: bool) -> Recipe:
    if small:
        return load_recipe(find_recipe(f"smoke/{modality}"), list(RANDOM_DATA))
    parts = [f"{role}.{part}" for role in ("teacher", "student") for part in PARTS]
    if modality == "image":
        weights = [f"{part}.weights=[{VIT}]" for part in parts]
        return load_recipe(find_recipe("vision/cifar10"), [*RANDOM_DATA, *weights])
    weights = [f"{part}.weights=[{MINILM}]" for part in parts]
    return load_recipe(find_recipe("text/movie-review-snippets"), [*RANDOM_DATA, *weights])


def lively(model: nn.Module, seed: int) -> None:
    """Random weights under which answers and scores depend on the input: as a library starts them,
    blocks hardly change what passes through."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
        elif "head." in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)


def forms_of(recipe: Recipe) -> dict[str, DeployModel]:
    torch.manual_seed(0)
    own = build_rationalist(recipe.student, recipe, 3)
    plain = build_classifier(recipe.student, recipe, 3)
    assert isinstance(own.model, Rationalist)
    assert isinstance(plain.model, Classifier)
    lively(own.model, 1)
    lively(plain.model, 1)
    facts: dict[str, Any] = {"label_names": ("a", "b", "c"), "max_length": None}
    if recipe.modality == "text":
        facts["max_length"] = recipe.data.max_length
    scale = own.preprocessor.pixel_scale
    fused = fuse(own.model, pixel_scale=scale, **facts)
    return {
        "gathered": fused,
        "masked": masked_form(fused),
        "plain": plain_form(plain.model, pixel_scale=scale, **facts),
    }


def inputs_of(model: DeployModel, size: int) -> dict[str, np.ndarray]:
    tensors = model.example_inputs(size, 24)
    if model.modality == "text":  # of different lengths
        lengths = torch.arange(size) % 20 + 5
        tensors[1].copy_(torch.arange(24).unsqueeze(0) < lengths.unsqueeze(1))
    names = [one.name for one in model.io_spec().inputs]
    return {name: value.numpy() for name, value in zip(names, tensors, strict=True)}


def check_form(model: DeployModel, device: str, precision: str, *, cuda_graph: bool) -> Figures:
    """Logits, labels and rationales against the CPU in fp32; on the device with PyTorch's own
    attention, as the tables of latency run it."""
    inputs = inputs_of(model, 32)
    outputs = [one.name for one in model.io_spec().outputs]
    want = _answers(TorchResident(model, list(inputs), outputs, device="cpu"), inputs)
    moved = copy.deepcopy(model).to(device)
    unfold_attention(moved)
    if precision == "fp16":
        halve(moved)
    resident = TorchResident(
        moved,
        list(inputs),
        outputs,
        device=device,
        half=precision == "fp16",
        cuda_graph=cuda_graph,
    )
    # Another content in the same places first: a graph must read what was placed last.
    _answers(resident, {name: value[::-1].copy() for name, value in inputs.items()})
    found = _answers(resident, inputs)
    largest = float(np.abs(want["logits"]).max())
    difference = float(np.abs(found["logits"] - want["logits"]).max()) / largest
    figures: Figures = {"logits": difference}
    ok = difference <= LARGEST_DIFFERENCE[precision]
    if "rationale_mask" in want:
        score = want["selection_score"]
        sure = want["selection_margin"] > MARGIN[precision] * np.abs(score[score > -1e30]).max()
        same = (found["rationale_mask"] == want["rationale_mask"]).all(axis=1)
        figures |= {
            "rationales": float(same.mean()),
            "sure_rationales": float(same[sure].mean()) if sure.any() else None,
            "sure": int(sure.sum()),
        }
        ok = ok or not same.all()  # another rationale, another answer
        ok = ok and bool(same[sure].all())
    figures["labels"] = float((found["logits"].argmax(1) == want["logits"].argmax(1)).mean())
    if not ok:
        raise OutOfBoundsError(figures)
    return figures


def _answers(resident: TorchResident, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    resident.place(inputs)
    resident.launch()
    resident.synchronise()
    return resident.fetch()


def check_attention(device: str, dtype: torch.dtype, *, normed: bool) -> Figures:
    """The backward pass written by hand against the formula in float64; ``normed``: queries and
    keys in float32 under autocast, as norms of theirs answer."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, 6, 65, 64, dtype=torch.float64) for _ in range(3))
    weight = (torch.rand(4, 65) > 0.7).double()
    weight[:, 0] = 1
    reference = _gradients(weighted_formula, query, key, value, weight)
    own = torch.float32 if normed else dtype
    types = (own, own, dtype, torch.float32)
    moved = [t.to(device, kind) for t, kind in zip((query, key, value, weight), types, strict=True)]
    lowered = dtype != torch.float32
    with torch.autocast(device, torch.bfloat16, enabled=lowered):
        found = _gradients(weighted_attention, *moved)
    differences = [
        float((one.double().cpu() - other).norm() / other.norm())
        for one, other in zip(found, reference, strict=True)
    ]
    figures: Figures = dict(
        zip(("answer", "query", "key", "value", "weight"), differences, strict=True)
    )
    if max(differences) > (0.05 if lowered else 1e-3):
        raise OutOfBoundsError(figures)
    return figures


def _gradients(attend: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_(True) for one in given]
    answer = attend(*leaves)
    with torch.autocast(answer.device.type, enabled=False):
        answer.backward(torch.ones_like(answer))
    return [answer.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


class Step:
    """A step of joint training without a draw, so that it is the same everywhere."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        data = load_data(recipe)
        torch.manual_seed(0)
        assert recipe.teacher is not None
        theirs = build_rationalist(recipe.teacher, recipe, len(data.label_names))
        own = build_rationalist(recipe.student, recipe, len(data.label_names))
        self.teacher, self.student = _ready(theirs, 2), _ready(own, 3)
        loader = make_loader(data.train, own.preprocessor, batch_size=16, shuffle=False)
        self.batch: Batch = next(iter(loader))
        self.reference = self.run("cpu", "fp32", None)

    def run(self, device: str, precision: str, mode: str | None) -> tuple[float, Tensor]:
        student = copy.deepcopy(self.student).to(device)
        frozen = copy.deepcopy(self.teacher).to(device)
        teacher = Teacher(frozen, student)
        spec = self.recipe.objective.model_copy(update={"selection_noise": 0.0})
        targets = teacher.targets if spec.form.uses_teacher_targets else None
        objective = JointObjective(student, spec, teacher, targets, gather=True)
        batch = move_batch(self.batch, torch.device(device))
        compiled = CompiledBackbones([student, frozen], mode=mode, batch_size=len(batch.labels))
        loss = batch.labels.sum().float()
        for _ in range(1 if mode is None else 4):  # a graph is captured in the third
            student.zero_grad(set_to_none=True)
            with compiled.active():
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                    loss = objective(batch, Progress(0, 100))["loss"]
                loss.backward()
        found = [p.grad.float().cpu().flatten() for p in student.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat(found)

    def check(self, device: str, precision: str, mode: str | None) -> Figures:
        if mode is not None and (reason := no_compiler(torch.device(device))) is not None:
            raise RuntimeError(f"no compiler: {reason}")
        loss, gradient = self.run(device, precision, mode)
        want_loss, want = self.reference
        figures = {
            "loss": abs(loss - want_loss) / max(1.0, abs(want_loss)),
            "gradient": float((gradient - want).norm() / want.norm()),
        }
        allowed = LARGEST_DIFFERENCE[precision], LARGEST_GRADIENT_DIFFERENCE[precision]
        # In bf16 other tokens may be kept, and the gradient is then another one.
        if not (figures["loss"] <= allowed[0] and np.isfinite(figures["gradient"])):
            raise OutOfBoundsError(figures)
        if precision == "fp32" and figures["gradient"] > allowed[1]:
            raise OutOfBoundsError(figures)
        return figures


def _ready(built: Built, seed: int) -> Rationalist:
    assert isinstance(built.model, Rationalist)
    lively(built.model, seed)
    return built.model.eval()


def check_images(recipe: Recipe, device: str) -> Figures:
    """Pixels prepared on the device against the loader's, bit by bit."""
    data = load_data(recipe)
    torch.manual_seed(0)
    preprocessor = build_rationalist(recipe.student, recipe, 3).preprocessor
    assert isinstance(preprocessor, ImagePreprocessor)
    held = DeviceImages.of(data.train, preprocessor, torch.device(device))
    if isinstance(held, str):
        raise RuntimeError(held)
    options: dict[str, Any] = {"batch_size": 64, "shuffle": True, "augment": recipe.data.augment}
    pairs = zip(
        held.batches(**options), make_loader(data.train, preprocessor, **options), strict=True
    )
    same = [
        torch.equal(one.inputs["pixel_values"].cpu(), other.inputs["pixel_values"])
        and torch.equal(one.labels, other.labels)
        for one, other in pairs
    ]
    figures = {"batches": len(same), "equal": sum(same)}
    if not all(same):
        raise OutOfBoundsError(figures)
    return figures


def check_optimizer(device: str) -> Figures:
    """Three steps of AdamW in one kernel against those of the CPU, tensor by tensor."""
    recipe = load_recipe(find_recipe("smoke/image"), [])

    def trained(where: str, *, fused: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).to(where)
        train = recipe.student.train
        found = make_optimizer(
            {model: Rates.of(train)},
            set(model.parameters()),
            train,
            torch.device(where),
            fused=fused,
        )
        x = torch.linspace(-1, 1, 64 * 16, dtype=torch.float32).reshape(16, 64).to(where)
        for _ in range(3):
            model(x).square().sum().backward()
            found.step()
            found.zero_grad(set_to_none=True)
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    want = trained("cpu", fused=False)
    figures = {
        name: float((trained(device, fused=fused) - want).abs().max())
        for name, fused in (("fused", True), ("default", False))
    }
    if max(figures.values()) > 1e-5:
        raise OutOfBoundsError(figures)
    return figures


def checks(device: str, *, small: bool) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Names and checks, in the order of their worth."""
    on_cuda = device == "cuda"
    models: dict[str, dict[str, DeployModel]] = {}
    steps: dict[str, Step] = {}

    def form(modality: str, name: str, precision: str, graph: bool) -> Figures:
        if modality not in models:
            models[modality] = forms_of(recipe_of(modality, small=small))
        return check_form(models[modality][name], device, precision, cuda_graph=graph)

    def step(modality: str, precision: str, mode: str | None) -> Figures:
        if modality not in steps:
            steps[modality] = Step(recipe_of(modality, small=small))
        return steps[modality].check(device, precision, mode)

    for precision in ("fp32", "fp16") if on_cuda else ("fp32",):
        for modality in ("image", "text"):
            for name in ("gathered", "masked", "plain"):
                for graph in (False, True) if on_cuda else (False,):
                    title = f"{modality}, {name}, {precision}" + (", CUDA graph" if graph else "")
                    yield title, lambda m=modality, n=name, p=precision, g=graph: form(m, n, p, g)
    yield "attention, fp32", lambda: check_attention(device, torch.float32, normed=False)
    for normed in (False, True):
        title = "attention, bf16" + (", norms of queries and keys" if normed else "")
        yield title, lambda n=normed: check_attention(device, torch.bfloat16, normed=n)
    yield "images on the device", lambda: check_images(recipe_of("image", small=small), device)
    yield "AdamW", lambda: check_optimizer(device)
    for modality in ("image", "text"):
        for precision in ("fp32", "bf16"):
            title = f"step of {modality} training, {precision}"
            yield title, lambda m=modality, p=precision: step(m, p, None)
    if on_cuda:
        for mode in ("default", "reduce-overhead"):
            title = f"step of image training, fp32, compiled ({mode})"
            yield title, lambda m=mode: step("image", "fp32", m)


def facts(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": describe_device(device),
        "hardware": hardware(),
        "versions": package_versions(),
    }
    if device == "cuda":
        found |= {
            "state": gpu_state(),
            "cudnn": torch.backends.cudnn.version(),
            "built_for": torch.cuda.get_arch_list(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return found


def passed_before(output: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks of an earlier report that passed under the same conditions."""
    try:
        earlier = json.loads(output.read_text(encoding="utf-8"))
        if _conditions(earlier) != _conditions(report):
            return []
        return [row for row in earlier["checks"] if row["passed"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _conditions(report: dict[str, Any]) -> tuple[Any, ...]:
    device = report["facts"]["device"]
    on = tuple(device.get(name) for name in ("device", "gpu", "driver", "cpu"))
    return report["schema_version"], report["small"], report["facts"]["versions"], on


def run(device: str, output: Path, *, small: bool, limit_s: float | None, only: str = "") -> bool:
    """Whether all checks whose names begin with ``only`` passed, now or in an earlier call that
    wrote ``output``; what there was no time for has not failed."""
    began = time.monotonic()
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "small": small,
        "facts": facts(device),
        "checks": [],
        "finished": False,
    }
    report["checks"] = passed_before(output, report)
    known = {row["name"] for row in report["checks"]}
    write_json(output, report)
    with exact_fp32():
        for name, check in checks(device, small=small):
            if not name.startswith(only):
                continue
            if name in known:
                print(f"passed before: {name}", flush=True)
                continue
            started = time.monotonic()
            row: dict[str, Any] = {"name": name, "passed": False}
            needs_s = COMPILES_S if "compiled" in name else 0.0
            if limit_s is not None and started - began + needs_s > limit_s:
                row |= {"passed": None, "error": "no time was left"}
            else:
                try:
                    row |= {"figures": check(), "passed": True}
                except OutOfBoundsError as failure:
                    row |= {"figures": failure.figures, "error": str(failure)}
                except Exception as error:  # the next check is asked all the same
                    lines = str(error).strip().splitlines() or [""]
                    row["error"] = f"{type(error).__name__}: {lines[0][:300]}"
            row["seconds"] = round(time.monotonic() - started, 2)
            report["checks"].append(row)
            write_json(output, report)
            said = {True: "passed", False: "FAILED", None: "left out"}[row["passed"]]
            print(f"{said}: {name}: {row.get('error') or row.get('figures')}", flush=True)
    if device == "cuda":
        report["facts"]["state_afterwards"] = gpu_state()
    report["finished"] = all(row["passed"] is not None for row in report["checks"])
    write_json(output, report)
    if not report["finished"]:
        print(f"stopped after {limit_s} s; run it again to go on", flush=True)
    return all(row["passed"] is not False for row in report["checks"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--limit-s", type=float, default=None)
    parser.add_argument("--only", default="", help="checks whose names begin so")
    options = parser.parse_args()
    passed = run(
        options.device,
        options.output,
        small=options.small,
        limit_s=options.limit_s,
        only=options.only,
    )
    sys.exit(0 if passed else 3)


if __name__ == "__main__":
    main()
