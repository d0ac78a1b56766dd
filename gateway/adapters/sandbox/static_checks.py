"""Checks on the files alone: nothing of the version is run, and onnxruntime sees none of it."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from gateway.adapters.sandbox.anatomy import MAX_BYTES, Model
from gateway.adapters.sandbox.subject import MODEL_FILE, Subject
from gateway.adapters.sandbox.wire import name_fault
from gateway.core.models import bundle_digest, is_name
from gateway.core.reviews import CheckResult, Outcome

_CHUNK: Final = 1 << 20


def passed(summary: str, measure: float | None = None) -> CheckResult:
    """A check that was passed."""
    return CheckResult(Outcome.PASSED, summary, measure)


def failed(summary: str, measure: float | None = None) -> CheckResult:
    """A check that was not."""
    return CheckResult(Outcome.FAILED, summary, measure)


def skipped(summary: str) -> CheckResult:
    """A check that could not be made, or had nothing to look at."""
    return CheckResult(Outcome.SKIPPED, summary)


def files(subject: Subject) -> CheckResult:
    """Regular files with one name each, whose digests are those that were copied."""
    order = subject.order
    if MODEL_FILE not in {file.path for file in order.files}:
        return failed(f"It has no {MODEL_FILE}.")
    for file in order.files:
        if not is_name(file.path):
            return failed("A file has no proper name.")
        fault = _file_fault(Path(order.folder) / file.path, file.size, file.sha256)
        if fault:
            return failed(f"'{file.path}' {fault}.")
    if bundle_digest(order.files) != order.digest:
        return failed("Its digest is not that of its files.")
    total = sum(file.size for file in order.files)
    return passed(f"{_counted(len(order.files), 'file')}, {total} bytes, as copied.")


def form(subject: Subject) -> CheckResult:
    """It parses, within bounds, and is of a time that is known here."""
    if subject.path.stat().st_size > MAX_BYTES:
        return failed(f"{MODEL_FILE} has more than {MAX_BYTES} bytes.")
    subject.model = Model(subject.path.read_bytes())
    subject.anatomy = subject.model.anatomy()
    nodes = len(subject.model.nodes)
    return passed(
        f"ONNX of IR version {subject.anatomy.ir_version} with {_counted(nodes, 'node')}."
    )


def domains(subject: Subject) -> CheckResult:
    """Operators of allowed domains only."""
    return passed(subject.parsed().check_domains())


def external_data(subject: Subject) -> CheckResult:
    """Weights in other files lie within the version's own."""
    sizes = {file.path: file.size for file in subject.order.files if file.path != MODEL_FILE}
    return passed(subject.parsed().check_external(sizes))


def names(subject: Subject) -> CheckResult:
    """Inputs and outputs are few enough and properly named."""
    inputs, outputs = subject.parsed().names()
    for what, given in (("inputs", inputs), ("outputs", outputs)):
        fault = name_fault(given)
        if fault:
            return failed(f"Names of its {what}: {fault}")
    told = f"{_counted(len(inputs), 'input')} and {_counted(len(outputs), 'output')}"
    return passed(f"{told} with proper names.")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _file_fault(path: Path, size: int, digest: str) -> str | None:
    """What is wrong with a file, to be said after its name."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "is a link, or cannot be opened"
    with os.fdopen(held, "rb") as file:
        seen = os.fstat(held)
        if not stat.S_ISREG(seen.st_mode):
            return "is no regular file"
        if seen.st_nlink != 1:
            return "has another name elsewhere"
        if seen.st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != digest:
            return "is not what was copied"
    return None
