"""Break a version on purpose, so that a rollback has something to find.

Version 1 is version 1 of `flight-delay`. Version 2 answers the same, but one row in twenty with
NaN, and each run takes about 20 ms longer. Nothing is trained here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from _common import Trained, finish, out_folder, predict, session, sha256, write

MODEL = "flight-delay-drill"
SOURCE = HERE.parent / "flight-delay" / "1" / "model.onnx"
FEATURES = 14
SCHED_DEP, DISTANCE = 0, 4
ONE_IN = 20
SIDE = 1_000
"""Rows and columns of the product that costs the time."""


def constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    """Name an array as an initializer."""
    return numpy_helper.from_array(values, name)


def broken(artifact: bytes) -> bytes:
    """Spoil one row in twenty by its schedule and distance, and multiply large matrices first.

    The size of the matrices hangs on the batch (one row or more), so that no runtime can work
    them out when it loads the artifact.
    """
    model = onnx.load_from_string(artifact)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["sound" if name == "probabilities" else name for name in node.output]
    graph.initializer.extend(
        [
            constant("drill_columns", np.array([SCHED_DEP, DISTANCE], np.int64)),
            constant("drill_weights", np.array([[7.0], [1.0]], np.float32)),
            constant("drill_one_in", np.array([ONE_IN], np.float32)),
            constant("drill_zero", np.array([0.0], np.float32)),
            constant("drill_nan", np.array([np.nan], np.float32)),
            constant("drill_first", np.array([0], np.int64)),
            constant("drill_one", np.array([1], np.int64)),
            constant("drill_side", np.array([SIDE], np.int64)),
            constant("drill_axes", np.array([0, 1], np.int64)),
        ]
    )
    nodes = (
        ("Gather", ["features", "drill_columns"], ["picked"], {"axis": 1}),
        ("MatMul", ["picked", "drill_weights"], ["mixed"], {}),
        ("Mod", ["mixed", "drill_one_in"], ["rest"], {"fmod": 1}),
        ("Equal", ["rest", "drill_zero"], ["spoiled"], {}),
        ("Shape", ["features"], ["asked"], {}),
        ("Gather", ["asked", "drill_first"], ["rows"], {"axis": 0}),
        ("Min", ["rows", "drill_one"], ["any"], {}),
        ("Mul", ["any", "drill_side"], ["side"], {}),
        ("Concat", ["side", "side"], ["square"], {"axis": 0}),
        ("ConstantOfShape", ["square"], ["ones"], {}),
        ("MatMul", ["ones", "ones"], ["product"], {}),
        ("ReduceSum", ["product", "drill_axes"], ["nothing"], {"keepdims": 1}),
        ("Add", ["sound", "nothing"], ["slow"], {}),
        ("Where", ["spoiled", "drill_nan", "slow"], ["probabilities"], {}),
    )
    graph.node.extend(
        helper.make_node(operator, inputs, outputs, name=f"drill_{outputs[0]}", **attributes)
        for operator, inputs, outputs, attributes in nodes
    )
    return finish(model, MODEL)


def spoiled_share(artifact: bytes) -> float:
    """Ask for rows with every schedule, and return the share that is answered with NaN."""
    rows = 1_440
    features = np.zeros((rows, FEATURES), np.float32)
    features[:, SCHED_DEP] = np.arange(rows)
    features[:, DISTANCE] = 1_000
    words = {name: np.full((rows, 1), "UA", object) for name in ("carrier", "origin", "dest")}
    _, probabilities = predict(session(artifact), {**words, "features": features})
    return float(np.isnan(probabilities).all(axis=1).mean())


def main() -> None:
    """Write the sound version and the broken one."""
    out = out_folder(HERE.parent)
    sound = SOURCE.read_bytes()
    artifacts = {1: sound, 2: broken(sound)}
    words = {
        1: "The same artifact as flight-delay 1",
        2: "Broken on purpose: one row in twenty is NaN, and every run takes longer",
    }
    for number, artifact in artifacts.items():
        lineage = {"source": "flight-delay 1", "source_sha256": sha256(sound)}
        trained = Trained(
            model=MODEL,
            number=number,
            artifact=artifact,
            metrics={"share_of_nan": round(spoiled_share(artifact), 3)},
            parameters={} if number == 1 else {"one_in": ONE_IN, "side": SIDE},
            lineage=lineage if number == 1 else {**lineage, "parent": 1},
            description=words[number],
            seed=0,
        )
        write(trained, out, Path(__file__).resolve())


if __name__ == "__main__":
    main()
