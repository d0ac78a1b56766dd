"""onnxruntime: describes and runs ONNX models. The only room that imports it.

`loading` opens sessions and reads signatures, `engine` runs them, `memory` caps what runs may
take, `sharing` lets several processes hold one copy of large weights, which `forming` writes and
`layout` arranges.
"""

from gateway.adapters.onnx.engine import OnnxEngine
from gateway.adapters.onnx.loading import OnnxLoader, describe
from gateway.adapters.onnx.memory import trim_memory

__all__ = ["OnnxEngine", "OnnxLoader", "describe", "trim_memory"]
