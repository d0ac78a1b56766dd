"""onnxruntime: describes and runs ONNX models. The only file that imports it.

Session settings follow measurements of onnxruntime 1.31: threads are explicit because 0 takes the
host's cores whatever the container may use, spinning is off because several sessions share few
cores, fallback is off because it would re-create sessions on the request path, and folded
constants are capped because a tiny file can otherwise ask for gigabytes at load.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: official builds phone home
os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)  # a model file must not configure its host

import numpy as np
import onnxruntime as ort

from gateway.core.errors import EngineFailed, InvalidRequest, TooLarge, excerpt
from gateway.core.tensors import BYTES, DTYPES, Array, Signature, Tensors, TensorSpec
from gateway.ports import Artifact

FOLDING_CAP_BYTES: Final = 1024 * 1024
MAX_OUTPUT_BYTES: Final = 128 * 1024 * 1024
"""Of one run; more could not be written as JSON without keeping everybody else waiting."""
_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}
_NO_MEMORY: Final = "Failed to allocate memory"
_SETTINGS: Final[Mapping[str, str]] = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "optimization.constant_folding_max_output_size_in_bytes": str(FOLDING_CAP_BYTES),
}


class OnnxEngine:
    """One onnxruntime session. `run` may be called from several threads at once."""

    __slots__ = ("_session", "_strings", "_text_outputs", "signature")

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        """Wrap a session; `load_engine` makes one from an artifact."""
        self._session = session
        self._strings = [spec.name for spec in signature.inputs if spec.datatype == BYTES]
        self._text_outputs = {spec.name for spec in signature.outputs if spec.datatype == BYTES}
        self.signature = signature

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        """Run once and return the named outputs in that order.

        Raises:
            InvalidRequest: a BYTES element that is not UTF-8; onnxruntime holds strings.
            TooLarge: the run needs more memory than there is, or answers too much.
            EngineFailed: the model raised.
        """
        feed = dict(tensors)
        for name in self._strings:
            feed[name] = _to_text(name, feed[name])
        try:
            results = self._session.run(list(outputs), feed)
        except Exception as error:  # onnxruntime raises types of its own below Exception
            if _NO_MEMORY in str(error):
                message = "The model needs more memory for this input than there is."
                raise TooLarge(message) from error
            message = "The model failed to run on this input."
            raise EngineFailed(message) from error
        size = sum(result.nbytes for result in results)
        if size > MAX_OUTPUT_BYTES:
            results.clear()  # an error's traceback holds this frame
            message = f"The answer holds {size} bytes; at most {MAX_OUTPUT_BYTES} are given."
            raise TooLarge(message)
        if self._text_outputs:
            return [
                _to_bytes(result) if name in self._text_outputs else result
                for name, result in zip(outputs, results, strict=True)
            ]
        return list(results)


class OnnxLoader:
    """Loads artifacts with a fixed number of threads for each run. Slow; call it in a thread."""

    __slots__ = ("_threads",)

    def __init__(self, intra_op_threads: int) -> None:
        """Every session gets this many threads, the caller's own included."""
        self._threads = intra_op_threads

    def __call__(self, artifact: Artifact) -> OnnxEngine:
        """Load by path from the artifact's private copy.

        Raises:
            EngineFailed: onnxruntime does not take the file, or it is not what its manifest says.
        """
        session = _open(artifact.path, self._threads)
        signature = _signature(session)
        if signature != artifact.manifest.signature:
            message = "The model's signature is not the one in its manifest."
            raise EngineFailed(message)
        return OnnxEngine(session, signature)


def describe(path: str) -> Signature:
    """Read the signature of a model file.

    Raises:
        InvalidRequest: the file cannot be served here, with a sentence that says why.
    """
    try:
        return _signature(_open(path, 1))
    except EngineFailed as error:
        raise InvalidRequest(str(error)) from error


def trim_memory() -> None:
    """Give freed memory back to the operating system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _open(path: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # plans memory for each shape; batches change shape
    options.log_severity_level = 4
    for key, value in _SETTINGS.items():
        options.add_session_config_entry(key, value)
    if not Path(path).is_file():
        message = "The model file is not there."
        raise EngineFailed(message)
    try:
        return ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises types of its own below Exception
        message = f"onnxruntime does not load the model ({type(error).__name__})."
        raise EngineFailed(message) from error


def _signature(session: ort.InferenceSession) -> Signature:
    inputs = tuple(_spec(node) for node in session.get_inputs())
    outputs = tuple(_spec(node) for node in session.get_outputs())
    return Signature(inputs=inputs, outputs=outputs, batched=_shares_rows(inputs + outputs))


def _spec(node: ort.NodeArg) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        name, kind = excerpt(node.name), excerpt(node.type)
        message = f"Tensor '{name}' has type {kind}, which no request can hold."
        raise EngineFailed(message)
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    symbols = tuple(dim if isinstance(dim, str) else None for dim in node.shape)
    named = symbols if any(symbol is not None for symbol in symbols) else ()
    return TensorSpec(name=node.name, datatype=datatype, shape=shape, symbols=named)


def _shares_rows(specs: tuple[TensorSpec, ...]) -> bool:
    """Whether every tensor's first dimension is free, and no two of them are named apart."""
    if any(not spec.shape or spec.shape[0] != -1 for spec in specs):
        return False
    names = {spec.symbols[0] for spec in specs if spec.symbols and spec.symbols[0] is not None}
    return len(names) <= 1


def _to_text(name: str, tensor: Array) -> Array:
    texts = np.empty(tensor.shape, dtype=object)
    try:
        texts.reshape(-1)[:] = [element.decode() for element in tensor.reshape(-1)]
    except UnicodeDecodeError as error:
        message = f"Input '{name}' holds bytes that are not UTF-8; this model reads text."
        raise InvalidRequest(message) from error
    return texts


def _to_bytes(tensor: Array) -> Array:
    encoded = np.empty(tensor.shape, dtype=DTYPES[BYTES])
    encoded.reshape(-1)[:] = [str(element).encode() for element in tensor.reshape(-1)]
    return encoded
