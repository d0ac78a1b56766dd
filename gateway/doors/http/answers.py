"""From the end of a request to its HTTP response, with the headers that say who gave it."""

from typing import Final

from gateway.core.errors import NotReady
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferRequest, InferResponse
from gateway.core.oip.render import render_infer
from gateway.core.oip.v1 import render_predict
from gateway.doors.http.inference_head import HEADER_LENGTH, Headers
from gateway.doors.http.messages import BINARY, JSON, Response, error_response
from gateway.serving.calls import Answer
from gateway.telemetry import Kind


def infer_response(
    name: str,
    asked: InferRequest,
    answer: Answer,
    labels: tuple[str, ...],
    nonfinite: Nonfinite,
) -> Response:
    """The answer of an inference, or the error that it came to."""
    try:
        message = _message(name, asked, answer)
        named = dict.fromkeys(message.outputs, labels) if labels else {}
        rendered = render_infer(message, asked.outputs, asked.binary_default, nonfinite, named)
    except Exception as error:  # noqa: BLE001 - who answered is told all the same
        return _refused(answer, error)
    if rendered.json_bytes is None:
        return Response(_OK, rendered.body, [JSON, *_identity(answer)])
    split = (HEADER_LENGTH, b"%d" % rendered.json_bytes)
    return Response(_OK, rendered.body, [BINARY, split, *_identity(answer)])


def predict_response(
    name: str, asked: InferRequest, answer: Answer, nonfinite: Nonfinite, *, columnar: bool
) -> Response:
    """The answer of a V1 predict in the form of its request, or the error that it came to."""
    try:
        message = _message(name, asked, answer)
        text = render_predict(message, columnar=columnar, nonfinite=nonfinite)
    except Exception as error:  # noqa: BLE001 - who answered is told all the same
        return _refused(answer, error)
    return Response(_OK, text, [JSON, *_identity(answer)])


def _message(name: str, asked: InferRequest, answer: Answer) -> InferResponse:
    """The answer as a message; raises the error that it is instead."""
    if answer.error is not None or answer.variant is None:
        raise answer.error or NotReady(f"'{name}' did not answer.")
    return InferResponse(
        model_name=name,
        model_version=str(answer.variant.version),
        outputs=dict(answer.outputs),
        id=asked.id,
    )


def _refused(answer: Answer, error: Exception) -> Response:
    """An error that still says who failed, as far as it got."""
    response = error_response(error)
    response.headers.extend(_identity(answer))
    return response


def _identity(answer: Answer) -> Headers:
    """Who answered, as far as that is known."""
    if answer.kind is None or answer.variant is None or answer.prediction_id is None:
        headers = [(b"x-revision", b"%d" % answer.revision)]
        if answer.variant is not None:
            headers.append((b"x-model-version", b"%d" % answer.variant.version))
            headers.append((b"x-variant", answer.variant.name.encode("latin-1")))
        return headers
    known = _identities.get(answer.kind)
    if known is None:
        if len(_identities) >= _MAX_IDENTITIES:
            _identities.clear()
        known = _identities[answer.kind] = (
            (b"x-revision", b"%d" % answer.revision),
            (b"x-model-version", b"%d" % answer.variant.version),
            (b"x-variant", answer.variant.name.encode("latin-1")),
        )
    return [*known, (b"x-prediction-id", answer.prediction_id.encode("ascii"))]


_MAX_IDENTITIES: Final = 4096
_identities: dict[Kind, tuple[tuple[bytes, bytes], ...]] = {}
_OK: Final = 200
