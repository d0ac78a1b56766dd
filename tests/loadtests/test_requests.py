from pathlib import Path

import numpy as np
import orjson
import pytest

from loadtests.checking import Check, write
from loadtests.models import make
from loadtests.requests import (
    UNITS,
    Target,
    Wire,
    agree,
    answered,
    body,
    expected,
    load,
    plan,
    rows,
    save,
)

TARGET = Target(8080, "/v2/models/logistic/infer")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model files of the load tests."""
    folder = tmp_path_factory.mktemp("store")
    make(folder, ["logistic", "swap", "boosted"])
    return folder


def test_small_requests_come_from_many_units() -> None:
    """A split must see real traffic, so no unit comes twice in a plan."""
    requests = plan("logistic", TARGET, "json")

    units = {one.partition(b"X-Unit: ")[2].partition(b"\r\n")[0] for one in requests}
    assert len(units) == len(requests) == UNITS >= 10_000


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Requests of any length, in their order."""
    requests = [b"a", b"bcd", b"ef"]

    assert load(save(requests, tmp_path / "plan")) == requests


@pytest.mark.parametrize("wire", ["json", "binary"])
def test_a_request_holds_its_input(wire: Wire) -> None:
    """Both wires carry the same float32 values, to the last bit."""
    array = rows("logistic")[0]

    headers, content = body("logistic", array, "oip", wire)

    split = int(headers.get("Inference-Header-Content-Length", len(content)))
    (tensor,) = orjson.loads(content[:split])["inputs"]
    sent = tensor.get("data") or np.frombuffer(content[split:], np.float32)
    assert np.array_equal(np.asarray(sent, np.float32).reshape(tensor["shape"]), array)


def test_both_versions_of_a_model_answer_alike_unless_they_are_to_be_told_apart(
    store: Path,
) -> None:
    """A split between equals costs what a split costs; a swap must be seen."""

    def same(model: str) -> bool:
        array = rows(model)[:1]
        first, second = (
            expected(store / model / version / "model.onnx", array)[0] for version in ("1", "2")
        )
        return agree(first, second)

    assert same("logistic")
    assert not same("swap")


def test_answers_of_trees_are_probabilities(store: Path) -> None:
    """Trees made by hand answer like trained ones: sums of one, and not always the same."""
    answers = expected(store / "boosted" / "1" / "model.onnx", rows("boosted"))

    chances = np.concatenate([answer["probabilities"] for answer in answers])
    assert np.allclose(chances.sum(axis=1), 1)
    assert chances[:, 1].std() > 0.05


def test_an_answer_without_names_is_the_last_output() -> None:
    """Some servers can batch one array only; it must be the right one."""
    wanted = {"label": np.array([1]), "probabilities": np.array([[0.25, 0.75]])}

    assert agree(answered("plain", {}, b"[[0.25, 0.75]]"), wanted)
    assert not agree(answered("plain", {}, b"[[0.75, 0.25]]"), wanted)


def test_an_answer_is_right_only_under_the_version_that_gave_it(
    store: Path, tmp_path: Path
) -> None:
    """Other versions' numbers, other inputs' numbers and no numbers are all wrong."""
    check = Check.read(write(tmp_path / "check.json", store, "swap"))
    answer = expected(store / "swap" / "1" / "model.onnx", rows("swap"))[3]

    def told(version: str) -> bytes:
        outputs = [
            {"name": name, "shape": value.shape, "datatype": "", "data": value.ravel().tolist()}
            for name, value in answer.items()
        ]
        return orjson.dumps({"model_version": version, "outputs": outputs})

    assert check.right(3, b"", told("1"))
    assert not check.right(3, b"", told("2"))
    assert not check.right(4, b"", told("1"))
    assert not check.right(3, b"", b"{}")
