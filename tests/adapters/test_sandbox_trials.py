"""What the real sandbox finds by running a version."""

import json
import platform
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from gateway.adapters.onnx import describe
from gateway.adapters.sandbox.measuring import WORST, apart
from gateway.core.inspections import GoldenRequest, is_acceptable
from gateway.core.reviews import Check, Outcome
from tests import onnx_models as models
from tests.adapters.sandbox_parts import Sandbox, failed_by, failures, holding


def request_of(*values: float) -> dict[str, Any]:
    """One row of four."""
    data = list(values)
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": data}]}


def test_a_folding_bomb_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M7 A few bytes that unfold to 32 GB: not at load, and not in the run."""
    report = sandbox.inspect(holding(tmp_path, models.folding_bomb(2**33)))
    assert not is_acceptable(report.checks)
    assert report.checks[Check.LOADS].outcome is Outcome.PASSED
    assert "memory" in failures(report)["runs"]
    assert report.took_s < 10


def test_a_version_that_is_too_large_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """By the limit of memory, whether parsing or loading meets it."""
    model = models.wide(2_000, layers=2)
    inside = holding(tmp_path / "inside", model)
    weights = model.graph.initializer[2]  # (2000, 2000)
    content = weights.raw_data
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights")
    beside = holding(tmp_path / "beside", model)
    (beside / "weights").write_bytes(content)
    for folder, check in ((inside, "format"), (beside, "loads")):
        report = sandbox.inspect(folder, limits={"memory_mb": 10})
        assert not is_acceptable(report.checks)
        assert "memory" in failures(report)[check]


def test_sizes_that_a_caller_chooses_are_no_fault_of_the_version(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """M8 It runs on small ones; large ones meet the cap of the arena."""
    report = sandbox.inspect(holding(tmp_path, models.swelling()))
    assert report.checks[Check.RUNS].outcome is Outcome.PASSED


def test_a_loop_without_end_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M9 In the time of one run, not in that of the whole inspection."""
    report = sandbox.inspect(holding(tmp_path, models.forever()), limits={"run_s": 0.5})
    assert not is_acceptable(report.checks)
    assert report.checks[Check.RUNS].forced
    assert "longer than 0.5 s" in failures(report)["runs"]
    assert report.checks[Check.FINITE].summary == "It was not reached."


def test_one_gigantic_operator_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    """M10 No wish to stop is heard inside of a kernel; the end of its process is."""
    size = 12_000
    model = models.identity()
    wide = [
        helper.make_tensor("w", TensorProto.INT64, [2], [size, size]),
        helper.make_tensor("none", TensorProto.FLOAT, [], [0.0]),
    ]
    model.graph.initializer.extend(wide)
    nodes = [
        helper.make_node("Expand", ["seed", "w"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "matrix"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "none"], ["zero"]),
        helper.make_node("ReduceSum", ["x"], ["seed"], keepdims=0),
    ]
    order = [nodes[4], *nodes[:4]]
    model.graph.ClearField("node")
    model.graph.node.extend([*order, helper.make_node("Add", ["x", "zero"], ["y"])])
    limits = {"run_s": 0.5, "memory_mb": 4096}
    report = sandbox.inspect(holding(tmp_path, model), limits=limits)
    assert report.checks[Check.RUNS].forced
    assert not is_acceptable(report.checks)


def crashing() -> ModelProto:
    """Divides the lowest integer by what it is given less 2; by -1 there is no result.

    The processors for which onnxruntime is mostly built raise a signal then.
    """
    model = models.identity("INT64")
    for name, value in (("lowest", -(2**63)), ("two", 2)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    model.graph.ClearField("node")
    model.graph.node.append(helper.make_node("Sub", ["x", "two"], ["less"]))
    model.graph.node.append(helper.make_node("Div", ["lowest", "less"], ["y"]))
    return model


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Others give a result.")
def test_a_crash_is_a_failed_check(sandbox: Sandbox, tmp_path: Path) -> None:
    """And the next version is inspected as if nothing had been."""
    report = sandbox.inspect(holding(tmp_path / "bad", crashing()))
    assert report.checks[Check.RUNS].forced
    assert not is_acceptable(report.checks)
    assert signal.SIGFPE.name in failures(report)["runs"]
    assert failures(sandbox.inspect(holding(tmp_path / "good", models.linear()))) == {}


def test_a_version_that_refuses_ordinary_input_does_not_run(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """A clean failure: the gates decide; here of a table of three that is asked for the ninth."""
    model = models.failing()
    model.graph.initializer[0].dims[0] = 1
    model.graph.initializer[0].raw_data = bytes(8)
    report = sandbox.inspect(holding(tmp_path, model))
    assert failed_by(report) == [Check.RUNS]
    assert is_acceptable(report.checks)
    assert "ones" in failures(report)["runs"]


def test_what_no_request_can_hold_does_not_load(sandbox: Sandbox, tmp_path: Path) -> None:
    """A sequence; the sentence names the tensor."""
    report = sandbox.inspect(holding(tmp_path, models.sequence()))
    assert failed_by(report) == [Check.LOADS]
    assert "'y'" in failures(report)["loads"]


def test_answers_that_are_no_numbers_are_seen(sandbox: Sandbox, tmp_path: Path) -> None:
    """M24 Unless the model may give them."""
    folder = holding(tmp_path, models.root())
    assert failed_by(sandbox.inspect(folder)) == [Check.FINITE]
    assert sandbox.result(folder, Check.FINITE, allow_nonfinite=True).outcome is Outcome.SKIPPED


def test_answers_that_change_are_seen(sandbox: Sandbox, tmp_path: Path) -> None:
    """M24 The measure says how far apart they are."""
    result = sandbox.result(holding(tmp_path, models.dice()), Check.DETERMINISM)
    assert result.outcome is Outcome.FAILED
    assert result.measure
    assert result.measure > 0.01


def test_rows_that_see_each_other_are_seen(sandbox: Sandbox, tmp_path: Path) -> None:
    """The mean of a batch makes every row depend on the others."""
    folder = holding(tmp_path, models.batch_mean())
    assert failed_by(sandbox.inspect(folder)) == [Check.BATCHING]
    alone = holding(tmp_path / "alone", models.identity(shape=(1, 4)))
    assert sandbox.result(alone, Check.BATCHING).outcome is Outcome.SKIPPED


def test_golden_requests_are_answered_as_expected(sandbox: Sandbox, tmp_path: Path) -> None:
    """M24 From the version's own file; what was answered is kept to be compared."""
    folder = holding(tmp_path, models.linear(0.5))
    golden = [{"request": request_of(1, 2, 3, 4), "expected": {"y": [[10.5]]}, "name": "ten"}]
    file = {"schema": 1, "golden": golden}
    (folder / "golden.json").write_text(json.dumps(file), encoding="ascii")
    report = sandbox.inspect(folder)
    assert report.checks[Check.GOLDEN].outcome is Outcome.PASSED
    assert (report.golden[0].name, report.golden[0].head) == ("ten", {"y": (10.5,)})
    assert len(report.golden[0].digests["y"]) == 64


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"y": [[10.6]]}, "differs by 0.1"),
        ({"z": [1]}, "none of the version's"),
        ({"y": [1, 2]}, "has 1 values, not 2"),
        ({"y": ["ten"]}, "else than numbers"),
    ],
)
def test_other_answers_to_golden_requests_are_seen(
    sandbox: Sandbox, tmp_path: Path, expected: dict[str, Any], words: str
) -> None:
    """M24 By a sentence that says which request and what is wrong."""
    golden = (GoldenRequest(request_of(1, 2, 3, 4), expected, "ten"),)
    result = sandbox.result(holding(tmp_path, models.linear(0.5)), Check.GOLDEN, golden=golden)
    assert result.outcome is Outcome.FAILED
    assert words in result.summary
    assert "'ten'" in result.summary


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[]", "[" * 5_000], ids=str)
def test_a_golden_file_that_is_none_is_a_failed_check(
    sandbox: Sandbox, tmp_path: Path, text: str
) -> None:
    """Not one that was skipped."""
    folder = holding(tmp_path, models.linear())
    (folder / "golden.json").write_text(text, encoding="ascii")
    assert failed_by(sandbox.inspect(folder)) == [Check.GOLDEN]


def test_a_signature_that_callers_would_notice_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    """M23 Against that of the version which serves."""
    folder = holding(tmp_path / "new", models.linear())
    other = describe(str(holding(tmp_path / "old", models.two_inputs()) / "model.onnx"))
    same = describe(str(folder / "model.onnx"))
    for champion, outcome in ((other, Outcome.FAILED), (same, Outcome.PASSED)):
        result = sandbox.result(folder, Check.SIGNATURE, champion_signature=champion)
        assert result.outcome is outcome


@pytest.mark.parametrize(
    ("bias", "share", "outcome"),
    [(0.0, 1.0, Outcome.PASSED), (1.0, 0.0, Outcome.FAILED)],
    ids=["alike", "apart"],
)
def test_agreement_is_counted_on_recent_inputs(
    sandbox: Sandbox, tmp_path: Path, bias: float, share: float, outcome: Outcome
) -> None:
    """Those that the champion itself cannot read say nothing."""
    champion = holding(tmp_path / "champion", models.linear())
    inputs: tuple[dict[str, Any], ...] = (
        request_of(1, 2, 3, 4),
        request_of(0, 0, 0, 1),
        {"inputs": []},
    )
    result = sandbox.result(
        holding(tmp_path / "new", models.linear(bias)),
        Check.AGREEMENT,
        champion=str(champion),
        inputs=inputs,
    )
    assert (result.measure, result.outcome) == (share, outcome)
    assert "of 2 recent inputs" in result.summary


def test_memory_is_that_of_the_version(sandbox: Sandbox, tmp_path: Path) -> None:
    """Its weights and what runs take, not the libraries."""
    small = sandbox.inspect(holding(tmp_path / "small", models.linear()))
    large = sandbox.inspect(holding(tmp_path / "large", models.wide(1_500, layers=2)))
    weights = large.parameters * 4 / 2**20
    assert large.peak_mb - small.peak_mb > 0.9 * weights


@pytest.mark.parametrize(
    ("left", "right", "difference"),
    [
        ([1.0, 100.0], [1.0, 101.0], 1 / 101),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([np.nan], [1.0], WORST),
        ([1e-9, 1.0], [2e-9, 1.0], 1e-6),
        ([], [], 0.0),
    ],
)
def test_answers_are_apart_by_their_relative_difference(
    left: list[float], right: list[float], difference: float
) -> None:
    """Numbers of almost nothing count as large as a thousandth of the largest."""
    assert apart([np.array(left)], [np.array(right)]) == pytest.approx(difference)


def test_answers_of_another_form_are_as_far_apart_as_can_be() -> None:
    """Other shapes, datatypes, numbers of outputs; texts are the same or not."""
    one = np.zeros((2, 2))
    for other in ([], [np.zeros(4)], [np.zeros((2, 2), np.float32)]):
        assert apart([one], other) == WORST
    texts = np.array([b"a", b"b"], dtype=object)
    assert apart([texts], [texts.copy()]) == 0.0
    assert apart([texts], [texts[::-1]]) == WORST
