"""Runs: several requests' tensors made one, run, and cut apart again."""

from collections.abc import Sequence
from math import prod

import numpy as np

from gateway.core.errors import EngineFailed, GatewayError
from gateway.core.tensors import BYTES, DTYPES, Array, Signature, Tensors
from gateway.ports import Engine
from gateway.serving.jobs import Job, Result
from gateway.serving.queueing import Shape
from gateway.serving.threads import Run, Source


class Shared:
    """Runs batches of one engine; may be called from several threads at once.

    `uniform` says that every row of the model has the same extent, so that rows are a measure of
    size, `row_bytes` each. Else the size of a request is its elements.
    """

    __slots__ = ("_checks_rows", "_names", "_outputs", "engine", "row_bytes", "uniform")

    def __init__(self, engine: Engine, *, checks_rows: bool) -> None:
        """`checks_rows`: an answer with another number of rows than the input is a failure."""
        self.engine = engine
        self._checks_rows = checks_rows
        self._outputs = [spec.name for spec in engine.signature.outputs]
        self._names = [spec.name for spec in engine.signature.inputs]
        self.uniform, self.row_bytes = _row_of(engine.signature)

    def size_of(self, tensors: Tensors) -> int:
        """Elements of a request, and the bytes of those that are texts."""
        return max(sum(_weight(tensor) for tensor in tensors.values()), 1)

    def bytes_of(self, tensors: Tensors) -> int:
        """About the memory that a request's tensors take."""
        return sum(max(tensor.nbytes, _weight(tensor)) for tensor in tensors.values())

    def shape_of(self, tensors: Tensors) -> Shape:
        """What requests that share a run have in common: all dimensions but the first."""
        return tuple([tensors[name].shape[1:] for name in self._names])

    def run(self, batch: Sequence[Job], rows: int) -> Result:
        """Run a batch of so many rows; called on the loop or in a thread, and never raises."""
        try:
            tensors = batch[0].tensors if len(batch) == 1 else _joined(batch, rows)
            results = self.engine.run(tensors, self._outputs)
        except GatewayError as error:
            return error.with_traceback(None)  # it would hold the batch, and the batch its caller
        except Exception as error:  # noqa: BLE001 - whatever an engine does costs this batch only
            failed = EngineFailed("The model failed to run on this input.")
            failed.__cause__ = error
            return failed
        if len(results) != len(self._outputs):
            return EngineFailed("The model returned another number of outputs than it has.")
        if self._checks_rows:
            for result in results:
                if result.shape[:1] != (rows,):
                    message = "The model returned another number of rows than it was given."
                    return EngineFailed(message)
        return results


class BatchRun(Run):
    """A batch in a thread."""

    __slots__ = ("_shared", "_waiting", "batch", "rows", "size")

    def __init__(self, source: Source, shared: Shared, batch: list[Job]) -> None:
        """`measure` says the rest once the batch is off the queue."""
        super().__init__(source)
        self.batch = batch
        self.rows = self.size = 0
        self._shared = shared
        self._waiting = len(batch)

    def measure(self, rows: int, size: int, expected_ns: float) -> None:
        """Note how much it is, and how long it should take."""
        self.rows, self.size, self.expected_ns = rows, size, expected_ns

    def execute(self) -> Result:
        """Runs in a thread; never raises."""
        return self._shared.run(self.batch, self.rows)

    def leave(self, _: Job) -> None:
        """Drop what this job would have got; without any jobs left nobody waits for the run."""
        self._waiting -= 1
        if not self._waiting:
            self.abandon()

    def abandon(self) -> None:
        """Nobody waits for this run any more: the place to stop the engine, where it can be."""


def cut(results: list[Array], batch: Sequence[Job], rows: int) -> list[list[Array]]:
    """Each job's own rows of each output, as views.

    Requires: each of `results` has `rows` rows, as many as the jobs have together.
    """
    if rows == len(batch) and all(job.rows == 1 for job in batch):
        # Four times as fast as a slice for each.
        columns = [list(result.reshape(rows, 1, *result.shape[1:])) for result in results]
        if len(columns) == 1:
            return [[part] for part in columns[0]]
        return [list(parts) for parts in zip(*columns, strict=True)]
    cuts: list[list[Array]] = []
    start = 0
    for job in batch:
        end = start + job.rows
        cuts.append([result[start:end] for result in results])
        start = end
    return cuts


def _joined(batch: Sequence[Job], rows: int) -> dict[str, Array]:
    return {
        name: _join([job.tensors[name] for job in batch], rows, first)
        for name, first in batch[0].tensors.items()
    }


def _join(parts: list[Array], rows: int, first: Array) -> Array:
    """Concatenate along the first dimension; small parts faster than numpy's own."""
    if first.dtype != object:
        try:
            joined = np.frombuffer(b"".join(parts), first.dtype)  # type: ignore[arg-type]
            return joined.reshape(rows, *first.shape[1:])
        except ValueError:  # a part whose elements do not lie one after the other
            pass
    return np.concatenate(parts)


def _weight(tensor: Array) -> int:
    if tensor.dtype == object:
        return tensor.size + sum(map(len, tensor.ravel().tolist()))
    return tensor.size


def _row_of(signature: Signature) -> tuple[bool, int]:
    """Whether all rows are of one extent, and the bytes of one."""
    size = 0
    for spec in signature.inputs:
        extents = spec.shape[1:] if signature.batched else spec.shape
        if spec.datatype == BYTES or -1 in extents:
            return False, 0
        size += prod(extents) * DTYPES[spec.datatype].itemsize
    return True, max(size, 1)
