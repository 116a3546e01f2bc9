"""The recipe: everything that decides what is trained, as data.

A recipe holds no code and no absolute behaviour outside this schema; unknown keys are errors.
This package imports neither torch nor transformers (a test proves it in a subprocess), so
that recipes can be checked on any machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rekd_edge.recipe.form import (
    PRESETS,
    DevSelection,
    Evaluation,
    KdSchedule,
    Masking,
    ObjectiveForm,
    ObjectiveName,
    RationaleKd,
    Selection,
    TauUpdates,
    TeacherPrediction,
)
from rekd_edge.recipe.methods import METHODS, MethodName
from rekd_edge.types import ProblemType, RationaleUnit

SCHEMA_VERSION = 1

Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """Base of all recipe sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LimitSpec(Spec):
    """Caps on the number of examples, drawn per class with the split's seed; null keeps all."""

    train: int | None = Field(default=None, ge=2)
    dev: int | None = Field(default=None, ge=2)
    test: int | None = Field(default=None, ge=2)


class SplitSpec(Spec):
    """Stratified shares cut from the source's training data."""

    dev: Share = 0.1
    """Share of the training data held out for model selection."""
    test: Share = 0.2
    """Share held out for testing; ignored where the source brings its own test split."""
    seed: int = 0
    """Seed of the split. It is apart from the training seed: all seeds see the same split."""


class AugmentSpec(Spec):
    """Training-time image augmentation; never applied to dev or test data."""

    crop_padding: int = Field(default=0, ge=0)
    """Pixels of zero padding, at the source resolution, before a random crop; 0 turns it off."""
    flip: bool = False
    """Random horizontal flip."""
    where: Literal["auto", "loader", "device"] = "auto"
    """Where images of one size are cropped, flipped, resized and normalised, in training and
    evaluation: one by one by the loader, or batch by batch on the device, which then holds all of
    them. The pixels are the same to the last bit. `auto`: on a CUDA device where they
    fit, there and, if they are files, decoded on the host."""


class DataSpec(Spec):
    """Where examples come from and how they become tensors."""

    source: str
    """A bundled set (`rekd-edge data list`), or one of `image-folder`, `csv`, `jsonl`,
    `parquet`, `eraser`, `huggingface`; `random` is noise of the usual shapes, for measuring speed
    where no data set is at hand."""
    path: str | None = None
    """File or folder, relative to the recipe, for own data."""
    test_path: str | None = None
    """A separate test file or folder; without it the test split is cut from `path`."""
    name: str | None = None
    """Data set name on the Hugging Face hub."""
    config_name: str | None = None
    """Configuration of a Hugging Face data set."""
    text_column: str = "text"
    image_column: str = "image"
    label_column: str | tuple[str, ...] = "label"
    """The column of labels: a class; of a multi-label classification a list of names, or a string
    with `|` between them; of a regression a number. Several columns: of 0 and 1 each, or a number
    each; the columns then name labels or targets."""
    labels: tuple[str, ...] | None = None
    """Class or label names in order; null takes the sorted names found in the data."""
    split: SplitSpec = SplitSpec()
    limit: LimitSpec = LimitSpec()
    max_length: int = Field(default=64, ge=4, le=512)
    """Text: tokens kept of each example, prefix tokens included."""
    image_size: int = Field(default=112, ge=16)
    """Images: side in pixels after resizing."""
    normalisation: Literal["backbone", "imagenet"] = "backbone"
    """Images: mean and standard deviation that the backbone was trained with, or ImageNet's
    whatever the backbone (published)."""
    augment: AugmentSpec = AugmentSpec()
    workers: int | None = Field(default=None, ge=0)
    """Processes that prepare training batches where the device does not; null: none on a CPU, and
    for images on a CUDA device as many as the machine has cores, at most 8."""

    @property
    def label_columns(self) -> tuple[str, ...]:
        column = self.label_column
        return (column,) if isinstance(column, str) else column


class TransferSpec(Spec):
    """More examples for the student, without labels: the teacher answers for them. Of a source
    with a test split of its own that split is never used, and neither is an example that is also
    in the recipe's data."""

    source: str
    """A bundled set, `image-folder`, `csv`, `jsonl` or `parquet`; labels are not used."""
    path: str | None = None
    """File or folder, relative to the recipe, for own data."""
    text_column: str = "text"
    image_column: str = "image"
    limit: int | None = Field(default=None, ge=1)
    """At most so many of them, drawn with `data.split.seed`; null takes all."""


class BackboneSpec(Spec):
    """An encoder and where its weights come from."""

    weights: tuple[str, ...] = Field(min_length=1)
    """Sources in order; the first that can be had is used and recorded. Each is
    `package:NAME` (a pinned registry package), `hub:OWNER/NAME` (Hugging Face),
    `timm:NAME` (timm with pretrained weights), `path:FOLDER` (local, safetensors only),
    or `random:NAME` (random initialisation of that architecture, for tests)."""
    depth: int | None = Field(default=None, ge=1)
    """Keep the first `depth` blocks (of a convolutional network: feature levels, each half as fine
    as the one before); null keeps all."""
    patch_size: int | None = Field(default=None, ge=1)
    """Images: side in pixels of the patches that are kept or dropped, for a convolutional network
    of timm. A vision transformer has its own and leaves this null."""
    dropout: Probability = 0.0
    """Inside the encoder, and before the predictor's head where `head_dropout` is null."""
    head_dropout: Probability | None = None
    """Before (selector with `head_width`: inside) the head; null: `dropout` for a predictor, none
    for a selector."""
    head_init: Literal["normal", "xavier"] = "normal"
    """Initial weights of the head: N(0, 0.02), or Xavier-uniform (published)."""
    train_embeddings: bool = True
    """Whether token embeddings (text) or the patch projection (images; the first convolution) are
    trained."""


class SelectorSpec(BackboneSpec):
    """The selector scores every token or patch. It reads the whole input, so its cost decides the
    latency of the deployed model."""

    kind: Literal["blocks", "convolution", "narrow", "shared"] = "blocks"
    """`blocks`: the first `depth` blocks of the backbone. `convolution`: `layers` residual
    convolutions of `width` channels over the backbone's word embeddings, or over the image's
    patches at reduced resolution. `narrow`: the same with transformer blocks of that width.
    `shared`: the predictor's own first `depth` blocks (half the weights to ship)."""
    width: int = Field(default=64, ge=8)
    """`convolution` and `narrow`: channels; a multiple of 32 for `narrow`."""
    layers: int = Field(default=2, ge=0)
    """`convolution` and `narrow`: mixing layers; 0 scores each token by itself."""
    kernel: int = Field(default=5, ge=1)
    """`convolution`: tokens (or patches a side) that one convolution sees; odd."""
    resolution: Ratio = 1.0
    """`blocks` on images: side of the image that the selector sees, as a share of
    `data.image_size`; its scores are resized to the predictor's patches."""

    head_width: int | None = Field(default=None, ge=1)
    """Width of a hidden layer (ReLU) in the head; null: a linear head. Published for text: 256."""


class PredictorSpec(BackboneSpec):
    """The predictor classifies from the rationale alone."""

    pooling: Literal["cls", "mean"] = "mean"
    """`cls` reads the class token; `mean` averages the class token and all kept tokens."""
    final_norm: bool = True
    """Images: whether the encoder's last LayerNorm comes before the head (published: false)."""


class TemperatureSpec(Spec):
    """tau(step) = max(start * exp(-gamma * step), end), gamma = ln(start / end) / total steps
    (arXiv 2601.22531)."""

    start: float = Field(default=5.0, gt=0)
    end: float = Field(default=0.1, gt=0)
    update_every: int = Field(default=100, ge=1)
    """Steps between updates of tau."""

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureSpec:
        if self.end > self.start:
            raise ValueError("temperature.end must not be above temperature.start")
        return self


class RatioScheduleSpec(Spec):
    """A budget that starts large: the share of tokens kept in joint training falls linearly from
    `start` to `rationale_ratio`. Evaluation and export keep `rationale_ratio` throughout."""

    start: Ratio = 1.0
    until: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the joint steps over which it falls."""


class ObjectiveSpec(Spec):
    """L = alpha * [CE + lambda_select * L_sel] + (1 - alpha) * [lambda_rationale * KL_R +
    T^2 * KL_Y] + lambda_contiguity * TV; see rekd_edge/losses.py and docs/deviations.md.

    `name` chooses a preset of the keys that are null; a key that is stated overrides it."""

    name: ObjectiveName = "deploy"
    """`deploy` trains exactly what is exported (exactly k, keys excluded, noiseless rationale
    KD); `paper` is the published formula (Bernoulli Gumbel, zero-masking, batch-mean budget)."""
    method: MethodName = "rekd"
    """What selector and predictor are trained towards: `rekd`, the formula above, or one of the
    methods of docs/methods.md. With a teacher, L = alpha * the method's loss + (1 - alpha) * the
    distillation losses above."""
    selection: Selection | None = None
    """`bernoulli` (paper; methods but `a2r` and `nir`): a hard Gumbel draw a token, softmax
    gradient; `exactly_k` (deploy): the k best of the noised scores. For methods `rnp` and `fr` also
    `hard_kuma` (Bastings et al. 2019): a relaxed draw in [0, 1], and `reinforce` (Lei et al. 2016):
    a draw whose chance is raised where the loss was low."""
    masking: Masking | None = None
    """`zero` (paper): word or patch embeddings are multiplied by the mask, their positions stay and
    are attended to; `exclude` (deploy): dropped tokens are excluded from attention."""
    select_special: bool | None = None
    """Text: whether `[CLS]` and `[SEP]` can be dropped and count (paper: true, deploy: false)."""
    count_padding: bool | None = None
    """Text: whether inputs are padded to `data.max_length` and padding counts in the budget and in
    KL_R (paper: true, deploy: false). It is not attended to either way."""
    rationale_kd: RationaleKd | None = None
    """KL_R over {drop, keep} at T: `noised` (paper): of Gumbel-noised logits, summed over
    positions; `noiseless`: the same sum without noise; `centred` (deploy): without noise, on
    scores minus each example's k-th, mean over tokens, at `rationale_temperature`. The scale of
    the mean and of the sum differ, and `lambda_rationale` with them."""
    teacher_prediction: TeacherPrediction | None = None
    """What the teacher's predictor answers from: `student_mask` (paper's code), `own_rationale`
    (paper's figure, deploy), or the `full_input`. It sees a mask in the way it was trained with."""
    kd_schedule: KdSchedule | None = None
    """T of KL_Y: `tau` of the Gumbel schedule (paper) or the `constant` `kd_temperature`
    (deploy)."""
    tau_updates: TauUpdates | None = None
    """`published` (paper): tau changes at each `update_every`-th step, counted from 1; `capped`
    (deploy): one step later, and at least ten times in a short run."""
    evaluation: Evaluation | None = None
    """How the development split is scored, and a second test accuracy: with `sampled` masks
    (paper) or with the deterministic `top_k` (deploy), both masked as in training."""
    dev_selection: DevSelection | None = None
    """The epoch that is kept: lowest `re_loss` (paper: CE + lambda_select * L_sel, mean over
    batches, 3 decimals, the later of equals; for a plain classifier CE, unrounded), or best
    `accuracy` (deploy; of several labels the micro F1, of a regression R^2)."""
    alpha: Probability = 0.5
    """Weight of the task loss against the distillation losses."""
    alpha_end: Probability | None = None
    """Where alpha ends: it changes linearly over the joint steps. Null keeps it constant."""
    lambda_rationale: float = Field(default=0.5, ge=0)
    lambda_select: float = Field(default=0.0, ge=0)
    """Weight of the budget penalty of `selection: bernoulli`; exactly_k needs none."""
    temperature: TemperatureSpec = TemperatureSpec()
    """tau of the Gumbel draw, of the straight-through surrogate, and of KD where it follows."""
    kd_temperature: float = Field(default=2.0, gt=0)
    """T of KL_Y with `kd_schedule: constant`, and of the predictor's warm-up."""
    rationale_temperature: float = Field(default=1.0, gt=0)
    """T of the keep probabilities compared by `rationale_kd: centred`."""
    selection_noise: float = Field(default=1.0, ge=0)
    """exactly_k: scale of the Gumbel noise added to scores while training, times tau."""
    estimator: Literal["sigmoid", "soft_top_k", "subset_softmax", "perturbed"] = "sigmoid"
    """exactly_k: whose gradient the hard selection carries (tau is its width): a sigmoid around the
    k-th score, the same solved to sum to k, k successive softmaxes, or the mean top-k under
    Gaussian noise; see rekd_edge/selection/estimators.py."""
    estimator_samples: int = Field(default=64, ge=2)
    """Draws of `perturbed` for each example and step."""
    ratio_schedule: RatioScheduleSpec | None = None
    """exactly_k: a budget that falls from large to `rationale_ratio`; null keeps it constant."""
    lambda_contiguity: float = Field(default=0.0, ge=0)
    """exactly_k: weight of the total variation of the keep probabilities between neighbouring
    tokens or patches, so that rationales come in fewer pieces."""
    lambda_sparsity: float = Field(default=10.0, ge=0)
    """Methods: weight of |share kept - rationale_ratio|, where `selection` lets the count float."""
    lambda_coherence: float = Field(default=1.0, ge=0)
    """Methods: weight of the mean |m_i - m_j| of the drawn mask over neighbouring tokens or patches
    (Lei et al. 2016)."""
    lambda_norm: float = Field(default=1.0, ge=0)
    """`n2r`, `mmi_n2r`: weight of -log of the norm."""
    norm_of: Literal["representation", "logits"] = "logits"
    """`n2r`, `mmi_n2r`: norm of the predictor's `representation` (published), or of the `logits`
    that its head makes of it, without bias and less their mean over the classes."""
    norm_ratio: Ratio | None = None
    """`n2r`, `mmi_n2r` with `exactly_k`: share of the tokens that the norm's update keeps, at least
    `rationale_ratio`; null: as many as the answer's (published). On images the gradient of the
    norm pointed at the evidence where half or more were kept, not at a small budget (ADR 36)."""
    lambda_divergence: float = Field(default=1.0, ge=0)
    """`a2r`, `nir`: weight of the Jensen-Shannon divergence of the soft and the hard answer."""
    noise_share: Share = 0.1
    """`nir`: mean share of a text's words that would be replaced if selected."""
    lambda_attack: float = Field(default=1.0, ge=0)
    """`a2i`: weight of the predictor's doubt about the attacker's rationale."""

    @property
    def form(self) -> ObjectiveForm:
        """Every choice, with the preset's where the recipe states none."""
        stated = {key: getattr(self, key) for key in ObjectiveForm.__slots__}
        stated = {key: value for key, value in stated.items() if value is not None}
        preset = PRESETS[self.name]
        if self.method != "rekd":
            preset = replace(preset, selection=METHODS[self.method].selections[0])
        return replace(preset, **stated)


class WarmupSpec(Spec):
    """What happens before joint training starts."""

    predictor_epochs: float = Field(default=0.0, ge=0)
    """Epochs of the predictor on random subsets, of one ratio U(rationale_ratio, 1) a batch."""
    predictor_run: str | None = None
    """A finished run from whose student's warm-up the predictor is taken instead of training it
    anew (its judge); `predictor_epochs` then says what that had. Other keys of the warm-up may
    differ. In a suite with `shared_warmup` rows find theirs by themselves."""
    predictor_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of that, and of a plain classifier, which starts from the same weights; its
    head's differs from `head_learning_rate` by the same factor. null takes `learning_rate`, which
    is then that of joint training alone."""
    selector: Literal[
        "none",
        "mask_gradient",
        "occlusion",
        "value_regression",
        "teacher",
        "teacher_and_own",
        "teacher_gradient",
        "teacher_attribution",
    ] = "none"
    """What the selector learns first. `mask_gradient`: the derivative of the predictor's answer
    with respect to each token's attention weight (one backward pass an example); `occlusion`: the
    drop of that answer when the token is removed (one forward pass a token); `value_regression`:
    Shapley values by regression on the predictor's answers from random subsets (FastSHAP);
    `teacher`: the teacher's rationale; `teacher_gradient`: mask gradients of the teacher's
    predictor; `teacher_attribution`: what explains the teacher, of the explained class where it
    tells classes apart (`teacher.rationale`; of a rationalist its mask gradients);
    `teacher_and_own`: the sum of the teacher's scores and the own predictor's mask gradients, both
    normalised. Without a teacher, as in `task: extract`, the last four mean `mask_gradient`."""
    explain: Literal["label", "prediction"] = "label"
    """Whose evidence attributions look for: that of the training label, or that of the class
    which the predictor itself predicts on the full input."""
    selector_epochs: float = Field(default=0.0, ge=0)
    """Epochs of that; a share such as 0.25 limits the cost of `occlusion`. Where nothing is
    augmented, attributions are computed once and further epochs cost the selector alone."""
    selector_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of that; null takes `learning_rate`. Selectors without pretrained blocks
    (`kind: convolution`, `narrow`) need about ten times that of a backbone."""


class TrainSpec(Spec):
    """One optimisation run (AdamW)."""

    epochs: int = Field(default=3, ge=1)
    classifier_epochs: int | None = Field(default=None, ge=1)
    """Epochs of a plain classifier; null: as many as a predictor gets, warm-up included."""
    batch_size: int = Field(default=32, ge=1)
    bucket_by_length: bool = True
    """Text: batches of like length, in random order; false shuffles freely (published)."""
    learning_rate: float = Field(default=5e-5, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the two linear heads; null takes `learning_rate`."""
    selector_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate of the selector in joint training; null takes `learning_rate`. A selector that
    was warmed up needs little: the straight-through gradient is noisier than the warm-up's. 0
    keeps the warmed-up selector and trains the predictor on its rationales."""
    weight_decay: float = Field(default=0.01, ge=0)
    decay_all: bool = False
    """Whether biases and norms are decayed too (published)."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    lr_warmup_share: Share = 0.06
    """Share of all steps in which the learning rate rises linearly from 0."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    gradient_accumulation: int = Field(default=1, ge=1)
    precision: Literal["no", "auto", "tf32", "bf16", "fp16"] = "no"
    """Mixed precision of matrix products; weights stay float32. `auto`: bf16 where the machine
    multiplies it natively (CUDA from compute capability 8.0, CPUs with AMX or AVX-512's bf16
    products), otherwise none. `no` means float32 throughout; products of a CUDA device that round
    to TF32 are asked for by name."""
    compile: bool | Literal["auto", "graphs"] = "auto"
    """torch.compile of the backbones in training steps (docs/training-speed.md); `graphs` replays
    them as CUDA graphs too where shapes are constant. `auto`: on CUDA devices with a compiler, in
    phases of 5,000 steps or more (making the code takes about a minute). Joint phases of another
    `objective.method` than `rekd` are not compiled."""
    gather: bool | Literal["auto"] = "auto"
    """`masking: exclude`, and what is kept is 0 or 1 (of `rekd`: exactly_k): joint training's
    backward pass through kept tokens alone; the same gradients up to rounding (ADR 29). `auto`: on
    CUDA devices."""
    channels_last: bool | Literal["auto"] = "auto"
    """Convolutional backbones compute with channels last. `auto`: on CUDA devices."""
    warmup: WarmupSpec = WarmupSpec()
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Steps between resumable checkpoints; null: 200 or more, and half a minute or more. One is
    also written at every epoch's end."""
    monitor: bool = True
    """Watch joint training for collapse, interlocking and label leakage at every evaluation of
    the development split (docs/warnings.md). It changes nothing in training."""


class RationalistSpec(Spec):
    """A selector, a predictor, and how they are trained."""

    selector: SelectorSpec
    predictor: PredictorSpec
    train: TrainSpec = TrainSpec()


class ScaffoldSpec(Spec):
    """How `teacher.rationale: scaffold` learns its mixture of attention heads, from a student that
    practises and is thrown away (SMaT, Fernandes et al. 2022; docs/black-box.md)."""

    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which that student's predictor learns the teacher's answers from random subsets."""
    steps: int = Field(default=100, ge=1)
    """Steps of both levels: one of the student, one of the mixture."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Learning rate of the head weights."""
    inner_learning_rate: float = Field(default=0.01, gt=0)
    """Rate of the one step of gradient descent that is differentiated. AdamW makes up for a small
    one; a large one harms the student and tells little of the explanation."""
    beta: float = Field(default=1.0, gt=0)
    """Weight of the explanation loss beside T^2 * KL_Y in that step."""


def _selector_may_miss(schema: dict[str, Any]) -> None:
    schema["required"].remove("selector")
    selector = schema["properties"]["selector"]
    schema["properties"]["selector"] = {"anyOf": [selector, {"type": "null"}]}


class TeacherSpec(RationalistSpec):
    """The teacher: trained first, or loaded from a finished run. A plain black box (`rationale`)
    has no selector: `selector` can be left out, and neither that nor `train.warmup.selector` is
    read; of `objective` only `dev_selection` is."""

    model_config = ConfigDict(json_schema_extra=_selector_may_miss)

    rationale: Literal[
        "rationalist", "attention", "gradient_x_input", "mask_gradient", "scaffold"
    ] = "rationalist"
    """Where the teacher's rationales come from. `rationalist`: its own selector. The others take a
    plain classifier (`predictor`; as in `task: classify`) that answers from the whole input, and
    explain it: `attention` of what is pooled in the last block, mean over heads;
    `gradient_x_input`: gradient of the class margin times embedding; `mask_gradient`: the
    derivative of that margin with respect to each token's attention weight; `scaffold`: a sparse
    mixture of all attention heads, learned so that a student simulates the teacher better.
    Attention needs a transformer."""
    scaffold: ScaffoldSpec = ScaffoldSpec()
    """How the mixture of `rationale: scaffold` is learned."""
    run: str | None = None
    """A finished run folder whose teacher is loaded instead of training one; for a black box one of
    `task: classify`, or one whose teacher is a black box."""
    image_size: int | None = Field(default=None, ge=16)
    """Images: side in pixels of what a teacher trained here sees; null takes `data.image_size`."""
    objective: ObjectiveSpec = ObjectiveSpec(alpha=1.0)

    @property
    def is_black_box(self) -> bool:
        return self.rationale != "rationalist"

    @model_validator(mode="before")
    @classmethod
    def _stand_in_selector(cls, values: Any) -> Any:
        """A black box needs no selector; its predictor's weights stand where one is asked for."""
        if not isinstance(values, dict) or values.get("selector") is not None:
            return values
        predictor = values.get("predictor")
        if values.get("rationale", "rationalist") == "rationalist" or not predictor:
            return values
        weights = predictor.get("weights") if isinstance(predictor, dict) else predictor.weights
        return values if weights is None else {**values, "selector": {"weights": weights}}


class EnsembleSpec(Spec):
    """Two students that answer together, in one file; task `distill` or `extract`."""

    method: Literal["interactive"] = "interactive"
    """`interactive`: the two exchange rationales where they disagree (Dai 2023, algorithm 1)."""
    partner: RationalistSpec
    """The second student: the same data, labels, tokens and objective, another seed, and a
    selector of its own."""


class Recipe(Spec):
    """One experiment: data, teacher, student and objective."""

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    task: Literal["distill", "extract", "classify"] = "distill"
    """`distill`: teacher and student rationalists. `extract`: the student without a teacher.
    `classify`: the student's predictor on all tokens, the black box to beat."""
    modality: Literal["text", "image"]
    problem_type: ProblemType = "single_label_classification"
    """What is answered: one class of several, any number of labels (each with a probability of its
    own), or numbers; losses, scores and measures follow (docs/problem-types.md)."""
    seed: int = Field(default=0, ge=0)
    rationale_ratio: Ratio = 0.2
    """Share of valid tokens kept: k = clamp(ceil(ratio * n_valid), 1, n_valid)."""
    rationale_unit: RationaleUnit = "token"
    """What is kept or dropped as a whole (docs/units.md): a `token` (word piece or patch), a
    `word`, a `sentence`, or a `region` of an image. The budget counts tokens all the same, and is
    never exceeded."""
    region_size: int = Field(default=2, ge=2)
    """`rationale_unit: region`: patches on each side of a square region."""
    data: DataSpec
    transfer: TransferSpec | None = None
    """Task `distill`: unlabelled examples that the student trains on too."""
    teacher: TeacherSpec | None = None
    student: RationalistSpec
    objective: ObjectiveSpec = ObjectiveSpec()
    ensemble: EnsembleSpec | None = None
    """A second student beside `student`; null: it answers alone."""
    class_wise_rationales: bool = False
    """Also train, after the student and without changing it, which tokens would speak for each
    class, and ship that in a file of its own, to be asked: "why not?" (docs/why-not.md)."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.task == "distill" and self.teacher is None:
            raise ValueError("task 'distill' needs a `teacher` section (or use task: extract)")
        return self
