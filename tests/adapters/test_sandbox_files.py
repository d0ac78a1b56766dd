"""What is refused before onnxruntime sees it, by the real sandbox."""

import copy
import os
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from gateway.adapters.onnx import describe
from gateway.adapters.sandbox import anatomy
from gateway.adapters.sandbox.anatomy import MAX_BYTES
from gateway.adapters.sandbox.measuring import Memory
from gateway.adapters.sandbox.static_checks import form
from gateway.adapters.sandbox.subject import Subject
from gateway.adapters.sandbox.wire import Errand, name_fault
from gateway.core.inspections import is_acceptable
from gateway.core.reviews import REQUIRED, Check, Outcome
from tests import onnx_models as models
from tests.adapters.sandbox_parts import Sandbox, failed_by, failures, holding, order_of

WEIGHTS = b"\x00\x00\x80\x3f" * 4


def test_a_good_version_passes_every_check(sandbox: Sandbox, tmp_path: Path) -> None:
    """And its signature is the one that workers will hold it to."""
    report = sandbox.inspect(holding(tmp_path, models.linear(2.0)))
    assert failures(report) == {}
    assert is_acceptable(report.checks)
    assert report.signature == describe(str(tmp_path / "model.onnx"))
    assert list(report.checks) == list(Check)
    skipped = {check for check, one in report.checks.items() if one.outcome is Outcome.SKIPPED}
    assert skipped == {Check.GOLDEN, Check.SIGNATURE, Check.AGREEMENT}
    assert (report.operators, report.opsets) == ({"ai.onnx.Gemm": 1}, {"ai.onnx": 17})
    assert (report.parameters, report.ir_version) == (5, 8)
    assert [cost.rows for cost in report.costs] == [1, 8, 32, 128]
    assert report.size == (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "a/../../weights", "", "other"])
def test_weights_outside_the_version_are_refused(
    sandbox: Sandbox, tmp_path: Path, location: str
) -> None:
    """M1 By our own check, before onnxruntime looks for them."""
    report = sandbox.inspect(holding(tmp_path, models.external(location)))
    assert failed_by(report) == [Check.EXTERNAL_DATA]
    assert not is_acceptable(report.checks)
    assert "passwd" not in str(failures(report))


@pytest.mark.parametrize(
    ("make", "row"), [(os.symlink, "M2"), (os.link, "M3")], ids=["symlink", "hard link"]
)
def test_weights_that_are_linked_are_refused(
    sandbox: Sandbox, tmp_path: Path, make: object, row: str
) -> None:
    """M2 M3 A link of either kind may lead to what was never copied."""
    assert callable(make)
    (tmp_path / "outside").write_bytes(WEIGHTS)
    folder = holding(tmp_path / "version", models.external("weights"))
    make(tmp_path / "outside", folder / "weights")
    report = sandbox.inspect(folder)
    assert failed_by(report) == [Check.FILES], row


def test_weights_beside_the_model_are_taken(sandbox: Sandbox, tmp_path: Path) -> None:
    """M4 They are found by the model's path, in whatever folder the process works."""
    (tmp_path / "weights").write_bytes(WEIGHTS)
    report = sandbox.inspect(holding(tmp_path, models.external("weights")))
    assert failures(report) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("length", "17"), ("length", "400"), ("offset", "-4"), ("offset", "4"), ("offset", "x"),
     ("basepath", "/")],
)  # fmt: skip
def test_weights_beyond_their_file_are_refused(
    sandbox: Sandbox, tmp_path: Path, key: str, value: str
) -> None:
    """M5 By a sentence that names the tensor."""
    model = models.external("weights")
    kept = [one for one in model.graph.initializer[0].external_data if one.key != key]
    told = [(one.key, one.value) for one in kept] + [(key, value)]
    model.graph.initializer[0].ClearField("external_data")
    for name, text in told:
        model.graph.initializer[0].external_data.add(key=name, value=text)
    (tmp_path / "weights").write_bytes(WEIGHTS)
    report = sandbox.inspect(holding(tmp_path, model))
    assert failed_by(report) == [Check.EXTERNAL_DATA]
    assert "Tensor 'w'" in failures(report)["external_data"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html><body>Not found</body></html>", id="HTML"),
        pytest.param(models.linear().SerializeToString()[:-9], id="truncated"),
        pytest.param(bytes(range(256)) * 4, id="random"),
        pytest.param(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os.", id="pickle M18"),
        pytest.param(b"PK\x03\x04" + bytes(60), id="PyTorch archive M18"),
    ],
)
def test_what_is_no_model_is_refused(sandbox: Sandbox, tmp_path: Path, content: bytes) -> None:
    """M6 M18 Whatever it is called; nothing unpacks or runs it."""
    report = sandbox.inspect(holding(tmp_path, content))
    assert failed_by(report) == [Check.FORMAT]
    assert "ONNX" in failures(report)["format"] or "empty" in failures(report)["format"]


def test_a_folder_in_the_place_of_the_model_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M6 As any file that is not regular."""
    order = order_of(holding(tmp_path, models.linear()))
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").mkdir()
    report = sandbox.loop.run(sandbox.inspector.inspect(order))
    assert failed_by(report) == [Check.FILES]


def test_bytes_that_changed_since_they_were_copied_are_refused(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """M16 Even with the same length."""
    order = order_of(holding(tmp_path, models.linear(1.0)))
    holding(tmp_path, models.linear(2.0))
    report = sandbox.loop.run(sandbox.inspector.inspect(order))
    assert failed_by(report) == [Check.FILES]


def test_operators_of_other_domains_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M11 M15 Nothing registers what would run them."""
    report = sandbox.inspect(holding(tmp_path, models.custom_operator()))
    assert failed_by(report) == [Check.DOMAINS]
    assert report.checks[Check.LOADS].outcome is Outcome.SKIPPED


def in_branch(node: onnx.NodeProto) -> ModelProto:
    """A model that would run a node in one branch of a condition."""
    model = models.identity()
    condition = helper.make_tensor("never", TensorProto.BOOL, [], [False])
    model.graph.initializer.append(condition)
    model.graph.node.append(choosing(node))
    return model


def choosing(node: onnx.NodeProto) -> onnx.NodeProto:
    """A condition with a node that makes `z` in one of its branches."""
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    other = helper.make_node("Identity", ["x"], ["z"])
    branches = [helper.make_graph([one], "branch", [], [out]) for one in (node, other)]
    return helper.make_node(
        "If", ["never"], ["z"], then_branch=branches[0], else_branch=branches[1]
    )


def test_operators_are_seen_wherever_they_hide(sandbox: Sandbox, tmp_path: Path) -> None:
    """M15 In a branch, and one that points the host to a file."""
    context = helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft")
    magic = helper.make_node("Magic", ["x"], ["z"], domain="example.custom")
    for index, (node, word) in enumerate([(context, "EPContext"), (magic, "example.custom")]):
        report = sandbox.inspect(holding(tmp_path / str(index), in_branch(node)))
        assert failed_by(report) == [Check.DOMAINS]
        assert word in failures(report)["domains"]


def test_weights_are_seen_wherever_they_hide(sandbox: Sandbox, tmp_path: Path) -> None:
    """M1 In a constant of a branch."""
    hidden = models.external("../secret").graph.initializer[0]
    node = helper.make_node("Constant", [], ["z"], value=hidden)
    report = sandbox.inspect(holding(tmp_path, in_branch(node)))
    assert failed_by(report) == [Check.EXTERNAL_DATA]


@pytest.mark.parametrize(("ir_version", "opset"), [(99, 17), (0, 17), (8, 999), (8, 0)], ids=str)
def test_models_of_another_time_are_refused(
    sandbox: Sandbox, tmp_path: Path, ir_version: int, opset: int
) -> None:
    """M15 By what they say of themselves."""
    model = models.linear()
    model.ir_version = ir_version
    model.opset_import[0].version = opset
    assert failed_by(sandbox.inspect(holding(tmp_path, model))) == [Check.FORMAT]


def test_a_model_does_not_configure_its_host(sandbox: Sandbox, tmp_path: Path) -> None:
    """M12 What it says of sessions is metadata like any other."""
    model = models.linear()
    wish = '{"session_options": {"intra_op_num_threads": 64, "enable_profiling": true}}'
    model.metadata_props.add(key="ort_config", value=wish)
    assert failures(sandbox.inspect(holding(tmp_path, model))) == {}
    environ = Path(f"/proc/{sandbox.inspector.pid}/environ").read_bytes()
    assert b"ORT_LOAD_CONFIG_FROM_MODEL" not in environ
    assert b"ORT_DISABLE_TELEMETRY=1" in environ


@pytest.mark.parametrize(
    "name",
    ["x" * 100_000, "x\r\nSet-Cookie: a", "\x1b[2J", "../../x", "", " x", "é"],
    ids=["long", "lines", "terminal", "path", "empty", "space", "letters"],
)
def test_improper_names_are_refused(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    """M13 They would stand in logs, attributes and pages."""
    model = models.identity()
    model.graph.input[0].name = name
    model.graph.node[0].input[0] = name
    report = sandbox.inspect(holding(tmp_path, model))
    assert failed_by(report) == [Check.NAMES]
    assert failures(report)["names"].isprintable()


def test_too_many_and_too_similar_inputs_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M13 A hundred thousand, and two that differ by case."""
    many, alike = models.identity(), models.two_inputs()
    for number in range(100_000):
        one = many.graph.input.add()
        one.CopyFrom(many.graph.input[0])
        one.name = f"i{number}"
    alike.graph.input[1].name = alike.graph.node[0].input[1] = "X"
    for index, model in enumerate((many, alike)):
        report = sandbox.inspect(holding(tmp_path / str(index), model))
        assert failed_by(report) == [Check.NAMES]


@pytest.mark.parametrize("name", ["input:0", "/layer/Relu_output_0", "sepal length (cm)", "x.1"])
def test_names_that_exporters_give_are_proper(name: str) -> None:
    """They hold colons, slashes, brackets and spaces."""
    assert name_fault([name]) is None


def wrapped(field: int, content: bytes) -> bytes:
    """A field of protobuf that holds a message."""
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("depth", [40, 5_000])
def test_deep_nesting_is_refused(sandbox: Sandbox, tmp_path: Path, depth: int) -> None:
    """M14 Of graphs in attributes of nodes of graphs; the parser gives up at thirty-three."""
    node = b""
    for _ in range(depth):
        node = wrapped(5, wrapped(6, wrapped(1, node)))
    content = models.linear().SerializeToString() + wrapped(7, wrapped(1, node))
    assert failed_by(sandbox.inspect(holding(tmp_path, content))) == [Check.FORMAT]


def test_some_nesting_is_taken(sandbox: Sandbox, tmp_path: Path) -> None:
    """Conditions in conditions are what some models are made of."""
    node = helper.make_node("Identity", ["x"], ["z"])
    for _ in range(20):
        node = choosing(node)
    assert failures(sandbox.inspect(holding(tmp_path, in_branch(node)))) == {}


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """M14 Those in branches count too."""
    monkeypatch.setattr(anatomy, "MAX_NODES", 100)
    model = in_branch(helper.make_node("Identity", ["x"], ["z"]))
    node = helper.make_node("Identity", ["x"], ["again"])
    inside = model.graph.node[-1].attribute[0].g
    inside.node.extend([node] * 96)
    anatomy.Model(model.SerializeToString())
    inside.node.append(node)
    with pytest.raises(anatomy.Fault, match="more than 100 nodes"):
        anatomy.Model(model.SerializeToString())


def test_a_file_beyond_what_protobuf_holds_is_refused(tmp_path: Path) -> None:
    """M14 By its size; it is not even read."""
    folder = holding(tmp_path, models.linear())
    order = order_of(folder)
    os.truncate(folder / "model.onnx", MAX_BYTES + 1)
    subject = Subject(Errand(order, short=False, time_s=1, run_s=1, memory_mb=1), Memory())
    result = form(subject)
    assert (result.outcome, subject.model) == (Outcome.FAILED, None)


def with_functions(calls: int, levels: int, *, around: bool = False) -> ModelProto:
    """Functions that each call the next so many times, the last one the first if `around`."""
    model = models.identity()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(levels):
        last = level == levels - 1
        target = ("f0" if around else "Identity") if last else f"f{level + 1}"
        domain = "" if last and not around else "local"
        names = ["x", *(f"v{call}" for call in range(calls - 1)), "y"]
        nodes = [
            helper.make_node(target, [names[call]], [names[call + 1]], domain=domain)
            for call in range(calls)
        ]
        made = helper.make_function("local", f"f{level}", ["x"], ["y"], nodes, opsets)
        model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "f0", "local"
    return model


def test_functions_that_never_end_or_explode_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M14 Written out, twenty that each call the next ten times would be 10^20 nodes."""
    for index, model in enumerate([with_functions(1, 3, around=True), with_functions(10, 20)]):
        report = sandbox.inspect(holding(tmp_path / str(index), model))
        assert failed_by(report) == [Check.FORMAT]
        assert "functions" in failures(report)["format"]


def test_functions_of_a_model_are_taken(sandbox: Sandbox, tmp_path: Path) -> None:
    """Theirs may be any domain; what they are made of may not."""
    good = with_functions(2, 2)
    assert failures(sandbox.inspect(holding(tmp_path / "good", good))) == {}
    bad = copy.deepcopy(good)
    bad.functions[1].node[0].domain = "example.custom"
    assert Check.DOMAINS in failed_by(sandbox.inspect(holding(tmp_path / "bad", bad)))


def test_old_holes_of_the_parser_are_closed() -> None:
    """M25 It is recent, and only its classes and tables are used: nothing that opens a file."""
    assert tuple(int(part) for part in onnx.__version__.split(".")[:2]) >= (1, 21)
    source = Path("gateway/adapters/sandbox/anatomy.py").read_text(encoding="utf-8")
    for word in ("hub", "onnx.load", "external_data_helper", "checker", "setattr"):
        assert word not in source


def test_only_what_is_required_keeps_a_version_out(sandbox: Sandbox, tmp_path: Path) -> None:
    """In short inspections nothing else is looked at, but that it runs."""
    report = sandbox.inspect(holding(tmp_path, models.dice()), limits={"mode": "short"})
    passed = {check for check, one in report.checks.items() if one.outcome is Outcome.PASSED}
    assert passed == REQUIRED | {Check.RUNS}
    assert failures(report) == {}
