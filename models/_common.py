"""What the training scripts share: ONNX export, checks of the export, and `version.toml`."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnx
import onnxruntime as ort
from skl2onnx import convert_sklearn, update_registered_converter
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from skl2onnx.operator_converters.random_forest import convert_sklearn_random_forest_classifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

CREATED = "2026-11-21"  # a constant, so that a second run writes the same bytes
OPSETS = {"": 17, "ai.onnx.ml": 3}
IR_VERSION = 8  # the oldest that carries these operator sets, for the widest choice of runtimes
MAX_BYTES = 1_000_000
TOLERANCE = 1e-5
LIBRARIES = ("numpy", "onnx", "pandas", "scikit-learn", "skl2onnx")

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Scalar = str | int | float | bool


@dataclass(frozen=True)
class Trained:
    """One trained version, exported and scored, ready to be written."""

    model: str
    number: int
    artifact: bytes
    metrics: Mapping[str, Scalar]
    parameters: Mapping[str, Scalar | Sequence[Scalar]]
    lineage: Mapping[str, Scalar | Sequence[Scalar]]
    description: str
    seed: int


def out_folder(default: Path) -> Path:
    """Read `--out` from the command line: the folder that receives `<model>/<version>/`."""
    parser = argparse.ArgumentParser(description="Train the model and write its versions.")
    parser.add_argument("--out", type=Path, default=default, help="write here, not in place")
    folder: Path = parser.parse_args().out
    return folder


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 digest of the content."""
    return hashlib.sha256(content).hexdigest()


class _WholeNumbers:
    """Stand before skl2onnx's container and write booleans as the integers that ONNX holds."""

    def __init__(self, container: Any) -> None:
        """Keep the container that really collects the nodes."""
        self._container = container

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the container."""
        return getattr(self._container, name)

    def add_node(self, *args: Any, **attributes: Any) -> None:
        """Add the node with whole numbers in its lists of flags."""
        key = "nodes_missing_value_tracks_true"
        attributes[key] = [int(flag) for flag in attributes[key]]
        self._container.add_node(*args, **attributes)


def _convert_boosted(scope: Any, operator: Any, container: Any) -> None:
    """Convert boosted trees; skl2onnx's own converter hands booleans to protobuf, which refuses."""
    convert_sklearn_random_forest_classifier(scope, operator, _WholeNumbers(container))


update_registered_converter(
    HistGradientBoostingClassifier,
    "SklearnHistGradientBoostingClassifier",
    calculate_linear_classifier_output_shapes,
    _convert_boosted,
    options={"zipmap": [False, True], "raw_scores": [False, True], "nocl": [False, True]},
)


def convert(pipeline: Any, inputs: Sequence[tuple[str, Any]]) -> onnx.ModelProto:
    """Convert a fitted scikit-learn pipeline; probabilities come out as a plain tensor."""
    model: onnx.ModelProto = convert_sklearn(
        pipeline,
        initial_types=list(inputs),
        target_opset=OPSETS,
        options={"zipmap": False},
    )
    return model


def finish(model: onnx.ModelProto, name: str) -> bytes:
    """Name the batch dimension, drop what is noise, check the graph, and return its bytes."""
    graph = model.graph
    graph.name = name
    graph.doc_string = model.doc_string = ""
    model.producer_name, model.producer_version, model.domain = "tiltyard", "", ""
    model.model_version = 0
    model.ir_version = IR_VERSION
    del graph.value_info[:], model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*opset) for opset in OPSETS.items())
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.Clear()
        first.dim_param = "batch"
    for node in graph.node:
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in graph.node}
    if not domains <= {"", "ai.onnx.ml"}:
        raise ValueError(f"{name} uses operators of {sorted(domains)}")
    artifact: bytes = model.SerializeToString(deterministic=True)
    if len(artifact) > MAX_BYTES:
        raise ValueError(f"{name} has {len(artifact)} bytes, more than {MAX_BYTES}")
    return artifact


def session(artifact: bytes) -> ort.InferenceSession:
    """Load the artifact as a server would, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def predict(runner: ort.InferenceSession, feeds: Feeds) -> tuple[Array, Array]:
    """Return the labels and the probabilities that the artifact answers."""
    label, probabilities = runner.run(["label", "probabilities"], feeds)
    return np.asarray(label), np.asarray(probabilities)


def check_export(artifact: bytes, feeds: Feeds, expected: Array, singles: int = 500) -> None:
    """Refuse an artifact that differs from the trainer's answers or depends on its batch."""
    runner = session(artifact)
    label, probabilities = predict(runner, feeds)
    worst = float(np.abs(probabilities - expected).max())
    if worst > TOLERANCE:
        raise ValueError(f"the artifact's probabilities differ by up to {worst:.2e}")
    clear = np.sort(expected, axis=1)
    clear_rows = clear[:, -1] - clear[:, -2] > 2 * TOLERANCE
    if (label != expected.argmax(axis=1))[clear_rows].any():
        raise ValueError("the artifact's labels differ from the trainer's")
    for row in np.linspace(0, len(expected) - 1, singles, dtype=int):
        one = {name: values[row : row + 1] for name, values in feeds.items()}
        alone_label, alone = predict(runner, one)
        if alone_label[0] != label[row] and clear_rows[row]:
            raise ValueError(f"row {row} gets another label when it is asked alone")
        if np.abs(alone[0] - probabilities[row]).max() > 1e-6:
            raise ValueError(f"row {row} gets another answer when it is asked alone")


def score(artifact: bytes, feeds: Feeds, truth: Array) -> dict[str, Scalar]:
    """Measure the artifact itself, not the pipeline it came from, on rows it has not seen."""
    label, probabilities = predict(session(artifact), feeds)
    chances = probabilities.astype(np.float64)
    chances /= chances.sum(axis=1, keepdims=True)
    hits = np.eye(chances.shape[1])[truth]
    if chances.shape[1] == 2:
        auc = roc_auc_score(truth, chances[:, 1])
        brier = float(np.mean((chances[:, 1] - truth) ** 2))
    else:
        auc = roc_auc_score(truth, chances, multi_class="ovr", average="macro")
        brier = float(np.mean(((chances - hits) ** 2).sum(axis=1)))
    measured = {
        "auc": auc,
        "log_loss": log_loss(truth, chances),
        "accuracy": accuracy_score(truth, label),
        "brier": brier,
    }
    rounded: dict[str, Scalar] = {key: round(float(value), 5) for key, value in measured.items()}
    return {"rows": len(truth), **rounded}


def toml_value(value: Scalar | Sequence[Scalar]) -> str:
    """Write a scalar or a flat list as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return repr(value)
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def toml_table(title: str, entries: Mapping[str, Any]) -> str:
    """Write one table, or the top level when it has no title."""
    head = [f"[{title}]"] if title else []
    return "\n".join([*head, *(f"{key} = {toml_value(value)}" for key, value in entries.items())])


def describe(trained: Trained, script: Path) -> str:
    """Return the text of `version.toml`."""
    top = {
        "model": trained.model,
        "number": trained.number,
        "description": trained.description,
        "created": CREATED,
        "sha256": sha256(trained.artifact),
        "bytes": len(trained.artifact),
        "framework": "onnx",
        "trainer": "scikit-learn",
        "seed": trained.seed,
    }
    lineage = {
        **trained.lineage,
        "script_sha256": sha256(script.read_bytes()),
        "common_sha256": sha256(Path(__file__).read_bytes()),
    }
    # Minor version only: a patch release of Python changes no byte of the artifact.
    python = ".".join(platform.python_version_tuple()[:2])
    libraries = {"python": python, **{name: installed(name) for name in LIBRARIES}}
    tables = (
        toml_table("", top),
        toml_table("metrics", trained.metrics),
        toml_table("parameters", trained.parameters),
        toml_table("lineage", lineage),
        toml_table("lineage.libraries", libraries),
    )
    return "\n\n".join(tables) + "\n"


def write(trained: Trained, out: Path, script: Path) -> None:
    """Write the artifact and its description to `<out>/<model>/<version>/`."""
    folder = out / trained.model / str(trained.number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(trained.artifact)
    (folder / "version.toml").write_text(describe(trained, script), encoding="utf-8")
    figures = ", ".join(f"{key} {value}" for key, value in trained.metrics.items())
    print(f"{trained.model} {trained.number}: {len(trained.artifact)} bytes; {figures}")


def write_gzip(path: Path, text: str) -> None:
    """Compress text with no name and no time in the header, so that the bytes depend on it only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))
