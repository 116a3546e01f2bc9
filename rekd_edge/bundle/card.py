"""The model card: ``README.md`` of a bundle, from facts of the manifest only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rekd_edge.bundle.manifest import BundleConfig, BundleManifest
from rekd_edge.engines.store import StoredEngine, counted
from rekd_edge.types import PAIR_OUTPUTS, ProblemType

_MODEL_NAMES = {
    "student": "the same student in torch",
    "teacher": "teacher rationalist",
    "plain": "plain classifier of the student's size (reads everything)",
}
_UNITS = {"text": ("text", "tokens", "words"), "image": ("image", "patches", "patches")}
_INPUT_EXAMPLES = {
    "text": '"a text to classify"',
    "image": "photo.jpg",
}
_READS_INPUT = {"text": "tokenizers", "image": "pillow"}
_OPTIMUM_CLASSES = {
    "text": "ORTModelForSequenceClassification",
    "image": "ORTModelForImageClassification",
}
_WITH: dict[ProblemType, str] = {
    "single_label_classification": "its probabilities and its rationale",
    "multi_label_classification": "its probabilities and its rationale",
    "regression": "its values and its rationale",
}
_MEASURED: dict[ProblemType, tuple[str, str, str]] = {
    "single_label_classification": ("accuracy", "Share of right answers", "class"),
    "multi_label_classification": ("micro F1", "F1 over all labels of all examples", "label"),
    "regression": ("R²", "Share of the variance that is explained (mean over values)", "value"),
}
"""The primary score, in words, and what it is given for besides."""
_ALWAYS: dict[ProblemType, str] = {
    "single_label_classification": (
        "Every input gets one of the labels, also one that belongs to none of them."
    ),
    "multi_label_classification": (
        "A label is answered where its probability is above one half; an input may get none. "
        "Inputs unlike those of its data get labels too."
    ),
    "regression": (
        "Every input gets a value, also one unlike those of its data; nothing keeps it in their "
        "range."
    ),
}
_RUNTIME_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO, in fp32"}


def model_card(
    manifest: BundleManifest,
    config: BundleConfig,
    reports: Sequence[str],
    engines: Sequence[StoredEngine] = (),
) -> str:
    """Markdown with a YAML head that model hubs read. ``manifest`` need not list files yet."""
    sections = [
        _head(manifest, config),
        _title(manifest, config),
        _running(config),
        _facts(manifest, config),
        _accuracy(manifest, config),
        _why_not(config),
        _gates(manifest),
        _engines(engines),
        _use_and_limits(config),
        _contents(config, reports),
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _head(manifest: BundleManifest, config: BundleConfig) -> str:
    task = "text-classification" if config.modality == "text" else "image-classification"
    tags = ("rationale-extraction", "select-then-predict", "onnx", "rekd-edge", manifest.target)
    listed = "\n".join(f"- {tag}" for tag in dict.fromkeys(tags))
    return f"---\nlibrary_name: rekd-edge\npipeline_tag: {task}\ntags:\n{listed}\n---"


def _title(manifest: BundleManifest, config: BundleConfig) -> str:
    kept = kept_share(config)
    answers = f"a selector keeps {kept}, and a predictor answers from those alone"
    if is_pair(config):
        answers = (
            f"two students keep {kept} each and answer from "
            "those alone; where they disagree, each is shown what the other kept, and the answer "
            "is that of the one whose rationale convinces the other"
        )
    described = f"\n\n{_line(manifest.lineage.description)}" if manifest.lineage.description else ""
    return (
        f"# {_line(manifest.name)}{described}\n\n"
        f"{_does(config)} and shows what the answer was read from: {answers}. "
        f"Exported by rekd-edge {manifest.versions.get('rekd-edge', '')} on "
        f"{manifest.created[:10]}."
    )


def _does(config: BundleConfig) -> str:
    what = "an image" if config.modality == "image" else "a text"
    count = len(config.label_names)
    if config.problem_type == "regression":
        named = ", ".join(_code(name) for name in config.label_names)
        return f"Answers {what} with {'a number' if count == 1 else f'{count} numbers'} ({named})"
    if config.problem_type == "multi_label_classification":
        return f"Says of {what} which of {count} labels it has (any number of them)"
    return f"Classifies {what} into {count} classes"


def kept_share(config: BundleConfig) -> str:
    """What is kept of an input, in words."""
    share = f"{config.rationale_ratio:.0%} of the {_UNITS[config.modality][1]}"
    if config.rationale_unit == "token":
        return share
    return f"whole {config.rationale_unit}s (at most {share})"


def is_pair(config: BundleConfig) -> bool:
    """Whether two students answer together."""
    return any(tensor.name in PAIR_OUTPUTS for tensor in config.outputs)


def _running(config: BundleConfig) -> str:
    return (
        "## How to run\n\nPython 3.10 or newer; no torch.\n\n```\n"
        f"python -m pip install numpy {config.runtime} {_READS_INPUT[config.modality]}\n"
        f"python runtime/rekd_runtime.py {_INPUT_EXAMPLES[config.modality]}\n```\n\n"
        f"`--json -` prints the answer, {_WITH[config.problem_type]} as JSON. Every file "
        "is checked against `manifest.json` first. With rekd-edge installed: "
        f"`rekd-edge predict . {_INPUT_EXAMPLES[config.modality]}`.\n\n"
        "optimum opens the folder as it is "
        f"(`{_OPTIMUM_CLASSES[config.modality]}.from_pretrained`), without calibration, abstention "
        "and the check of the files."
    )


def _facts(manifest: BundleManifest, config: BundleConfig) -> str:
    lineage = manifest.lineage
    numerator, denominator = config.rationale_ratio_fraction
    rows = [
        (
            "values" if config.problem_type == "regression" else "labels",
            ", ".join(_code(name) for name in config.label_names),
        ),
        (
            "rationale",
            f"{_whole_units(config)}k = clamp(ceil({numerator}/{denominator} * n), 1, n) of n "
            f"valid {_UNITS[config.modality][1]}",
        ),
        (
            "reads",
            f"{config.max_length} tokens, special tokens included"
            if config.modality == "text"
            else f"{config.image_size}x{config.image_size} pixels in patches of "
            f"{config.patch_size}x{config.patch_size}",
        ),
        ("file", f"ONNX opset {config.opset}, IR {config.ir_version}, {config.precision}"),
        ("runtime", _runtime(config)),
        ("recipe", f"{_code(lineage.recipe_name)} (task `{lineage.task}`)"),
        ("seed", "not recorded" if lineage.seed is None else str(lineage.seed)),
        *((f"data: {key}", _code(value)) for key, value in lineage.data.items()),
        *((f"weights: {role}", _code(source)) for role, source in lineage.weights.items()),
        ("made with", ", ".join(f"{name} {v}" for name, v in manifest.versions.items())),
    ]
    return "## What it is\n\n" + _table(("", ""), rows)


def _whole_units(config: BundleConfig) -> str:
    if config.rationale_unit == "token":
        return ""
    size = "" if config.region_size is None else f" of {config.region_size}x{config.region_size}"
    return f"whole {config.rationale_unit}s{size} by rank, as long as they fit into "


def _runtime(config: BundleConfig) -> str:
    settings = config.runtime_settings
    if settings is None:
        return _RUNTIME_NAMES[config.runtime]
    changed = ", ".join(f"{name} {value}" for name, value in settings.differences().items())
    return f"{_RUNTIME_NAMES[config.runtime]}, {changed} (never more threads than cores)"


def _accuracy(manifest: BundleManifest, config: BundleConfig) -> str:
    if not manifest.accuracy:
        return "## Accuracy\n\nNot measured for this bundle."
    names = _MODEL_NAMES | {"student_onnx": f"this file ({_RUNTIME_NAMES[config.runtime]})"}
    rows = [(names.get(name, name), f"{value:.4f}") for name, value in manifest.accuracy.items()]
    seed = "" if manifest.lineage.seed is None else f", seed {manifest.lineage.seed}"
    measured, of, each = _MEASURED[config.problem_type]
    text = (
        f"## Accuracy\n\n{of} on the full test split (one training run{seed}: "
        "the spread over seeds is not shown here).\n\n" + _table(("model", measured), rows)
    )
    if manifest.accuracy_per_class:
        per_class = [
            (_code(name), f"{manifest.accuracy_per_class[name]:.4f}")
            for name in config.label_names
            if name in manifest.accuracy_per_class
        ]
        text += f"\n\nBy {each}, of this file:\n\n" + _table((each, measured), per_class)
    return text


def _why_not(config: BundleConfig) -> str:
    if config.why_not is None:
        return ""
    shown = _UNITS[config.modality][2]
    return (
        "## Why not another class?\n\n"
        f"`--why-not` also shows, for each other class, the {shown} that speak for it most and "
        "what the predictor says from those alone. `why_not.onnx` answers that: it takes the class "
        "that it is asked about as one more input, reads the rationale for it and nothing else, "
        "and is opened only when asked. The answer is that of `model.onnx`, asked or not. These "
        f"are the best {shown} for a class that the selector finds, to this predictor: no reason "
        "that a person would give, and no measure of how near the answer was to another."
    )


def _gates(manifest: BundleManifest) -> str:
    if not manifest.gates:
        return "## Gates\n\nNo gate was set for this bundle."
    rows = [
        (
            gate.name,
            gate.goal,
            gate.detail or ("-" if gate.value is None else f"{gate.value:.6g}"),
            "passed" if gate.passed else "**failed**",
        )
        for gate in manifest.gates
    ]
    return "## Gates\n\nWhat had to hold before this bundle was written.\n\n" + _table(
        ("gate", "goal", "found", "result"), rows
    )


def _calibration(config: BundleConfig) -> str:
    found = config.calibration
    if config.problem_type == "regression":
        return "A value comes without a measure of how sure it is, and none is withheld."
    several = config.problem_type == "multi_label_classification"
    values = "sigmoid values, each label's its own," if several else "softmax values"
    if found is None:
        return f"Probabilities are {values} and are not calibrated."
    text = (
        f"Probabilities are {values} at temperature {found.temperature:.3f}, fitted on "
        f"{found.examples} examples of the development split; `reports/calibration.json` says how "
        "far they are from what comes true on the test split."
    )
    low = []
    if found.confidence_threshold is not None:
        sure = "the surety of any label, max(p, 1 - p)," if several else "the probability"
        low.append(f"{sure} is below {found.confidence_threshold:.4g}")
    if found.margin_threshold is not None:
        low.append(f"the margin is below {found.margin_threshold:.4g}")
    if not low:
        return text + " No answer is withheld."
    return text + f" The answer is withheld (`abstain`) where {' or '.join(low)}."


def _engines(engines: Sequence[StoredEngine]) -> str:
    if not engines:
        return ""
    rows = [
        (
            _code(engine.path.name),
            f"SM {engine.record.compute_capability}",
            f"{engine.record.recipe.backend} {engine.record.backend_version}",
            f"{engine.record.size_bytes / 1e6:.1f}",
            counted(engine.record.products),
            *(getattr(engine.record.checks, name) for name in ("parity", "accuracy", "latency")),
        )
        for engine in engines
    ]
    columns = ("engine", "GPU", "for", "MB", "products", "parity", "accuracy", "latency")
    return (
        "## Engines\n\nBuilt from `model.onnx` by `engines/recipe.json`, each for one GPU and "
        "one TensorRT. The gates above are those of `model.onnx`; of the engines themselves the "
        "last three columns say what was run on a GPU. Elsewhere `rekd-edge engine .` builds "
        "another.\n\n" + _table(columns, rows)
    )


def _use_and_limits(config: BundleConfig) -> str:
    what, unit, shown = _UNITS[config.modality]
    source = f"{what}s like those of the data named above"
    beyond = (
        f"Text beyond {config.max_length} tokens is not read (the answer says so)."
        if config.modality == "text"
        else "Only the central square of an image is read."
    )
    return (
        "## Intended use and limits\n\n"
        f"For {source}, on a device without a network, where an answer must come with its "
        "evidence and a person can look at both.\n\n"
        f"- The predictor receives the kept {unit} and their positions and nothing else, so "
        f"unselected content cannot change an answer once the rationale is chosen. The choice "
        f"itself is made by the selector, which reads everything.\n"
        f"- That the answer was read from these {shown} does not make them the reason a person "
        "would give, nor does it make the answer right.\n"
        f"- {_calibration(config)}\n"
        f"- {_ALWAYS[config.problem_type]}\n"
        f"- {beyond}\n"
        "- `margin` is the gap between the last kept and the best dropped score. Near 0, "
        "another machine or runtime may round to another rationale.\n"
        "- Biases of the training data and of the pretrained weights carry over. Do not use it "
        "alone for decisions about people."
    )


def _contents(config: BundleConfig, reports: Sequence[str]) -> str:
    names = ", ".join(f"`reports/{name}.json`" for name in reports) or "none"
    inputs = ", ".join(f"`{tensor.name}` {tensor.dtype}" for tensor in config.inputs)
    outputs = ", ".join(f"`{tensor.name}` {tensor.dtype}" for tensor in config.outputs)
    return (
        f"## Files\n\n`model.onnx` takes {inputs} and answers {outputs}. "
        "`recipe.resolved.yaml` is what was trained, `manifest.json` the sha256 of every file. "
        f"Measurements: {names}."
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
