import json

import numpy as np
import pytest

from gateway.serving.payloads import payload_text


def test_a_payload_is_json() -> None:
    """Names, datatypes, shapes and values, in the order of the request."""
    tensors = {
        "x": np.array([[1.5, np.nan], [np.inf, -np.inf]], dtype=np.float64),
        "ok": np.array([True, False]),
        "who": np.array([b"a\x00b", b"\xff"], dtype=object),
    }
    assert json.loads(payload_text(tensors, (), 4096)) == {
        "tensors": {
            "x": {
                "datatype": "FP64",
                "shape": [2, 2],
                "data": [1.5, "NaN", "Infinity", "-Infinity"],
            },
            "ok": {"datatype": "BOOL", "shape": [2], "data": [True, False]},
            "who": {"datatype": "BYTES", "shape": [2], "data": ["a\x00b", "\ufffd"]},
        }
    }


def test_redacted_values_are_never_looked_at() -> None:
    """A redacted input is named; nothing of its value is in the text."""
    tensors = {"x": np.array([1]), "ssn": np.array([b"078-05-1120"], dtype=object)}
    text = payload_text(tensors, ("ssn", "unknown"), 4096)
    assert json.loads(text)["redacted"] == ["ssn"]
    assert "078" not in text
    assert "unknown" not in text


@pytest.mark.parametrize("max_bytes", [0, 2, 60, 61, 100, 200, 1000, 4096])
def test_a_payload_is_capped_and_still_json(max_bytes: int) -> None:
    """At most so many bytes, valid JSON, and what was cut is counted."""
    tensors = {
        "x": np.arange(100_000, dtype=np.int64).reshape(1000, 100),
        "é": np.array(["é".encode() * 50_000, b"s"], dtype=object),
        "z": np.zeros((0, 4), dtype=np.float32),
    }
    text = payload_text(tensors, ("é",) if max_bytes == 200 else (), max_bytes)
    assert len(text.encode()) <= max(max_bytes, 2)
    shown = json.loads(text).get("tensors", {})
    for name, tensor in shown.items():
        assert len(tensor["data"]) + tensor.get("cut", 0) == tensors[name].size
    if max_bytes == 4096:
        assert shown["x"]["data"][:3] == [0, 1, 2]
        assert shown["z"] == {"datatype": "FP32", "shape": [0, 4], "data": []}


def test_a_payload_keeps_no_buffer() -> None:
    """The text is a copy: a request's memory changes or goes without it."""
    buffer = bytearray(np.array([1.0, 2.0]).tobytes())
    text = payload_text({"x": np.frombuffer(buffer)}, (), 4096)
    buffer[:] = bytes(16)
    buffer.clear()
    assert json.loads(text)["tensors"]["x"]["data"] == [1.0, 2.0]
