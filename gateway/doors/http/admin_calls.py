"""What the admin door passes around: its parts, its operations and one call of one of them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import msgspec

from gateway.control.auditing import Auditing
from gateway.control.bundles import Bundles
from gateway.control.cards import Cards
from gateway.control.conditions import ANY_DOCUMENT, NO_DOCUMENT
from gateway.control.denials import Denials
from gateway.control.experiments import Experiments
from gateway.control.following import MlflowDesk
from gateway.control.gates import Gates
from gateway.control.principals import Principals
from gateway.control.registering import Registrar
from gateway.control.registry import Change, Registry
from gateway.control.registry import Request as Asked
from gateway.control.reports import Reports
from gateway.control.restoring import Restored
from gateway.control.retention import Retainer
from gateway.control.versions import Versions
from gateway.control.webhooks import Webhooks
from gateway.control.whatif import WhatIfs
from gateway.control.wishes import Wishes
from gateway.core.access import Denied, Principal, Tokens, require, standing
from gateway.core.errors import Conflict, InvalidRequest, excerpt
from gateway.core.predictions import SigningKeys
from gateway.core.principals import GROUP, Action
from gateway.core.snapshot import Snapshot
from gateway.core.subjects import About, models_about, models_in, models_uncovered
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import (
    JSON,
    Receive,
    Response,
    error_response,
    header_values,
    nothing_more,
)
from gateway.governance_ports import Issuer
from gateway.ports import DataPlane, Store
from gateway.settings import AdminSettings

MAX_QUERY_FIELDS: Final = 64
MAX_BODY_BYTES: Final = 256 * 1024
GATE_CLOSED: Final = "gate_closed"
"""The kind of a refusal by a gate, which is counted as a denial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """What the admin door needs of its process.

    `status` is the control plane's document, `metrics` the page for Prometheus. `tokens` are
    those that are good now; it is asked at each request and must be cheap. `issuer` verifies other
    tokens; None where none is configured. `denied` is told whom something was refused that they may
    not do, and on which model. `keys` are those that this host signs with; `rotate_keys` takes who
    asks, `restore` that and whether to say only what it would do. `clock` is in monotonic seconds,
    `now` in UTC seconds. `mlflow` is None where no registry is followed.
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
    registrar: Registrar
    versions: Versions
    auditing: Auditing
    denials: Denials
    restore: Callable[[Asked, bool], Awaitable[Restored]]
    store: Store
    data_plane: DataPlane
    status: Callable[[], Awaitable[Mapping[str, Any]]]
    metrics: Callable[[], bytes]
    principals: Principals
    tokens: Callable[[], Tokens]
    keys: Callable[[], SigningKeys | None]
    rotate_keys: Callable[[str], Awaitable[SigningKeys]]
    settings: AdminSettings
    clock: Callable[[], float]
    now: Callable[[], float]
    denied: Denied
    issuer: Issuer | None = None
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
    """One authorised request, read and within bounds. `document` is the decoded body.

    `receive` is for operations that take the body as it comes.
    """

    parts: AdminParts
    operation: "Operation"
    principal: Principal | None
    path: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Headers
    document: Any = None
    receive: Receive = field(default=nothing_more, repr=False)

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
    def _groups(self) -> tuple[str, ...]:
        """The principals of the groups in which an issuer says that who asks is."""
        groups = () if self.principal is None else self.principal.groups
        return tuple(f"{GROUP}{group}" for group in groups)

    def require(self, action: Action, *models: str) -> None:
        """Refuse what the operation's own action does not cover, by its body or its query.

        Without models it is about none in particular.

        Raises:
            Forbidden: who asks may not do that.
        """
        if self.principal is not None:
            require(self.principal, action, set(models) if models else None, self.parts.denied)

    def permit(self, snapshot: Snapshot) -> None:
        """Refuse the operation if who asks may not do it by this Snapshot.

        Raises:
            Forbidden, Unauthenticated: they may not, or not any more.
        """
        if self.principal is None:
            return
        who = standing(self.principal, snapshot)
        models = self.operation.models(snapshot, self.path, self.document)
        require(who, self.operation.action, models, self.parts.denied)

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
            groups=self._groups,
            permit=self.permit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the table: what may be asked for, who may, and what it looks like.

    `action` is asked of who asks, for every model that the operation is about: `about` says how
    that is found, by default from the path, and `also` what else a body names, if it does. What
    `is_open` anybody may ask for. `body`, `answer` and `preview` are types for which the OpenAPI
    document holds a schema; `preview` is what a dry run answers instead. `answer` is None where it
    is no JSON document. A body holds at most `max_body` bytes. `shown_once` are members of the
    answer that a repeat under the same Idempotency-Key does not tell again.
    One that `streams` reads its own body, as raw bytes.
    """

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    action: Action
    name: str
    summary: str
    handle: Callable[[Call], Awaitable[Response]]
    query: tuple[Query, ...] = ()
    body: Any = None
    max_body: int = MAX_BODY_BYTES
    answer: Any = None
    preview: Any = None
    about: About | None = None
    also: Callable[[Any], tuple[About, str] | None] | None = None
    is_open: bool = False
    shown_once: tuple[str, ...] = ()
    streams: bool = False

    @property
    def subject(self) -> tuple[About, str]:
        """What the operation is about, and the place in its path that names it."""
        places = [part[1:-1] for part in self.path.split("/") if part[:1] == "{"]
        about = self.about
        if about is None:
            parents = {"endpoints": About.ENDPOINT, "experiments": About.EXPERIMENT}
            parent = self.path.split("/{", 1)[0].rpartition("/")[2]
            about = parents.get(parent, About.NOTHING) if places else About.NOTHING
            about = About.MODEL if "model" in places else about
        if about is About.NOTHING:
            return about, ""
        return about, "model" if about is About.MODEL else places[0]

    def models(
        self, snapshot: Snapshot, path: Mapping[str, str], document: object = None
    ) -> frozenset[str] | None:
        """The models that a call is about, as far as its path and, once it is read, its body say.

        None where it is about no model in particular; see `models_about`.
        """
        about, place = self.subject
        name = path.get(place, "")
        found = models_about(snapshot, about, name)
        if found is None:
            return None
        if about is About.ENDPOINT and self.method == "DELETE":
            found |= models_uncovered(snapshot, name)
        if self.also is not None and document is not None:
            named = self.also(document)
            found |= frozenset() if named is None else models_about(snapshot, *named) or frozenset()
        return found | models_in(snapshot, document)


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
        if error.kind == GATE_CLOSED:
            actor = "" if call.principal is None else call.principal.name
            call.parts.denials.note(actor, GATE_CLOSED, target.removeprefix("models/"))
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
