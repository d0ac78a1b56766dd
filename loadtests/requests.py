"""Requests as bytes, made before anything is measured, and what their answers must hold.

A plan is the list of requests that a generator goes round in. Small requests come in 10,000 units
and more, so that a split sees real traffic; large ones in as many as 32 MiB hold.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
import orjson

from loadtests.models import MODELS

Wire = Literal["json", "binary"]
Dialect = Literal["oip", "plain"]
Arrays = dict[str, Any]

BODIES: Final = 16
UNITS: Final = 12_000
PLAN_BYTES: Final = 32 * 1024 * 1024
MIN_REQUESTS: Final = 8
UNIT_HEADER: Final = "X-Unit"
RELATIVE: Final = 1e-3
ABSOLUTE: Final = 1e-4


@dataclass(frozen=True)
class Target:
    """Where requests go and in which words.

    `oip` is the Open Inference Protocol, version 2. `plain` is `{"x": [[...]]}` in and
    `{"<output>": [...], ...}` out, for servers that leave the words to their users.
    """

    port: int
    path: str
    dialect: Dialect = "oip"


def rows(model: str, count: int = BODIES) -> list[Any]:
    """Inputs of one row each, the same ones for everybody: float32 of shape (1, ...)."""
    random = np.random.default_rng(7)
    shape = (1, *MODELS[model].row)
    return [random.normal(size=shape).astype(np.float32) for _ in range(count)]


def expected(file: Path, arrays: Sequence[Any]) -> list[Arrays]:
    """What the model itself answers to each input, by output name."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    entry = session.get_inputs()[0].name
    return [dict(zip(names, session.run(None, {entry: array}), strict=True)) for array in arrays]


def body(model: str, array: Any, dialect: Dialect, wire: Wire) -> tuple[dict[str, str], bytes]:
    """Headers and body of one inference."""
    if dialect == "plain":
        return {"Content-Type": "application/json"}, _dumps({"x": array})
    tensor: dict[str, Any] = {
        "name": MODELS[model].input,
        "shape": array.shape,
        "datatype": "FP32",
    }
    if wire == "json":
        tensor["data"] = array.ravel()
        return {"Content-Type": "application/json"}, _dumps({"inputs": [tensor]})
    raw = array.tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = _dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }, head + raw


def message(target: Target, headers: Mapping[str, str], content: bytes) -> bytes:
    """One request on the wire."""
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: 127.0.0.1:{target.port}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(content)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def plan(model: str, target: Target, wire: Wire) -> list[bytes]:
    """All requests of a plan; request `i` has input `i % BODIES` and a unit of its own."""
    made = [body(model, array, target.dialect, wire) for array in rows(model)]
    size = max(len(content) for _, content in made)
    count = min(UNITS, max(MIN_REQUESTS, PLAN_BYTES // size))
    return [
        message(target, {**headers, UNIT_HEADER: f"unit-{i:06d}"}, content)
        for i, (headers, content) in ((i, made[i % BODIES]) for i in range(count))
    ]


def save(requests: Sequence[bytes], path: Path) -> Path:
    """Write a plan for the generators, as `<path>.lengths` and `<path>.requests`."""
    path.with_suffix(".lengths").write_text("".join(f"{len(one)}\n" for one in requests))
    path.with_suffix(".requests").write_bytes(b"".join(requests))
    return path


def load(path: Path) -> list[bytes]:
    """Read a plan."""
    content, start, found = path.with_suffix(".requests").read_bytes(), 0, []
    for line in path.with_suffix(".lengths").read_text().split():
        found.append(content[start : start + int(line)])
        start += int(line)
    return found


def answered(dialect: Dialect, headers: Mapping[str, str], content: bytes) -> Arrays:
    """The outputs of an answer, by name; headers with lower-case names."""
    if dialect == "plain":
        document = json.loads(content)
        named = document if isinstance(document, dict) else {"": document}
        return {name: np.asarray(value) for name, value in named.items()}
    split = headers.get("inference-header-content-length")
    head = content[: int(split)] if split else content
    at, found = len(head), {}
    for output in orjson.loads(head)["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = np.asarray(output["data"])
        else:
            dtype = {"FP32": np.float32, "INT64": np.int64}[output["datatype"]]
            array = np.frombuffer(content[at : at + size], dtype)
            at += size
        found[output["name"]] = array.reshape(output["shape"])
    return found


def agree(found: Arrays, wanted: Arrays) -> bool:
    """Whether an answer holds the model's outputs, each in its shape or flat.

    An answer without names is the last output alone: some servers can batch one array only.
    """
    if found.keys() == {""}:
        found = {list(wanted)[-1]: found[""]}
        wanted = {name: wanted[name] for name in found}
    return found.keys() >= wanted.keys() and all(
        np.size(found[name]) == value.size
        and np.allclose(np.ravel(found[name]), value.ravel(), rtol=RELATIVE, atol=ABSOLUTE)
        for name, value in wanted.items()
    )


def _dumps(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
