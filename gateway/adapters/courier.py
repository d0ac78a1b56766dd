"""The courier: posts events to addresses that people wrote down, and to no others.

An address is resolved here, each result is checked, and the connection goes to the one that was
checked: what the name means a moment later does not matter. Redirects are not followed, proxies of
the environment are not used, and of an answer nobody reads more than its status.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from socket import SOCK_STREAM, getaddrinfo
from typing import Final, TypeAlias

import httpx
from msgspec import Struct

from gateway import __version__
from gateway.core.addresses import is_allowed, is_public
from gateway.core.errors import InvalidRequest
from gateway.core.webhooks import Posted

MAX_URL: Final = 2_048
MAX_PORT: Final = 65_535
MAX_ANSWER_BYTES: Final = 16_384
"""Read of an answer, so that its connection can be used again; beyond it, we hang up."""
IN_FLIGHT: Final = 8
"""Requests to one origin at once: fewer than connections, so that the pool never queues."""
CONNECTIONS: Final = 10
RESOLVING: Final = 8
"""Threads that look up names: their own, because a name server may keep each for half a minute."""
MAX_CLIENTS: Final = 64
STEPS: Final = 4
"""A request has four steps (pool, connect, write, read), each with a limit of its own."""
_PORTS: Final = {"https": 443, "http": 80}

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host; raises OSError where it has none."""


class CourierRules(Struct, frozen=True):
    """Where the courier goes: see the settings of webhooks."""

    allow_http: bool = False
    allow_hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0


class HttpCourier:
    """The `Courier` port on httpx, with a client for each origin. Requires an event loop."""

    def __init__(
        self,
        rules: CourierRules,
        now: Callable[[], float],
        *,
        context: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            rules: where it goes.
            now: UTC seconds, to understand a date in `Retry-After`.
            context: for https; the system's authorities if there is none.
            resolve: names to addresses; the system's way if there is none.
        """
        self._rules = rules
        self._now = now
        self._context = context
        self._names = ThreadPoolExecutor(RESOLVING, thread_name_prefix="tiltyard-names")
        self._resolve = resolve or self._ask
        self._clients: dict[tuple[str, str, int], _Client] = {}

    def check(self, url: str) -> None:
        """Refuse an address to which nothing would ever be sent.

        Raises:
            InvalidRequest: with a sentence that says why; no part of it is repeated.
        """
        read = self._read(url)
        with suppress(ValueError):
            ip_address(read.host)
            self._check_addresses(read.host, [read.host])

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        """Post once and say what became of it; takes bounded time and never raises for the net."""
        try:
            read = self._read(url)
            async with asyncio.timeout(self._rules.timeout_s):
                addresses = await self._resolve(read.host, _port_of(read))
            self._check_addresses(read.host, addresses)
        except InvalidRequest as error:
            return Posted(problem=str(error), refused=True)
        except (OSError, UnicodeError):
            return Posted(problem="The receiver's name has no address now.")
        client = await self._client(read)
        client.busy += 1
        try:
            async with client.turns:
                return await self._send(client.http, read, addresses[0], (headers, body))
        finally:
            client.busy -= 1

    async def close(self) -> None:
        """Close every connection."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.http.aclose()
        self._names.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, host: str, port: int) -> list[str]:
        """The system's way from a name to its addresses; an address is its own."""
        with suppress(ValueError):
            return [str(ip_address(host))]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._names, partial(getaddrinfo, host, port, type=SOCK_STREAM)
        )
        return [str(address[4][0]) for address in found]

    async def _send(
        self,
        client: httpx.AsyncClient,
        url: httpx.URL,
        address: str,
        parcel: tuple[Mapping[str, str], bytes],
    ) -> Posted:
        headers, body = parcel
        request = client.build_request(
            "POST",
            url.copy_with(host=address),
            headers={**headers, "host": url.netloc.decode("ascii")},
            content=body,
            # The certificate is that of the name, though the connection goes to the address.
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        posted = Posted(problem="The receiver did not answer in time.")
        try:
            # Longer than all steps together may take: it ends an answer that drips.
            async with asyncio.timeout((STEPS + 1) * self._rules.timeout_s):
                response = await client.send(request, stream=True)
                try:
                    posted = self._posted(response)
                    await _skim(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            return posted
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return posted if posted.status is not None else Posted(problem=_sentence(error))
        return posted

    def _posted(self, response: httpx.Response) -> Posted:
        status = response.status_code
        after = _seconds(response.headers.get("retry-after"), self._now())
        told = ""
        if response.is_redirect:
            told = f"The receiver answered {status}; redirects are not followed."
        return Posted(status=status, retry_after_s=after, problem=told)

    def _read(self, url: str) -> httpx.URL:
        """Read and check all that can be seen without asking anybody.

        Raises:
            InvalidRequest: it may not be used.
        """
        if not 0 < len(url) <= MAX_URL or not (url.isascii() and url.isprintable()) or " " in url:
            message = f"A webhook's URL has 1 to {MAX_URL} printable ASCII characters."
            raise InvalidRequest(message)
        try:
            read = httpx.URL(url)
        except httpx.InvalidURL as error:
            message = "The webhook's URL cannot be read."
            raise InvalidRequest(message) from error
        schemes = ("https", "http") if self._rules.allow_http else ("https",)
        if read.scheme not in schemes or not read.host:
            message = f"A webhook's URL begins with {' or '.join(f'{s}://' for s in schemes)}."
            raise InvalidRequest(message)
        if read.userinfo or read.fragment or not 0 < _port_of(read) <= MAX_PORT:
            message = "A webhook's URL holds no user, no password, no fragment and no odd port."
            raise InvalidRequest(message)
        return read

    def _check_addresses(self, host: str, addresses: list[str]) -> None:
        """Refuse a host of which one address alone is not public, unless the settings name it."""
        for address in addresses:
            if not is_public(address) and not is_allowed(host, address, self._rules.allow_hosts):
                message = (
                    "The webhook's host is not on the open internet; "
                    "name it in the setting webhooks.allow_hosts if that is meant."
                )
                raise InvalidRequest(message)
        if not addresses:
            message = "the host has no address"
            raise OSError(message)

    async def _client(self, url: httpx.URL) -> "_Client":
        """The client of an origin. One for each: connections are told apart by address alone."""
        origin = (url.scheme, url.host, _port_of(url))
        known = self._clients.pop(origin, None)
        if known is None:
            if self._context is None:
                self._context = ssl.create_default_context()
            known = _Client(self._context, self._rules.timeout_s)
        self._clients[origin] = known
        idle = [old for old in list(self._clients)[:-MAX_CLIENTS] if not self._clients[old].busy]
        for old in idle:
            await self._clients.pop(old).http.aclose()
        return known


class _Client:
    """A client of httpx, whose turn it is, and how many wait for one or have it."""

    __slots__ = ("busy", "http", "turns")

    def __init__(self, context: ssl.SSLContext, timeout_s: float) -> None:
        self.busy = 0
        self.turns = asyncio.Semaphore(IN_FLIGHT)
        self.http = httpx.AsyncClient(
            verify=context,
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=1, keepalive_expiry=15.0
            ),
            follow_redirects=False,
            trust_env=False,
            http2=False,
            headers={
                "user-agent": f"Tiltyard-Webhook/{__version__}",
                "accept": "*/*",
                "accept-encoding": "identity",
            },
        )


async def _skim(response: httpx.Response) -> None:
    """Read an answer that is short; as it comes, so that nothing is unpacked."""
    seen = 0
    async for piece in response.aiter_raw():
        seen += len(piece)
        if seen > MAX_ANSWER_BYTES:
            return


def _port_of(url: httpx.URL) -> int:
    return _PORTS[url.scheme] if url.port is None else url.port


def _sentence(error: Exception) -> str:
    """What went wrong, in words of ours: those of the library may repeat the address."""
    if isinstance(error, httpx.ConnectError):
        return "The receiver cannot be reached, or its certificate is not trusted."
    return f"The receiver hung up or answered no HTTP ({type(error).__name__})."


def _seconds(retry_after: str | None, now: float) -> float | None:
    """`Retry-After` in seconds from now, given in seconds or as a date."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return None
