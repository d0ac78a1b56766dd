"""From the end of a request to its HTTP response, with the headers that say who gave it.

What all answers of one kind of prediction share is made once: a compiled writer, and the headers.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from gateway.core.errors import NotReady
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferRequest, InferResponse, Rendered
from gateway.core.oip.v1 import render_predict
from gateway.core.oip.writing import Rows, Writer
from gateway.doors.http.inference_head import HEADER_LENGTH, Headers
from gateway.doors.http.messages import BINARY, JSON, Response, error_response
from gateway.serving.calls import Answer, Ran
from gateway.serving.live import Served
from gateway.telemetry import Kind

_OK: Final = 200
_MAX_STYLES: Final = 4096


class Style(Struct, frozen=True, eq=False):
    """What all answers of one kind share; `block` are their headers up to the prediction id."""

    writer: Writer
    identity: tuple[tuple[bytes, bytes], ...]
    block: bytes

    def rows(self, ran: Ran) -> Rows | None:
        """The texts of all answers of a run; None where each must be written by itself."""
        rows = ran.texts.get(self)
        if rows is None:
            rows = ran.texts[self] = self.writer.rows(ran.outputs) or False
        return rows if isinstance(rows, Rows) else None


class Answers:
    """Makes responses of answers; may be used by many threads at once."""

    def __init__(self, nonfinite: Nonfinite) -> None:
        """`nonfinite` says how JSON says NaN and infinities."""
        self._nonfinite: Nonfinite = nonfinite
        self._styles: dict[Kind, Style] = {}

    def infer(self, served: Served, asked: InferRequest, answer: Answer) -> Response:
        """The response to an inference, or the error that it came to."""
        kind = answer.kind
        try:
            if answer.error is not None:
                raise answer.error
            style = self.style(served, kind)
            rows = None if answer.ran is None else style.rows(answer.ran)
            text = None if rows is None else rows.write(answer.index, asked)
            if text is None:
                answer.settle()
                rendered = style.writer.write(answer.outputs, asked)
            else:
                rendered = Rendered(text)
        except Exception as error:  # noqa: BLE001 - who answered is told all the same
            return _refused(answer, error)
        prediction_id = (answer.prediction_id or "").encode("ascii")
        headers = [JSON, *style.identity, (b"x-prediction-id", prediction_id)]
        if rendered.json_bytes is not None:
            headers[:1] = [BINARY, (HEADER_LENGTH, b"%d" % rendered.json_bytes)]
        if answer.cache:
            headers.append(_cache_header(answer))
        return Response(_OK, rendered.body, headers)

    def predict(
        self, served: Served, asked: InferRequest, answer: Answer, *, columnar: bool
    ) -> Response:
        """The response to a V1 predict in the form of its request, or the error it came to."""
        try:
            if answer.error is not None:
                raise answer.error
            answer.settle()
            message = InferResponse(
                model_name=served.plan.endpoint,
                model_version=_version(answer),
                outputs=dict(answer.outputs),
                id=asked.id,
            )
            text = render_predict(message, columnar=columnar, nonfinite=self._nonfinite)
        except Exception as error:  # noqa: BLE001 - who answered is told all the same
            return _refused(answer, error)
        headers = [JSON, *identity_of(answer)]
        return Response(_OK, text, headers)

    def style(self, served: Served, kind: Kind | None) -> Style:
        """What the answers of a kind share.

        Raises:
            NotReady: there is no kind: nobody answered.
        """
        if kind is None:
            message = f"'{served.plan.endpoint}' did not answer."
            raise NotReady(message)
        return self._styles.get(kind) or self._new_style(served, kind)

    def _new_style(self, served: Served, kind: Kind) -> Style:
        loaded = served.loaded.get(kind.version) or served.pinnable[kind.version]
        signature = loaded.artifact.manifest.signature
        labels: Mapping[str, tuple[str, ...]] = {}
        if served.labels:
            labels = dict.fromkeys((spec.name for spec in signature.outputs), served.labels)
        version = str(kind.version)
        identity = (
            (b"x-revision", b"%d" % kind.revision),
            (b"x-model-version", version.encode("ascii")),
            (b"x-variant", kind.variant.encode("latin-1")),
        )
        block = b"".join(b"%b: %b\r\n" % header for header in (JSON, *identity))
        writer = Writer(kind.endpoint, version, signature, self._nonfinite, labels)
        style = Style(writer, identity, block + b"x-prediction-id: ")
        if len(self._styles) >= _MAX_STYLES:
            self._styles.clear()
        self._styles[kind] = style
        return style


def identity_of(answer: Answer) -> Headers:
    """Who answered, as far as that is known."""
    headers = [(b"x-revision", b"%d" % answer.revision)]
    if answer.variant is not None:
        headers.append((b"x-model-version", b"%d" % answer.variant.version))
        headers.append((b"x-variant", answer.variant.name.encode("latin-1")))
    if answer.prediction_id is not None:
        headers.append((b"x-prediction-id", answer.prediction_id.encode("ascii")))
    if answer.cache:
        headers.append(_cache_header(answer))
    return headers


def _cache_header(answer: Answer) -> tuple[bytes, bytes]:
    """What the response cache made of the request."""
    return b"x-cache", answer.cache.encode("ascii")


def _version(answer: Answer) -> str:
    return "" if answer.variant is None else str(answer.variant.version)


def _refused(answer: Answer, error: Exception) -> Response:
    """An error that still says who failed, as far as it got."""
    response = error_response(error)
    response.headers.extend(identity_of(answer))
    return response
