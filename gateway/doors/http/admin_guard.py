"""The guard: who may enter, decided in one place before anything is routed.

What it decides depends on the Host, the token and, for what is open to anybody, on the whole path
and the method. No spelling of a path can therefore lead round it: whatever is not open needs a
known token, whether anything is there or not. What its bearer may do is asked once the operation
is known (`gateway.doors.http.admin`).
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from gateway.core.access import Principal, named_by_issuer
from gateway.core.errors import (
    Forbidden,
    InvalidRequest,
    Throttled,
    Unauthenticated,
    excerpt,
)
from gateway.doors.http.admin_calls import AdminParts
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import Message, header_values
from gateway.settings import LOOPBACK

log: Final = logging.getLogger(__name__)

READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
METRICS: Final = "/metrics"
MAX_FAILURES: Final = 20
WINDOW_S: Final = 60.0
MAX_PEERS: Final = 1024
SECRET_FIELDS: Final = frozenset(
    {"access_token", "api_key", "apikey", "auth", "authorization", "bearer", "key", "token"}
)


class Failures:
    """Counts the unknown tokens of each peer; after too many, further ones are put off.

    A window begins with a peer's first failure. The oldest peers are forgotten first, so that
    memory and work stay small whoever asks.
    """

    __slots__ = ("_clock", "_counts")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nobody failed yet; the clock is in monotonic seconds."""
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def check(self, peer: str) -> None:
        """Put off a peer that failed too often.

        Raises:
            Throttled: it may come back when its window is over.
        """
        began, count = self._counts.get(peer, (0.0, 0))
        if count >= MAX_FAILURES and self._clock() - began < WINDOW_S:
            message = "Too many unknown tokens came from this address; try again in a minute."
            raise Throttled(message)

    def note(self, peer: str) -> None:
        """Count one failure."""
        now = self._clock()
        began, count = self._counts.pop(peer, (now, 0))
        self._counts[peer] = (began, count + 1) if now - began < WINDOW_S else (now, 1)
        if len(self._counts) > MAX_PEERS:
            self._counts.popitem(last=False)


class Guard:
    """Admits requests. Holds nothing but the count of failures."""

    def __init__(self, parts: AdminParts, open_paths: frozenset[str]) -> None:
        """Guard an admin door.

        Args:
            parts: of the door.
            open_paths: what anybody may read, spelled exactly so.
        """
        settings = parts.settings
        self._parts = parts
        self._failures = Failures(parts.clock)
        self._open = set(open_paths)
        if settings.open_metrics and settings.host in LOOPBACK:
            self._open.add(METRICS)
        named = {*LOOPBACK, settings.host, *settings.allowed_hosts}
        self._hosts = {name.strip("[]").lower() for name in named}

    async def admit(self, scope: Message) -> Principal | None:
        """Who asks; None where anybody may.

        Raises:
            Forbidden: the Host is not ours, or an issuer's token names no principal.
            Unauthenticated: no token, one that is not good, or one in the query.
            NotReady: an issuer's token, and its keys are not to be had.
            Throttled: too many unknown tokens from there.
        """
        headers: Headers = scope["headers"]
        self._check_host(headers)
        _check_query(scope["query_string"])
        method, path = scope["method"], scope["path"]
        if path in self._open and method in READING:
            return None
        return await self._recognise(scope, headers)

    async def _recognise(self, scope: Message, headers: Headers) -> Principal:
        """The holder of the token; nobody else's failures keep a known token out.

        Many callers share an address, so one that guesses must not lock out one that knows. A
        token has too many digits to be guessed; what is throttled is the noise.
        """
        shown = header_values(headers, b"authorization")
        try:
            only = shown[0] if len(shown) == 1 else None
            foreign = _foreign(only) if self._parts.issuer is not None else None
            if foreign is None:
                return self._parts.tokens().principal(only, self._parts.now())
            return await self._ask_issuer(foreign)
        except Unauthenticated as error:
            if shown:
                self._count(scope, error)
            raise

    async def _ask_issuer(self, token: bytes) -> Principal:
        issuer = self._parts.issuer
        if issuer is None:
            message = "No issuer of tokens is configured here."
            raise Unauthenticated(message)
        identity = await issuer.identify(token)
        snapshot = self._parts.registry.snapshot
        return named_by_issuer(snapshot, identity.name, identity.groups)

    def _count(self, scope: Message, error: Unauthenticated) -> None:
        """Note and log an unknown token, unless too many came from there already."""
        peer = (scope.get("client") or ("",))[0]
        self._parts.denials.stranger(peer)
        self._failures.check(peer)
        self._failures.note(peer)
        facts = (excerpt(scope["method"]), excerpt(scope["path"]), excerpt(peer))
        log.warning("%s %s from '%s' was refused: %s", *facts, error)

    def _check_host(self, headers: Headers) -> None:
        """Names that a browser may be led to by someone else's DNS are not ours."""
        stated = header_values(headers, b"host")
        if len(stated) != 1 or _bare(stated[0].decode("latin-1")) not in self._hosts:
            message = (
                "The Host header names another place; the setting admin.allowed_hosts lists "
                "the names that this listener answers to."
            )
            raise Forbidden(message)


def _foreign(authorization: bytes | None) -> bytes | None:
    """A token of the form that issuers give: three parts with dots between; None for others."""
    scheme, _, token = (authorization or b"").partition(b" ")
    is_foreign = scheme.lower() == b"bearer" and token.count(b".") == _DOTS
    return token if is_foreign and not token.startswith(b"tilt_") else None


def _bare(host: str) -> str:
    """The lower-case name without its port and brackets; empty for what is no host."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return name.lower() if bracket and (not port or port[:1] == ":") else ""
    name, colon, port = host.partition(":")
    return name.lower() if not colon or port.isdigit() else ""


_DOTS: Final = 2


def _check_query(raw: bytes) -> None:
    """A token in an address ends up in logs and histories, so it is refused, good or not."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=64)
    except ValueError as error:
        message = "The query holds too many fields."
        raise InvalidRequest(message) from error
    if any(name.strip().lower() in SECRET_FIELDS for name, _ in pairs):
        message = "Send the token in the Authorization header, never in the address."
        raise Unauthenticated(message)
