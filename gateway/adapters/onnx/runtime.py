"""The one import of onnxruntime, after its environment is set."""

import os

from gateway.adapters.environment import ALWAYS, NEVER

os.environ.update(ALWAYS)
for _name in NEVER:
    os.environ.pop(_name, None)

import onnxruntime as ort  # noqa: E402 - it reads its environment now

__all__ = ["ort"]
