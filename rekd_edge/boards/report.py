"""The report of ``rekd_bench.py`` as a board sent it: nothing of it is used before it has passed
through this schema, and what it says of itself must be what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rekd_edge.boards.openssh import printable
from rekd_edge.types import ProblemType

Text = Annotated[str, Field(max_length=4000), AfterValidator(printable)]
"""Shown to people, so without anything that could steer a terminal."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(le=1, allow_inf_nan=False)]
Counts = Annotated[dict[Text, Count], Field(max_length=4000)]
Numbers = Annotated[dict[Text, Number], Field(max_length=4000)]
Median = Annotated[list[Number], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Request(_Part):
    schema_version: Literal[1]
    scenario: Text
    mode: Text
    scope: Text
    min_duration_s: Number | None
    min_query_count: Count | None
    samples_per_query: Count
    batch: Count
    warmup_count: Count | None
    threads: Count | None
    provider: Text | None
    idle_gap_ms: Number
    cold_starts: Count | None
    official: bool
    quick: bool
    target_latency_ms: Number | None
    seed: int
    loadgen: bool


class _Machine(BaseModel):
    """The facts, and versions of packages by name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Text] = Field(init=False)  # pyright: ignore

    cpu: Text
    board: Text | None
    architecture: Text
    system: Text
    python: Text
    runtime_version: Text
    cores_online: Count | None
    cores_available: Count
    cpu_quota: Number | None
    governor: Text | None
    memory_bytes: Count | None
    load_average_1m: Number | None


class _Clock(_Part):
    before: Number | None
    after: Number | None
    min: Number | None
    max: Number | None
    source: Text | None
    reason: Text | None

    @model_validator(mode="after")
    def _whole(self) -> _Clock:
        if len({value is None for value in (self.before, self.after, self.min, self.max)}) > 1:
            raise ValueError("a part of the clock's values is missing")
        return self


class _Counters(_Part):
    before: Counts
    after: Counts


class _Temperatures(_Part):
    before: Numbers
    after: Numbers


class _Load(_Part):
    before: Number | None
    after: Number | None


class _Energy(_Part):
    source: Text | None
    reason: Text | None
    energy_j: Number = 0.0
    mean_power_w: Number | None = None
    energy_per_query_j: Number | None = None
    counted: list[Text] = []
    zones_j: Numbers = {}
    poll_count: Count = 0

    @model_validator(mode="after")
    def _whole(self) -> _Energy:
        if self.source is not None and self.model_fields_set != type(self).model_fields.keys():
            raise ValueError("a part of the energy is missing")
        if self.mean_power_w is None and self.energy_per_query_j is not None:
            raise ValueError("a part of the energy is missing: mean_power_w")
        return self


class _State(_Part):
    clock_mhz: _Clock
    throttling: _Counters
    temperatures_c: _Temperatures
    cooling: _Counters
    load_average_1m: _Load
    other_work_cores: Number | None
    stolen_share: Number | None
    waiting_share: Number | None
    energy: _Energy


class _ColdStart(_Part):
    time_to_first_answer_ns: list[Count] = Field(min_length=1)
    import_ns: list[Count]
    load_ns: list[Count]
    first_query_ns: list[Count]
    peak_rss_bytes: list[Count | None]
    rss_before_model_bytes: list[Count | None]


class _Quality(_Part):
    example_count: Count
    labelled_count: Count
    problem_type: ProblemType = "single_label_classification"
    label_names: list[str]
    accuracy: Score | None
    accuracy_of_answered: Score | None
    abstained_count: Count
    coverage: Share
    reason: Text | None
    predicted: list[Count] | list[list[Count]] | list[list[Number]]
    abstained: list[bool]
    margins: list[Number | None]
    digests: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]


class _Stability(_Part):
    held_still: bool
    reasons: list[Text]
    relative_to_the_same_query: bool
    window_medians: list[Median]
    run_median: Median


class BoardReport(_Part):
    """Every field of the program's report."""

    schema_version: Literal[1]
    report: Literal["load-test"]
    scenario: Literal["SingleStream", "MultiStream", "Offline"]
    mode: Literal["PerformanceOnly", "AccuracyOnly"]
    scope: Literal["compute", "end_to_end"]
    scope_in_words: Text
    driver: Literal["own"]
    target_latency_percentile: Count | None
    result_validity: Literal["VALID", "INVALID"]
    result_invalid_reason: Text
    result_min_duration_met: bool | None
    result_min_queries_met: bool | None
    result_query_count: Count | None
    result_perf_constraints_met: bool = True
    early_stopping_met: bool | None
    early_stopping_latency_ns: Count | None = None
    early_stopping_99_percentile_latency_ns: Count | None = None
    result_samples_per_second: Number = 0.0
    result_sample_count: Count = 0
    result_duration_ns: Count = 0
    result_min_latency_ns: Count = 0
    result_max_latency_ns: Count = 0
    result_mean_latency_ns: Count = 0
    result_50_percentile_latency_ns: Count = 0
    result_90_percentile_latency_ns: Count = 0
    result_95_percentile_latency_ns: Count = 0
    result_97_percentile_latency_ns: Count = 0
    result_99_percentile_latency_ns: Count = 0
    result_99_9_percentile_latency_ns: Count = Field(
        default=0, alias="result_99.9_percentile_latency_ns"
    )
    stability: _Stability | None = None
    quality: _Quality | None
    loadgen: None
    threads: Count
    batch: Count
    samples_per_query: Count
    idle_gap_ms: Number
    runtime: Literal["onnxruntime", "openvino"]
    provider: Text
    request: _Request
    name: Text | None
    model_sha256: Sha256
    size_bytes: Count
    manifest_sha256: Sha256
    inputs: Text
    inputs_sha256: Sha256
    input_count: Count
    cold_start: _ColdStart | None
    peak_rss_bytes: Count | None
    measuring_peak_rss_bytes: Count | None
    machine: _Machine
    state: _State
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    samples_ns: list[Count]
    sample_examples: list[Count]

    @model_validator(mode="after")
    def _complete(self) -> BoardReport:
        if (self.mode == "AccuracyOnly") != (self.quality is not None):
            raise ValueError(f"{self.mode} and its quality do not agree")
        if self.quality is not None:
            return self
        due = {name for name in type(self).model_fields if name.endswith("_latency_ns")}
        due |= {"result_sample_count", "result_duration_ns", "stability"}
        if self.scenario == "Offline":
            due = {name for name in due if not name.startswith("early_stopping")}
            due.add("result_samples_per_second")
        missing = sorted(due - self.model_fields_set)
        if missing or not self.samples_ns:
            raise ValueError(f"no latencies: {', '.join(missing) or 'samples_ns'}")
        if len(self.sample_examples) != len(self.samples_ns):
            raise ValueError("sample_examples are not as many as samples_ns")
        return self


def checked_report(
    content: bytes, promised: Mapping[str, Any], asked: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report as plain values, with the keys that the program writes. ``promised`` are fields
    that are known before, and ``asked`` is the request, whose None stand for defaults. Raises
    ValueError in words."""
    try:
        report = BoardReport.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:4])
        raise ValueError(f"{where or 'document'}: {first['msg']}") from error
    document = report.model_dump(by_alias=True, exclude_unset=True)
    found = document | {f"request.{key}": value for key, value in document["request"].items()}
    given = {f"request.{key}": value for key, value in (asked or {}).items() if value is not None}
    for key, value in (*promised.items(), *given.items()):
        if found.get(key) != value:
            raise ValueError(f"{key} is {found.get(key)!r}, and was to be {value!r}")
    return document
