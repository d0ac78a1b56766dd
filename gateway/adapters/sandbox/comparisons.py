"""Comparisons: checks that hold a version's answers against others, expected or the champion's."""

import hashlib
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from gateway.adapters.sandbox.anatomy import Fault
from gateway.adapters.sandbox.measuring import WORST
from gateway.adapters.sandbox.static_checks import failed, passed, skipped
from gateway.adapters.sandbox.subject import MODEL_FILE, Subject
from gateway.core.compare import Tolerance, compare
from gateway.core.errors import Conflict, GatewayError, excerpt
from gateway.core.goldens import GOLDEN_FILE, MAX_GOLDEN_BYTES, read_golden
from gateway.core.inspections import GoldenAnswer, GoldenRequest
from gateway.core.models import check_compatible
from gateway.core.reviews import CheckResult
from gateway.core.tensors import Array

HEAD: Final = 8
"""Values of a golden answer that are kept to be looked at."""
AGREES_LEAST: Final = 0.5
"""A version that says the same as the champion less often is another model."""
AGREEMENT_S: Final = 10.0
"""After so long no further input is asked."""


def golden(subject: Subject) -> CheckResult:
    """It answers the golden requests as expected."""
    requests = _golden(subject)
    if not requests:
        return skipped("It has no golden requests.")
    worst, missed, answers = 0.0, [], []
    for index, one in enumerate(requests):
        name = excerpt(one.name or str(index + 1))
        try:
            outputs = _ask(subject, one.request)
        except GatewayError as error:
            missed.append(f"'{name}' was not answered: {error}")
            continue
        answers.append(_kept(name, outputs))
        difference, fault = _hold(one, outputs)
        worst = max(worst, difference)
        if fault:
            missed.append(f"'{name}': {fault}")
    subject.note(golden=tuple(answers))
    if missed:
        summary = f"{len(missed)} of {len(requests)} golden requests failed. {missed[0]}"
        return failed(summary, worst if answers else WORST)
    return passed(f"It answers {len(requests)} golden requests as expected.", worst)


def signature(subject: Subject) -> CheckResult:
    """Callers of the champion would not notice another set of tensors."""
    if subject.order.champion_signature is None:
        return skipped("No other version of its model serves.")
    try:
        check_compatible(subject.order.champion_signature, subject.signature)
    except Conflict as error:
        return failed(str(error))
    return passed("Its signature is compatible with that of the version that serves.")


def agreement(subject: Subject) -> CheckResult:
    """On recent inputs, how often it says the same as the champion."""
    order = subject.order
    if order.champion is None:
        return skipped("No other version of its model serves.")
    if not order.inputs:
        return skipped("No recent inputs are kept.")
    asked, agreed, unanswered = _ask_both(subject, Path(order.champion) / MODEL_FILE)
    if not asked:
        return skipped("The version that serves answers none of the recent inputs.")
    share = agreed / asked
    summary = f"It agrees with the version that serves on {agreed} of {asked} recent inputs."
    if unanswered:
        return failed(f"{summary} It did not answer {unanswered}.", share)
    return passed(summary, share) if share >= AGREES_LEAST else failed(summary, share)


def _ask_both(subject: Subject, path: Path) -> tuple[int, int, int]:
    """Inputs that the champion answered; of these, both alike; and only the champion."""
    champion = subject.fresh(path)
    names = [spec.name for spec in champion.signature.outputs]
    asked = agreed = unanswered = 0
    deadline = time.monotonic() + AGREEMENT_S
    for request in subject.order.inputs:
        if time.monotonic() > deadline:
            break
        try:
            tensors = subject.read(request, champion.signature)
            primary = dict(zip(names, subject.run(tensors, champion), strict=True))
        except GatewayError:
            continue  # says nothing of the candidate
        asked += 1
        try:
            agreed += compare(primary, _ask(subject, request), Tolerance()).agrees
        except GatewayError:
            unanswered += 1
    return asked, agreed, unanswered


def _golden(subject: Subject) -> tuple[GoldenRequest, ...]:
    """Those of the order, or else those of the version's own file."""
    if subject.order.golden or GOLDEN_FILE not in {file.path for file in subject.order.files}:
        return subject.order.golden
    path = Path(subject.order.folder) / GOLDEN_FILE
    if path.stat().st_size > MAX_GOLDEN_BYTES:
        raise Fault(f"{GOLDEN_FILE} has more than {MAX_GOLDEN_BYTES} bytes.")
    try:
        return read_golden(path.read_bytes())
    except GatewayError as error:
        raise Fault(str(error)) from None


def _ask(subject: Subject, request: dict[str, Any]) -> dict[str, Array]:
    outputs = subject.run(subject.read(request, subject.signature))
    names = [spec.name for spec in subject.signature.outputs]
    return dict(zip(names, outputs, strict=True))


def _kept(name: str, outputs: dict[str, Array]) -> GoldenAnswer:
    digests, heads = {}, {}
    for output, tensor in outputs.items():
        plain = [_plain(value) for value in tensor.reshape(-1)[:HEAD].tolist()]
        is_text = tensor.dtype.kind == "O"
        content = msgspec.msgpack.encode(tensor.tolist()) if is_text else tensor.tobytes()
        digests[output] = hashlib.sha256(content).hexdigest()
        heads[output] = tuple(plain)
    return GoldenAnswer(name=name, digests=digests, head=heads)


def _plain(value: object) -> object:
    return excerpt(value.decode(errors="replace")) if isinstance(value, bytes) else value


def _hold(one: GoldenRequest, outputs: dict[str, Array]) -> tuple[float, str | None]:
    """The greatest difference from what is expected, and what is wrong about it, if anything."""
    worst = 0.0
    for name, expected in one.expected.items():
        said = excerpt(name)
        if name not in outputs:
            return WORST, f"output '{said}' is none of the version's."
        tensor = outputs[name]
        values = _flat(expected)
        if len(values) != tensor.size:
            return WORST, f"output '{said}' has {tensor.size} values, not {len(values)}."
        if tensor.dtype.kind != "f":
            if [_plain(value) for value in tensor.reshape(-1).tolist()] != values:
                return WORST, f"output '{said}' is another."
            continue
        try:
            wanted = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return WORST, f"for output '{said}' something else than numbers is expected."
        got = tensor.reshape(-1).astype(np.float64)
        with np.errstate(all="ignore"):
            difference = np.abs(got - wanted)
            difference[(got == wanted) | (np.isnan(got) & np.isnan(wanted))] = 0.0
            within = difference <= one.absolute + one.relative * np.abs(wanted)
        largest = float(difference.max(initial=0.0))
        worst = max(worst, largest if np.isfinite(largest) else WORST)
        if not (within | (difference == 0)).all():
            return worst, f"output '{said}' differs by {largest:.4g}."
    return worst, None


def _flat(expected: object) -> list[Any]:
    """Nested lists, flattened; anything else is one value."""
    if not isinstance(expected, list):
        return [expected]
    flat: list[Any] = []
    for part in expected:
        flat += _flat(part) if isinstance(part, list) else [part]
    return flat
