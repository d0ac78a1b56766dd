"""OnnxEngine: one onnxruntime session that is run.

`InferenceSession.run` is a wrapper in Python that checks again what the gateway has checked. Its
inner call, which is private, costs two microseconds less, so it is used where it was seen to do
the same (`inner_call`).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from gateway.adapters.onnx.memory import LARGE_BYTES, LARGE_ROWS, run_options
from gateway.adapters.onnx.runtime import ort
from gateway.core.errors import (
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    TooLarge,
)
from gateway.core.tensors import BYTES, DTYPES, FLOATS, Array, Signature, Tensors
from gateway.ports import Stop

MAX_OUTPUT_BYTES: Final = 128 * 1024 * 1024
"""Of one run; more could not be written as JSON without keeping everybody else waiting."""
SAMPLE_EXTENT: Final = 4
"""Extent of free dimensions in samples, other than the first."""
Call: TypeAlias = Callable[[Sequence[str], Tensors, ort.RunOptions], list[Array]]
_NO_MEMORY: Final = "Failed to allocate memory"
_CAPPED: Final = "is smaller than requested bytes"
_BEYOND: Final = (_NO_MEMORY, _CAPPED, "Integer overflow", "storage size overflowed")
"""What is said of sizes that are not to be had, or cannot even be written."""
_STOPPED: Final = "The model was stopped because the request's time ran out."
# Never written to, so any number of runs may use them at the same time.
_ORDINARY: Final = run_options(shrinking=False)
_SHRINKING: Final = run_options(shrinking=True)

log: Final = logging.getLogger(__name__)


class OnnxEngine:
    """One session. `run` may be called from several threads at once.

    `shares_weights` tells whether its weights are those of a file that other processes map too.
    """

    __slots__ = (
        "_call",
        "_large_bytes",
        "_session",
        "_strings",
        "_swollen",
        "_text_outputs",
        "shares_weights",
        "signature",
    )

    def __init__(
        self, session: ort.InferenceSession, signature: Signature, *, shares_weights: bool = False
    ) -> None:
        """Wrap a session and run it once; `OnnxLoader` makes one from an artifact."""
        self._session = session
        self._call = inner_call(session, signature)
        self._large_bytes = large_bytes(signature)
        self._strings = [spec.name for spec in signature.inputs if spec.datatype == BYTES]
        self._text_outputs = {spec.name for spec in signature.outputs if spec.datatype == BYTES}
        self._swollen = False
        self.signature = signature
        self.shares_weights = shares_weights

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        """Run once and return the named outputs in that order.

        Raises:
            InvalidRequest: a BYTES element that is not UTF-8; onnxruntime holds strings.
            TooLarge: the run needs more memory than there is, or answers too much.
            EngineFailed: the model raised.
        """
        if self._strings:
            tensors = self._texts(tensors)
        size = 0
        for tensor in tensors.values():
            size += tensor.nbytes
        options = _SHRINKING if size > self._large_bytes or self._swollen else _ORDINARY
        try:
            results = self._call(outputs, tensors, options)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own
            results = self._again(error, outputs, tensors, _SHRINKING)
        size = 0
        for result in results:
            size += result.nbytes
        if size > LARGE_BYTES or self._swollen:
            self._settle(results, size)
        if self._text_outputs:
            return self._encoded(results, outputs)
        return results

    def run_until(self, tensors: Tensors, outputs: Sequence[str], stop: Stop) -> list[Array]:
        """As `run`, but end early when told to, before the next of the model's nodes.

        Raises:
            DeadlineExceeded: it was stopped.
        """
        if self._strings:
            tensors = self._texts(tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        large = size > self._large_bytes or self._swollen
        try:
            try:
                results = self._call(outputs, tensors, _stoppable(stop, shrinking=large))
            except Exception as error:  # noqa: BLE001 - as above
                again = _stoppable(stop, shrinking=True)
                results = self._again(error, outputs, tensors, again)
        except GatewayError as error:
            if stop.asked:
                raise DeadlineExceeded(_STOPPED) from error
            raise
        self._settle(results, sum(result.nbytes for result in results))
        return self._encoded(results, outputs)

    def _again(
        self, error: Exception, outputs: Sequence[str], tensors: Tensors, options: ort.RunOptions
    ) -> list[Array]:
        """Try a run twice more if the arena was full: the first of them makes room for the second.

        Raises:
            TooLarge, EngineFailed: what `error` or the last attempt says.
        """
        for _ in range(2):
            if _CAPPED not in str(error):
                break
            try:
                return self._call(outputs, tensors, options)
            except Exception as another:  # noqa: BLE001 - as above
                error = another
        text = str(error)
        if any(words in text for words in _BEYOND):
            message = "The model needs more memory for this input than there is."
            raise TooLarge(message) from error
        message = "The model failed to run on this input."
        raise EngineFailed(message) from error

    def _settle(self, results: list[Array], size: int) -> None:
        """Note large outputs: they lie in the arena until answered, so the next run shrinks it.

        Raises:
            TooLarge: they are larger than any answer may be.
        """
        self._swollen = size > LARGE_BYTES
        if size > MAX_OUTPUT_BYTES:
            results.clear()  # an error's traceback holds this frame
            message = f"The answer holds {size} bytes; at most {MAX_OUTPUT_BYTES} are given."
            raise TooLarge(message)

    def _texts(self, tensors: Tensors) -> dict[str, Array]:
        feed = dict(tensors)
        for name in self._strings:
            feed[name] = _to_text(name, feed[name])
        return feed

    def _encoded(self, results: list[Array], outputs: Sequence[str]) -> list[Array]:
        return [
            _to_bytes(result) if name in self._text_outputs else result
            for name, result in zip(outputs, results, strict=True)
        ]


def large_bytes(signature: Signature) -> int:
    """Inputs above so many bytes make a run that gives its memory back.

    What a model needs inside grows with its rows, so many narrow rows are large too.
    """
    extents = [extent for spec in signature.inputs for extent in spec.shape[1:]]
    if not signature.batched or -1 in extents:
        return LARGE_BYTES
    row = sum(tensor.nbytes for tensor in sample(signature, 1).values())
    return min(LARGE_BYTES, LARGE_ROWS * row)


def _stoppable(stop: Stop, *, shrinking: bool) -> ort.RunOptions:
    """Options of one run only, since those of a run that was stopped stay marked for ever."""
    options = run_options(shrinking=shrinking)

    def end() -> None:
        options.terminate = True

    stop.connect(end)
    return options


def inner_call(session: ort.InferenceSession, signature: Signature) -> Call:
    """The session's inner run if it is there and does as the public one, else the public one.

    The model is run on a sample by both, once each, or raises the same in both.
    """
    public: Call = session.run
    inner: Call | None = getattr(getattr(session, "_sess", None), "run", None)
    if inner is None:
        log.info("onnxruntime has no inner run; models are run the slower way")
        return public
    tensors = {
        name: _to_text(name, tensor) if tensor.dtype == DTYPES[BYTES] else tensor
        for name, tensor in sample(signature, 1).items()
    }
    names = [spec.name for spec in signature.outputs]
    if same(_outcome(public, names, tensors), _outcome(inner, names, tensors)):
        return inner
    log.info("a model answers otherwise when it is run the faster way; it is run the slower way")
    return public


def sample(signature: Signature, rows: int) -> dict[str, Array]:
    """Input of the signature's shape: rising floats, zeros and empty texts."""
    tensors = {}
    for spec in signature.inputs:
        shape = [
            extent if extent != -1 else SAMPLE_EXTENT if axis else rows
            for axis, extent in enumerate(spec.shape)
        ]
        dtype = DTYPES[spec.datatype]
        if spec.datatype in FLOATS:
            count = int(np.prod(shape))
            tensors[spec.name] = np.linspace(0.1, 1.0, count).astype(dtype).reshape(shape)
        else:
            tensors[spec.name] = np.full(shape, b"" if spec.datatype == BYTES else 0, dtype)
    return tensors


def same(left: list[Array] | str, right: list[Array] | str) -> bool:
    """Whether two runs gave the same: arrays to rounding, or the same kind of error."""
    if isinstance(left, str) or isinstance(right, str):
        return left == right
    return len(left) == len(right) and all(
        one.dtype == two.dtype
        and one.shape == two.shape
        and bool(
            np.allclose(one, two, rtol=1e-5, atol=1e-6, equal_nan=True)
            if one.dtype.kind == "f"
            else (one == two).all()
        )
        for one, two in zip(left, right, strict=True)
    )


def _outcome(call: Call, names: Sequence[str], tensors: Tensors) -> list[Array] | str:
    """What a run gave, or the kind of error that it raised."""
    try:
        return call(names, tensors, _ORDINARY)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own
        return type(error).__name__


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
