"""Trials: checks that load a version and run it on made-up inputs, as a worker would."""

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from gateway.adapters.onnx.engine import OnnxEngine, sample
from gateway.adapters.onnx.loading import open_session, read_signature, session_options
from gateway.adapters.onnx.memory import trim_memory
from gateway.adapters.sandbox.measuring import WORST, apart
from gateway.adapters.sandbox.static_checks import failed, passed, skipped
from gateway.adapters.sandbox.subject import Subject
from gateway.adapters.sandbox.wire import name_fault
from gateway.core.errors import EngineFailed, GatewayError, TooLarge
from gateway.core.inspections import BatchCost
from gateway.core.reviews import CheckResult, Outcome
from gateway.core.tensors import Array, has_nonfinite

_NO_MEMORY: Final = ("bad_alloc", "allocate", "mmap")
REPEATS_APART: Final = 1e-6
"""Relative difference from which on an answer is another one than before."""
ROWS_APART: Final = 1e-3
"""And than the same row's in another batch: kernels add up large batches in another order."""
TOGETHER: Final = 4
SIZES: Final = (1, 8, 32, 128)
"""Rows that are timed."""
SIZE_NS: Final = 20_000_000
"""Each size is run for so long, or so often, but not less than a few times."""
MOST_RUNS: Final = 200
LEAST_RUNS: Final = 3


def loads(subject: Subject) -> CheckResult:
    """It is opened by onnxruntime with the options of serving."""
    subject.model = None
    subject.warm_library()
    trim_memory()
    subject.memory.begin()
    try:
        signature = read_signature(open_session(str(subject.path), session_options(1)))
    except EngineFailed as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or any(word in str(cause) for word in _NO_MEMORY):
            return failed("It needs more memory to be loaded than an inspection may take.")
        return failed(str(error))
    for specs in (signature.inputs, signature.outputs):
        fault = name_fault([spec.name for spec in specs])
        if fault:
            return failed(f"Names of its tensors: {fault}")
    subject.note(signature=signature)
    batched = "shares" if signature.batched else "does not share"
    return passed(f"onnxruntime opens it; it {batched} a first dimension of rows.")


def runs(subject: Subject) -> CheckResult:
    """It answers zeros, ones and random numbers, one row and two."""
    count = 0
    for what, tensors in _made(subject):
        try:
            subject.answers.append(subject.run(tensors))
        except (TooLarge, MemoryError):
            summary = f"It needs more memory for {what} than an inspection may take."
            return CheckResult(Outcome.FAILED, summary, forced=True)
        except GatewayError as error:
            return failed(f"It does not answer {what}: {error}")
        count += 1
    return passed(f"It answers {count} made-up inputs.")


def finite(subject: Subject) -> CheckResult:
    """No NaN or infinity in these answers."""
    if subject.order.allow_nonfinite:
        return skipped("Its model may answer with numbers that are not finite.")
    if any(has_nonfinite(output) for answer in subject.answers for output in answer):
        return failed("It answers finite inputs with numbers that are not finite.")
    return passed("Its answers are finite.")


def determinism(subject: Subject) -> CheckResult:
    """The same answer to the same input, in this session and in another."""
    tensors = subject.random(2)
    first = subject.run(tensors)
    again = subject.run(tensors)
    subject.reopen()
    elsewhere = subject.run(tensors)
    worst = max(apart(first, again), apart(first, elsewhere))
    if worst > REPEATS_APART:
        return failed(f"Its answers to one input differ by {_told(worst)}.", worst)
    return passed("It answers one input alike, also in a session of its own.", worst)


def batching(subject: Subject) -> CheckResult:
    """A row's answer does not depend on the rows beside it."""
    if not subject.signature.batched:
        return skipped("It shares no first dimension of rows.")
    tensors = subject.random(TOGETHER)
    together = subject.run(tensors)
    if any(output.shape[:1] != (TOGETHER,) for output in together):
        return failed("An output has not as many rows as the input.", WORST)
    alone = [
        subject.run({name: tensor[row : row + 1] for name, tensor in tensors.items()})
        for row in range(TOGETHER)
    ]
    if any(output.shape[:1] != (1,) for answer in alone for output in answer):
        return failed("An output has not as many rows as the input.", WORST)
    rejoined = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    worst = apart(together, rejoined)
    if worst > ROWS_APART:
        return failed(f"A row's answer changes by {_told(worst)} with the rows beside it.", worst)
    return passed("A row's answer does not depend on the rows beside it.", worst)


def latency(subject: Subject) -> CheckResult:
    """What runs take of a processor, by rows."""
    engine = subject.engine()
    costs: list[BatchCost] = []
    for rows in SIZES if subject.signature.batched else (1,):
        try:
            costs.append(_cost(subject, engine, rows))
        except TooLarge:
            break
        if costs[-1].p50_ms * 1e6 * LEAST_RUNS > SIZE_NS:
            break  # larger ones would take longer still
    if not costs:
        return failed("It needs more memory for one row than an inspection may take.")
    subject.note(costs=tuple(costs))
    p99 = costs[0].p99_ms
    return passed(f"One row takes {p99:.3g} ms of a processor at the 99th percentile.", p99)


def memory(subject: Subject) -> CheckResult:
    """The peak of memory, loading and all runs together."""
    peak = subject.memory.peak_mb()
    subject.note(peak_mb=peak)
    return passed(f"Loading and running it took {peak:.4g} MiB at the most.", peak)


def _made(subject: Subject) -> Iterator[tuple[str, dict[str, Array]]]:
    signature = subject.signature
    yield "a sample", sample(signature, 1)
    if subject.is_short:
        return
    for rows in (1, 2) if signature.batched else (1,):
        words = "one row" if rows == 1 else f"{rows} rows"
        yield f"{words} of zeros", subject.zeros(rows)
        yield f"{words} of ones", subject.ones(rows)
        yield f"{words} of random numbers", subject.random(rows)


def _cost(subject: Subject, engine: OnnxEngine, rows: int) -> BatchCost:
    tensors = subject.random(rows)
    subject.run(tensors, engine)
    took: list[int] = []
    while len(took) < LEAST_RUNS or (len(took) < MOST_RUNS and sum(took) < SIZE_NS):
        # Of the processor; runs have one thread, and what else this host does is not counted.
        begun = time.thread_time_ns()
        subject.run(tensors, engine)
        took.append(time.thread_time_ns() - begun)
    p50, p99 = (round(float(np.percentile(took, share)) / 1e6, 6) for share in (50, 99))
    return BatchCost(rows=rows, p50_ms=p50, p99_ms=p99, runs=len(took))


def _told(difference: float) -> str:
    """A relative difference in words."""
    return "more than any number" if difference == WORST else f"a share of {difference:.3g}"
