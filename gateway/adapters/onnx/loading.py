"""Loading: sessions opened from a path, and the signature that a session tells.

Session settings follow measurements of onnxruntime 1.31: threads are explicit because 0 takes the
host's cores whatever the container may use, spinning is off because several sessions share few
cores, fallback is off because it would re-create sessions on the request path, and folded
constants are capped because a tiny file can otherwise ask for gigabytes at load.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

from gateway.adapters.onnx.engine import OnnxEngine
from gateway.adapters.onnx.memory import arena_bytes, cap_arena, trim_memory
from gateway.adapters.onnx.runtime import ort
from gateway.adapters.onnx.sharing import MIN_SHARED_BYTES, shared_form
from gateway.core.errors import EngineFailed, InvalidRequest, excerpt
from gateway.core.tensors import BYTES, Signature, TensorSpec
from gateway.ports import Artifact
from gateway.settings import PoolSettings

FOLDING_CAP_BYTES: Final = 1024 * 1024
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
_SETTINGS: Final[Mapping[str, str]] = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "optimization.constant_folding_max_output_size_in_bytes": str(FOLDING_CAP_BYTES),
}

log: Final = logging.getLogger(__name__)


class OnnxLoader:
    """Loads artifacts with a fixed number of threads for each run. Slow; call it in a thread."""

    __slots__ = ("_in_arena", "_share", "_threads", "_workers")

    def __init__(
        self,
        intra_op_threads: int,
        *,
        arena_cap_bytes: int = 0,
        share_weights: Literal["auto", "always", "never"] = "never",
        workers: int = 1,
    ) -> None:
        """Choose what sessions may use.

        Args:
            intra_op_threads: threads of every session, the caller's own included.
            arena_cap_bytes: of memory for runs, all sessions of the process together; 0 for no
                cap. The first loader of a process that has one decides.
            share_weights: `auto` shares large weights between several workers where that is not
                slower; `always` shares all that can be.
            workers: processes that load the same models on this host.
        """
        self._threads = intra_op_threads
        self._in_arena = cap_arena(arena_cap_bytes)
        self._share = share_weights
        self._workers = workers

    @classmethod
    def of(cls, settings: PoolSettings, workers: int, cores: int | None = None) -> Self:
        """The loader of one of so many workers, with the threads that the settings say.

        More threads than cores make every run slower; that is said in the log.

        Args:
            settings: how models are run.
            workers: processes that load the same models on this host.
            cores: what these processes may use; None for what this one may run on.
        """
        cores = cores or len(os.sched_getaffinity(0))
        runs = workers * settings.executor_threads
        if settings.intra_op_threads > 1 and runs * settings.intra_op_threads > cores:
            log.warning(
                "pool.intra_op_threads is %d: %d runs at the same time want %d cores of %d",
                settings.intra_op_threads,
                runs,
                runs * settings.intra_op_threads,
                cores,
            )
        return cls(
            settings.intra_op_threads,
            arena_cap_bytes=arena_bytes(settings.arena_mb, workers),
            share_weights=settings.share_weights,
            workers=workers,
        )

    def __call__(self, artifact: Artifact) -> OnnxEngine:
        """Load by path from the artifact's private copy.

        Raises:
            EngineFailed: onnxruntime does not take the file, or it is not what its manifest says.
        """
        try:
            return self._shared(artifact) or open_engine(
                artifact, self._threads, in_arena=self._in_arena
            )
        finally:
            # What loading took is several times the weights, and glibc would keep most of it.
            trim_memory()

    def _shared(self, artifact: Artifact) -> OnnxEngine | None:
        """The engine on weights that other processes map too, if this one is to be so."""
        if not self._is_to_share(artifact):
            return None
        form = shared_form(artifact, self._threads, though_slower=self._share == "always")
        if form is None:
            return None
        try:
            return open_engine(artifact, self._threads, form=form, in_arena=self._in_arena)
        except EngineFailed:
            log.warning("a shared form did not load; the model itself is used")
            return None

    def _is_to_share(self, artifact: Artifact) -> bool:
        if self._share != "auto":
            return self._share == "always"
        size = sum(file.size for file in artifact.manifest.files)
        return self._workers > 1 and size >= MIN_SHARED_BYTES


def open_engine(
    artifact: Artifact, threads: int, *, form: str | None = None, in_arena: bool = False
) -> OnnxEngine:
    """The engine of a version.

    Args:
        artifact: the verified copy.
        threads: of a run.
        form: path of its shared form, None for the model itself.
        in_arena: take memory for runs from the arena that the process's sessions share.

    Raises:
        EngineFailed: onnxruntime does not take the file, or it is not what its manifest says.
    """
    options = session_options(threads)
    if in_arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    if form is not None:  # It was optimised when it was written.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(form or artifact.path, options)
    signature = read_signature(session)
    if signature != artifact.manifest.signature:
        message = "The model's signature is not the one in its manifest."
        raise EngineFailed(message)
    return OnnxEngine(session, signature, shares_weights=form is not None)


def describe(path: str) -> Signature:
    """Read the signature of a model file.

    Raises:
        InvalidRequest: the file cannot be served here, with a sentence that says why.
    """
    try:
        return read_signature(open_session(path, session_options(1)))
    except EngineFailed as error:
        raise InvalidRequest(str(error)) from error


def session_options(threads: int) -> ort.SessionOptions:
    """What every session is opened with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # plans memory for each shape; batches change shape
    options.log_severity_level = 4
    for key, value in _SETTINGS.items():
        options.add_session_config_entry(key, value)
    return options


def open_session(path: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a model by path, so that nothing keeps its bytes.

    Raises:
        EngineFailed: it is not there, or onnxruntime does not take it.
    """
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


def read_signature(session: ort.InferenceSession) -> Signature:
    """What a session tells of its inputs and outputs; EngineFailed for what no request can hold."""
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
