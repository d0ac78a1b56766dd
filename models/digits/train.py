"""Train the two versions of `digits` and write down the images that neither has seen.

The question: which digit is on this image of 8 by 8 pixels? The input is the image itself, shaped
as an image; flattening and scaling happen inside the graph.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from _common import (
    Array,
    Trained,
    check_export,
    convert,
    finish,
    out_folder,
    score,
    sha256,
    write,
    write_gzip,
)

MODEL = "digits"
SEED = 1797
SIDE = 8
BRIGHTEST = 16
# Neighbouring images tend to be by the same hand: a cut in their order holds out writers as well,
# which is a harder and more honest test than a shuffled one.
TRAINED_ON = 1_200
# Chosen by cross-validation over four runs of 300 images inside those that are trained on.
PERCEPTRON = {"hidden_layer_sizes": [256], "alpha": 0.01, "max_iter": 60}
Classifier: TypeAlias = LogisticRegression | MLPClassifier


def load() -> tuple[Array, Array]:
    """Return all images, with brightness from 0 to 16, and the digit on each."""
    images, digits = load_digits(return_X_y=True)
    return images.astype(np.float32).reshape(-1, SIDE, SIDE), digits.astype(np.int64)


def flat(images: Array) -> Array:
    """Do outside the graph what `wrap` does inside it."""
    return images.reshape(len(images), -1).astype(np.float64) / BRIGHTEST


def shifted(images: Array, digits: Array) -> tuple[Array, Array]:
    """Return the images with a copy of each, moved by one pixel, in all four directions."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[:, top : top + SIDE, left : left + SIDE] for top, left in corners]
    return np.concatenate(moved), np.tile(digits, len(corners))


def plain_label(graph: onnx.GraphProto) -> None:
    """Take the label as the place of the greatest probability, if no other output needs its nodes.

    The classes are 0 to 9, so place and digit are the same; the converter's own look-up refuses
    a batch without rows.
    """
    needed: list[onnx.NodeProto] = []
    wanted = {"probabilities"}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.insert(0, node)
            wanted.update(node.input)
    if any("label" in node.output for node in needed):
        return
    label = helper.make_node(
        "ArgMax", ["probabilities"], ["label"], name="Label", axis=1, keepdims=0
    )
    del graph.node[:]
    graph.node.extend([*needed, label])
    kept = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def wrap(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the image in front of the converted classifier: flatten it and scale it to one."""
    graph = model.graph
    plain_label(graph)
    pixels = graph.input[0].name
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", SIDE, SIDE])
    graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0 / BRIGHTEST]))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="Flatten", axis=1),
        helper.make_node("Mul", ["flat", "scale"], [pixels], name="Scale"),
        *graph.node,
    ]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(image)
    return model


def fit(classifier: Classifier, images: Array, digits: Array) -> None:
    """Fit the classifier; the number of rounds is a choice, so reaching it is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(flat(images), digits)


def train(number: int, classifier: Classifier, parameters: dict[str, Any]) -> Trained:
    """Fit, export, check and measure one version."""
    images, digits = load()
    seen = images[:TRAINED_ON], digits[:TRAINED_ON]
    fit(classifier, *(shifted(*seen) if number > 1 else seen))
    converted = convert(classifier, [("pixels", FloatTensorType([None, SIDE * SIDE]))])
    artifact = finish(wrap(converted), MODEL)
    check_export(artifact, {"image": images}, classifier.predict_proba(flat(images)))
    content = seen[0].astype("<f4").tobytes() + seen[1].astype("<i8").tobytes()
    lineage: dict[str, str | int] = {
        "data_package": "scikit-learn",
        "data_version": installed("scikit-learn"),
        "data_sha256": sha256(content),
        "rows": TRAINED_ON,
        "images": f"the first {TRAINED_ON} of {len(digits)}, in the order of the package",
    }
    held_out = {"image": images[TRAINED_ON:]}
    return Trained(
        model=MODEL,
        number=number,
        artifact=artifact,
        metrics={
            "held_out": f"the last {len(digits) - TRAINED_ON} images, in the order of the package",
            **score(artifact, held_out, digits[TRAINED_ON:]),
        },
        parameters={
            "algorithm": type(classifier).__name__,
            **parameters,
            "shifted_copies": number > 1,
        },
        lineage=lineage if number == 1 else {**lineage, "parent": number - 1},
        description=(
            "Multinomial logistic regression"
            if number == 1
            else "A perceptron with one hidden layer, trained on shifted copies too"
        ),
        seed=SEED,
    )


def samples() -> str:
    """Write the held-out images as a table: id, digit, and the pixels row by row."""
    images, digits = load()
    pixels = [f"p{row}{column}" for row in range(SIDE) for column in range(SIDE)]
    lines = [",".join(["image", "label", *pixels])]
    for index in range(TRAINED_ON, len(digits)):
        values = images[index].astype(int).ravel()
        lines.append(",".join(map(str, [index, digits[index], *values])))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train both versions and write the samples."""
    out = out_folder(HERE.parent)
    # This solver runs to the optimum, so the coefficients do not depend on the processor.
    plain = {"C": 1.0, "solver": "newton-cholesky", "tol": 1e-8}
    versions: list[tuple[int, Classifier, dict[str, Any]]] = [
        (1, LogisticRegression(**plain), plain),
        (2, MLPClassifier(**PERCEPTRON, random_state=SEED), PERCEPTRON),
    ]
    for number, classifier, parameters in versions:
        write(train(number, classifier, parameters), out, Path(__file__).resolve())
    write_gzip(out / MODEL / "samples.csv.gz", samples())


if __name__ == "__main__":
    main()
