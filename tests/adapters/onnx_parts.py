"""What the tests of the onnxruntime adapter share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import ModelProto

from gateway.adapters.onnx import OnnxEngine, OnnxLoader, describe
from gateway.core.tensors import Array
from gateway.ports import Artifact
from tests import onnx_models as models
from tests.fakes import manifest_of


def loaded(model: ModelProto, folder: Path) -> OnnxEngine:
    """The engine of a model, loaded as the pool does it."""
    path = models.save(model, folder)
    return OnnxLoader(1)(Artifact(manifest_of(signature=describe(path)), path))


def one(engine: OnnxEngine, **tensors: Array) -> Array:
    """The only output of a run."""
    (output,) = engine.run(tensors, [spec.name for spec in engine.signature.outputs])
    return output


def rows(*values: float) -> Array:
    """One row of four for each value."""
    return np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)


def output_of(script: str, *arguments: str, environ: dict[str, str] | None = None) -> str:
    """What a script prints in an interpreter of its own."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout
