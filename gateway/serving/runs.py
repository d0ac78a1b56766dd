"""Runs: several requests' tensors made one, run, and cut apart again."""

import operator
from collections.abc import Sequence
from math import prod

import numpy as np

from gateway.core.errors import EngineFailed, GatewayError, InvalidOutput
from gateway.core.tensors import BYTES, DTYPES, Array, Tensors, TensorSpec
from gateway.ports import Engine, Stop
from gateway.serving.jobs import Job, Result
from gateway.serving.queueing import Shape
from gateway.serving.threads import Run, Source


class Shared:
    """Runs batches of one engine; may be called from several threads at once.

    `uniform` says that every row of the model has the same extent, so that rows are a measure of
    size, `row_bytes` each. Else the size of a request is its elements, and the bytes of its texts.
    """

    __slots__ = (
        "_checks_rows",
        "_fixed",
        "_names",
        "_outputs",
        "_texts",
        "engine",
        "row_bytes",
        "uniform",
    )

    def __init__(self, engine: Engine, *, checks_rows: bool) -> None:
        """`checks_rows`: an answer with another number of rows than the input is a failure."""
        self.engine = engine
        self._checks_rows = checks_rows
        self._outputs = [spec.name for spec in engine.signature.outputs]
        self._names = [spec.name for spec in engine.signature.inputs]
        inputs, batched = engine.signature.inputs, engine.signature.batched
        rows = [_extents(spec, batched=batched) for spec in inputs]
        self._texts = frozenset(spec.name for spec in inputs if spec.datatype == BYTES)
        self._fixed = not any(-1 in extents for extents in rows)
        self.uniform = self._fixed and not self._texts
        widths = [DTYPES[spec.datatype].itemsize for spec in inputs]
        self.row_bytes = max(sum(map(operator.mul, map(prod, rows), widths)), 1)

    def weigh(self, tensors: Tensors) -> tuple[int, int]:
        """Size of a request, its elements and the bytes of texts; and about the memory it takes."""
        size = memory = 0
        for name in self._names:
            tensor = tensors[name]
            size += tensor.size
            memory += tensor.nbytes
            if name in self._texts:
                text = len(tensor.item()) if tensor.size == 1 else _text_bytes(tensor)
                size += text
                memory += text
        return size or 1, memory

    def shape_of(self, tensors: Tensors) -> Shape:
        """What requests that share a run have in common: all dimensions but the first."""
        if self._fixed:
            return ()
        return tuple([tensors[name].shape[1:] for name in self._names])

    def run(self, batch: Sequence[Job], rows: int, stop: Stop | None = None) -> Result:
        """Run a batch of so many rows; called on the loop or in a thread, and never raises.

        `stop` ends it early; to be able to be stopped costs a run a little.
        """
        try:
            tensors = batch[0].tensors if len(batch) == 1 else _joined(batch, rows)
            if stop is None:
                results = self.engine.run(tensors, self._outputs)
            else:
                results = self.engine.run_until(tensors, self._outputs, stop)
            return self._checked(results, rows)
        except GatewayError as error:
            return error.with_traceback(None)  # it would hold the batch, and the batch its caller
        except Exception as error:  # noqa: BLE001 - whatever an engine does costs this batch only
            failed = EngineFailed("The model failed to run on this input.")
            failed.__cause__ = error
            return failed

    def _checked(self, results: list[Array], rows: int) -> Result:
        """What a run gave, or why it cannot be that."""
        if len(results) != len(self._outputs):
            return InvalidOutput("The model returned another number of outputs than it has.")
        if self._checks_rows:
            for result in results:
                if result.shape[:1] != (rows,):
                    message = "The model returned another number of rows than it was given."
                    return InvalidOutput(message)
        return results


class BatchRun(Run):
    """A batch in a thread."""

    __slots__ = ("_shared", "_stop", "_waiting", "batch", "rows", "size")

    def __init__(self, source: Source, shared: Shared, batch: list[Job]) -> None:
        """`measure` says the rest once the batch is off the queue."""
        super().__init__(source)
        self.batch = batch
        self.rows = self.size = 0
        self._shared = shared
        self._stop = Stop()
        self._waiting = len(batch)

    def measure(self, rows: int, size: int, expected_ns: float) -> None:
        """Note how much it is, and how long it should take."""
        self.rows, self.size, self.expected_ns = rows, size, expected_ns

    def execute(self) -> Result:
        """Runs in a thread; never raises."""
        return self._shared.run(self.batch, self.rows, self._stop)

    def leave(self, _: Job) -> None:
        """Drop what this job would have got; end the run when nobody waits for it any more."""
        self._waiting -= 1
        if not self._waiting:
            self._stop.stop()


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


def _text_bytes(tensor: Array) -> int:
    return sum(map(len, tensor.ravel().tolist()))


def _extents(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """What one row is of an input; all of it where there are no rows."""
    return spec.shape[1:] if batched else spec.shape
