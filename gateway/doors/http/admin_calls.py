"""What the admin door passes around: its parts, its operations and one call of one of them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import msgspec

from gateway.control.bundles import Bundles
from gateway.control.cards import Cards
from gateway.control.conditions import ANY_DOCUMENT, NO_DOCUMENT
from gateway.control.experiments import Experiments
from gateway.control.following import MlflowDesk
from gateway.control.gates import Gates
from gateway.control.registry import Change, Registry
from gateway.control.registry import Request as Asked
from gateway.control.reports import Reports
from gateway.control.retention import Retainer
from gateway.control.webhooks import Webhooks
from gateway.control.whatif import WhatIfs
from gateway.control.wishes import Wishes
from gateway.core.access import Principal, Token
from gateway.core.errors import Conflict, InvalidRequest, excerpt
from gateway.core.predictions import SigningKeys
from gateway.core.principals import Action
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import (
    JSON,
    Response,
    error_response,
    header_values,
)
from gateway.ports import DataPlane, Store
from gateway.settings import AdminSettings

OPEN: Final = "open"
"""The scope of what anybody may ask for."""
MAX_QUERY_FIELDS: Final = 64
MAX_BODY_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """What the admin door needs of its process.

    `status` is the control plane's document, `metrics` the page for Prometheus. `tokens` are
    those that are good now; it is asked at each request and must be cheap. `keys` are those that
    this host signs with; `rotate_keys` takes who asks. `clock` is in monotonic seconds.
    `mlflow` is None where no registry is followed.
    """

    registry: Registry
    experiments: Experiments
    bundles: Bundles
    gates: Gates
    wishes: Wishes
    reports: Reports
    whatifs: WhatIfs
    retainer: Retainer
    cards: Cards
    webhooks: Webhooks
    store: Store
    data_plane: DataPlane
    status: Callable[[], Awaitable[Mapping[str, Any]]]
    metrics: Callable[[], bytes]
    tokens: Callable[[], tuple[Token, ...]]
    keys: Callable[[], SigningKeys | None]
    rotate_keys: Callable[[str], Awaitable[SigningKeys]]
    settings: AdminSettings
    clock: Callable[[], float]
    mlflow: MlflowDesk | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter that an operation knows; a `flag` may stand without a value."""

    name: str
    summary: str
    kind: Literal["text", "integer", "flag"] = "text"
    required: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One authorised request, read and within bounds. `document` is the decoded body."""

    parts: AdminParts
    principal: Principal | None
    path: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Headers
    document: Any = None

    def text(self, name: str) -> str | None:
        """A query parameter's value, None if it was not given."""
        values = self.query.get(name)
        return values[0] if values else None

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number within bounds, None if it was not given.

        Raises:
            InvalidRequest: anything else.
        """
        stated = self.text(name)
        if stated is None:
            return None
        digits = stated.isascii() and stated.isdigit() and len(stated) <= len(str(high))
        if not digits or not low <= int(stated) <= high:
            message = f"'{name}' is '{excerpt(stated)}'; it must be {low} to {high}."
            raise InvalidRequest(message)
        return int(stated)

    def flag(self, name: str) -> bool:
        """Whether a flag is set: `?name`, `?name=1` or `?name=true`.

        Raises:
            InvalidRequest: any other value than these, `0` and `false`.
        """
        stated = self.text(name)
        if stated is None or stated in ("0", "false"):
            return False
        if stated in ("", "1", "true"):
            return True
        message = f"'{name}' is '{excerpt(stated)}'; it is 'true' or 'false'."
        raise InvalidRequest(message)

    @property
    def actor(self) -> str:
        """Who asks; empty where anybody may."""
        return "" if self.principal is None else self.principal.name

    def asked(
        self, reason: str, *, allow_signature_change: bool = False, override: bool = False
    ) -> Asked:
        """Who asks for a change, why, and under which condition."""
        return Asked(
            actor=self.actor,
            reason=reason,
            if_match=_condition(self.headers),
            allow_signature_change=allow_signature_change,
            override=override,
            groups=() if self.principal is None else self.principal.groups,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the table: what may be asked for, who may, and what it looks like.

    `body`, `answer` and `preview` are types for which the OpenAPI document holds a schema;
    `preview` is what a dry run answers instead. `answer` is None where it is no JSON document.
    A body holds at most `max_body` bytes.
    """

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    scope: str
    action: Action
    name: str
    summary: str
    handle: Callable[[Call], Awaitable[Response]]
    query: tuple[Query, ...] = ()
    body: Any = None
    max_body: int = MAX_BODY_BYTES
    answer: Any = None
    preview: Any = None


def answer(document: object, *, revision: int | None = None, etag: str | None = None) -> Response:
    """A JSON answer with the revision and the ETag that it speaks of."""
    headers: Headers = [JSON]
    if revision is not None:
        headers.append((b"x-revision", b"%d" % revision))
    if etag is not None:
        headers.append(_etag_header(etag))
    return Response(200, msgspec.json.encode(document), headers)


async def changed(call: Call, target: str, doing: Awaitable[Change]) -> Response:
    """The answer to a write; one that came too late is told the ETag that stands."""
    try:
        change = await doing
    except Conflict as error:
        refused = error_response(error)
        etag = call.parts.registry.etag(target)
        if etag is not None:
            refused.headers.append(_etag_header(etag))
        return refused
    document = Changed(change.revision, change.etag, change.entry is not None)
    return answer(document, revision=change.revision, etag=change.etag)


def read_query(raw: bytes, known: tuple[Query, ...]) -> dict[str, list[str]]:
    """Read a query string, so that a slip in a name is never taken for its absence.

    Raises:
        InvalidRequest: not UTF-8, too many fields, an unknown or missing one, or one given twice.
    """
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError as error:
        message = f"The query cannot be read; it holds at most {MAX_QUERY_FIELDS} fields in UTF-8."
        raise InvalidRequest(message) from error
    table = {query.name: query for query in known}
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        query = table.get(name)
        if query is None:
            message = f"The query parameter '{excerpt(name)}' is not known here."
            raise InvalidRequest(message)
        found.setdefault(name, []).append(value)
        if len(found[name]) > 1 and not query.many:
            message = f"The query parameter '{name}' is given twice."
            raise InvalidRequest(message)
    for query in known:
        if query.required and query.name not in found:
            message = f"The query parameter '{query.name}' is missing."
            raise InvalidRequest(message)
    return found


def _etag_header(etag: str) -> tuple[bytes, bytes]:
    """An ETag as HTTP wants it."""
    return (b"etag", b'"%s"' % etag.encode())


def _condition(headers: Headers) -> str | None:
    """The ETag that the document must have; see `gateway.control.registry.Request`."""
    wanted = header_values(headers, b"if-match")
    absent = header_values(headers, b"if-none-match")
    if not wanted and not absent:
        return None
    if not wanted and absent == [b"*"]:
        return NO_DOCUMENT
    if absent or len(wanted) > 1:
        message = "Send one If-Match, or 'If-None-Match: *' for a document that is not there yet."
        raise InvalidRequest(message)
    stated = wanted[0].strip()
    if stated == b"*":
        return ANY_DOCUMENT
    bare = stated.removeprefix(b'"').removesuffix(b'"')
    if not bare.isalnum():
        message = "If-Match holds one ETag in quotes, or '*'."
        raise InvalidRequest(message)
    return bare.decode("ascii")
