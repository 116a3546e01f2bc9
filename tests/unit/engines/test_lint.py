"""What is found in a graph before TensorRT sees it: the node, the reason, the change."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from rekd_edge.convert.graph import GraphError
from rekd_edge.convert.pixels import cast_pixels_first
from rekd_edge.engines.lint import Finding, lint, require_buildable
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.errors import BackendError

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def graph(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


def recipe(**largest: tuple[int, ...]) -> BuildRecipe:
    profiles = {name: Profile(min=(1,) * len(m), opt=m, max=m) for name, m in largest.items()}
    return BuildRecipe(
        backend="tensorrt-rtx",
        compute_capabilities=(86,),
        precision="fp32",
        onnx_sha256="0" * 64,
        profiles=profiles,
    )


def only(model: onnx.ModelProto, **largest: tuple[int, ...]) -> Finding:
    (finding,) = lint(model, recipe(**largest))
    return finding


FIFTH = """g (float[b, n] x) => (float[b, s] y)
<int64 five = {5}, int64 four = {4}, int64[1] one = {-1}> {
    shape = Shape <start = 1, end = 2> (x)
    more = Add (shape, four)
    k = Div (more, five)
    y, index = TopK <axis = 1> (x, k)
}"""


def test_top_k_ends_at_3840_for_the_largest_shape() -> None:
    assert lint(graph(FIFTH), recipe(x=(8, 5 * 3840))) == ()
    finding = only(graph(FIFTH), x=(8, 5 * 3840 + 1))
    assert (finding.node, finding.operator) == ("node_y", "TopK")
    assert "K is up to 3841" in finding.reason
    assert "engine.tokens.max" in finding.change
    fixed = """g (float[b, n] x) => (float[b, s] y) <int64[1] k = {4000}> {
        y, index = TopK <axis = 1> (x, k) }"""
    assert "K is up to 4000" in only(graph(fixed), x=(1, 5000)).reason


def test_a_k_that_depends_on_content_is_found() -> None:
    text = """g (float[b, n] x, int64[1] wanted) => (float[b, s] y) {
        y, index = TopK <axis = 1> (x, wanted) }"""
    finding = only(graph(text), x=(1, 8), wanted=(1,))
    assert "the content of wanted" in finding.reason


@pytest.mark.parametrize(
    ("text", "reason", "change"),
    [
        (
            "g (float[n] x) => (uint8[n] y) { y, scale, point = DynamicQuantizeLinear (x) }",
            "no such operator",
            "int8-static",
        ),
        (
            """g (float[n] x, int64[n] i, float[n] u) => (float[n] y) {
            y = ScatterElements <axis = 0, reduction = "add"> (x, i, u) }""",
            "reduction add",
            "threshold",
        ),
        ("g (float[n] x) => (double[n] y) { y = Cast <to = 11> (x) }", "double", "fp32"),
        (
            "g (uint8[n] x) => (uint8[n] y) { y = Identity (x) }",
            "8-bit input x",
            "cast it first",
        ),
        (
            """g (float[n] x) => (float[2] y)
            <int32[2] bias = {1, 2}, float scale = {0.5}> {
            y = DequantizeLinear (bias, scale) }""",
            "int32 bias",
            "QuantizeBias: false",
        ),
        (
            """g (float[n] x) => (int8[n] y) <float scale = {0.5}, int8 point = {3}> {
            y = QuantizeLinear (x, scale, point) }""",
            "zero point other than 0",
            "symmetrically",
        ),
        (
            """g (float[n] x) => (uint8[n] y) <float scale = {0.5}, uint8 point = {0}> {
            y = QuantizeLinear (x, scale, point) }""",
            "uint8",
            "int8",
        ),
    ],
)
def test_each_finding_names_node_reason_and_change(text: str, reason: str, change: str) -> None:
    finding = only(graph(text), x=(4,), i=(4,), u=(4,))
    assert finding.node == "node_y"
    assert reason in finding.reason
    assert change in finding.change


def test_every_finding_is_told_at_once() -> None:
    text = """g (uint8[n] x) => (double[n] y) { z = Identity (x) y = Cast <to = 11> (z) }"""
    with pytest.raises(BackendError) as found:
        require_buildable(graph(text), recipe(x=(4,)))
    assert found.value.exit_code == 4
    first, second = found.value.message.splitlines()[1:]
    assert first.startswith("  node_z (Identity): reads the 8-bit input x")
    assert second.startswith("  node_y (Cast): TensorRT has no type double; ")


def test_pixels_that_are_computed_with_as_bytes_are_refused() -> None:
    text = "g (uint8[n] x) => (float[n] y) { z = Add (x, x) y = Cast <to = 1> (z) }"
    with pytest.raises(GraphError, match=r"node_z \(Add\) computes with the bytes of x"):
        cast_pixels_first(graph(text))
    assert not cast_pixels_first(graph(FIFTH))


def test_casts_of_two_types_are_kept_behind_one_of_floats() -> None:
    text = """g (uint8[n] x) => (float[n] y, float16[n] z) {
        y = Cast <to = 1> (x)
        moved = Identity (x)
        z = Cast <to = 10> (moved)
    }"""
    model = graph(text)
    model.graph.node[0].output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Identity", ["inner"], ["y"], name="last"))
    assert cast_pixels_first(model)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Identity", "Cast", "Identity"]
    assert lint(model, recipe(x=(4,))) == ()


@pytest.mark.parametrize(("kind", "refused"), [("int64", True), ("int32", True), ("float", False)])
def test_a_running_sum_of_integers_is_refused_by_early_versions_of_full_tensorrt(
    kind: str, refused: bool
) -> None:
    model = graph(
        f"""g ({kind}[b, n] x) => ({kind}[b, n] y) <int64 axis = {{1}}> {{
        same = Identity (x)
        y = CumSum (same, axis) }}"""
    )
    rtx = recipe(x=(4, 8))
    full = rtx.model_copy(update={"backend": "tensorrt", "compute_capabilities": ()})
    found = lint(model, full, "10.3.0.30")
    assert [one.node for one in found] == ["node_y"] * refused
    if refused:
        assert f"a running sum of {kind}; TensorRT 10.3.0.30" in found[0].reason
        assert "TensorRT 10.8 or later" in found[0].change
        with pytest.raises(BackendError, match=r"node_y \(CumSum\): a running sum"):
            require_buildable(model, full, "10.7.0")
    for made, version in ((full, "10.8.0.43"), (full, "11.1.0"), (full, None), (rtx, "1.7.1.116")):
        assert lint(model, made, version) == ()
