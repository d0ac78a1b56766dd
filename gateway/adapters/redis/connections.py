"""Connections: from a URL to a client that fails soon, retries nothing and waits for nothing.

redis-py's defaults take 55 seconds to give up on a black hole (10 retries of 5 s). Here one attempt
is made and the caller paces the next one.
"""

import contextlib
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from gateway.core.errors import InvalidRequest

MAX_CONNECTIONS: Final = 8
_PLAIN: Final = frozenset({"redis", "rediss", "unix"})
_SENTINEL: Final = "redis+sentinel"
_CLUSTER: Final = "redis+cluster"
_PORTS: Final = {_SENTINEL: 26_379, _CLUSTER: 6379}


class Connections:
    """The client of the node that holds our keys; it may be another one after `drop`."""

    __slots__ = ("_client", "_key", "_options", "_parts", "_sentinel", "_url")

    def __init__(self, url: str, key: str, *, timeout_s: float, name: str) -> None:
        """Read the URL; nothing is connected yet.

        Args:
            url: `redis://`, `rediss://` and `unix://` as redis-py reads them,
                `redis+sentinel://[user:password@]host[:port],.../<service>[/<db>]` or
                `redis+cluster://[user:password@]host[:port],...`.
            key: one of our keys; in a cluster it tells the node.
            timeout_s: of connecting, and of each reply.
            name: what `CLIENT LIST` shows.

        Raises:
            InvalidRequest: a URL that is none of these; its text is not repeated.
        """
        self._url = url
        self._key = key
        self._parts = _split(url)
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "protocol": 3,
            "decode_responses": False,
            "client_name": name,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        self._sentinel: Sentinel | None = None
        self._client = self._open()

    async def get(self) -> Redis:
        """The client to speak to now.

        Raises:
            RedisError: no node of a cluster can say where our keys are.
        """
        if self._client is None:
            self._client = await self._find()
        return self._client

    async def drop(self) -> None:
        """Let go of every connection, so that the next one finds the node that may be written."""
        if self._client is None:
            return
        if self._parts.scheme == _CLUSTER:
            client, self._client = self._client, None
            await client.aclose()
        else:
            await self._client.connection_pool.disconnect(inuse_connections=True)

    async def close(self) -> None:
        """Let go of everything."""
        if self._client is not None:
            await self._client.aclose()
        for guide in [] if self._sentinel is None else self._sentinel.sentinels:
            await guide.aclose()

    def _open(self) -> Redis | None:
        """The client, unless a cluster must be asked for the node first."""
        if self._parts.scheme == _CLUSTER:
            return None
        try:
            return self._guided() if self._parts.scheme == _SENTINEL else self._plain(self._url)
        except (TypeError, ValueError) as error:  # an option that is none, or no number
            raise InvalidRequest(_WRONG_URL) from error

    def _plain(self, url: str) -> Redis:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=self._options["socket_timeout"],
            **self._options,
        )
        # This opens nothing, and sees an option that redis-py does not have.
        pool.make_connection()  # type: ignore[no-untyped-call] # redis-py left it untyped
        return Redis.from_pool(pool)

    def _guided(self) -> Redis:
        service, _, database = self._parts.path.strip("/").partition("/")
        if not service or not (database or "0").isdecimal():
            raise InvalidRequest(_WRONG_URL)
        guiding = {key: value for key, value in self._options.items() if key != "client_name"}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call] # redis-py left it untyped
            _nodes(self._parts),
            sentinel_kwargs={**guiding, **dict(parse_qsl(self._parts.query))},
        )
        client: Redis = self._sentinel.master_for(
            service,
            db=int(database or 0),
            max_connections=MAX_CONNECTIONS,
            username=_unquoted(self._parts.username),
            password=_unquoted(self._parts.password),
            **self._options,
        )
        return client

    async def _find(self) -> Redis:
        """Ask the seeds in turn; one that does not hold our keys names the node that does."""
        refusal = RedisError("a cluster URL names at least one node")
        for host, port in _nodes(self._parts):
            client = self._plain(self._node_url(host, port))
            try:
                await client.exists(self._key)
            except MovedError as moved:
                await client.aclose()
                return self._plain(self._node_url(moved.host or host, moved.port))
            except RedisError as error:
                await client.aclose()
                refusal = error
            else:
                return client
        raise refusal

    def _node_url(self, host: str, port: int) -> str:
        login = ""
        with contextlib.suppress(ValueError):
            login = self._parts.netloc.rpartition("@")[0]
        shown = f"[{host}]" if ":" in host else host
        return f"redis://{login}{'@' if login else ''}{shown}:{port}/0"


_WRONG_URL: Final = (
    "The store's URL cannot be read; use redis://, rediss://, unix://, redis+sentinel:// or "
    "redis+cluster:// with numeric ports and, for Sentinel, the service's name as the path."
)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in _PLAIN | _PORTS.keys()
        if parts.scheme in _PORTS and not _nodes(parts):
            known = False
    except ValueError as error:
        raise InvalidRequest(_WRONG_URL) from error
    if not known:
        raise InvalidRequest(_WRONG_URL)
    return parts


def _nodes(parts: SplitResult) -> list[tuple[str, int]]:
    """The (host, port) pairs of a URL that names several. Raises ValueError for a bad port."""
    listed = parts.netloc.rpartition("@")[2].split(",")
    return [_node(text, _PORTS[parts.scheme]) for text in listed if text]


def _node(text: str, default_port: int) -> tuple[str, int]:
    one = urlsplit(f"//{text}")
    if one.hostname is None:
        message = "a node without a host"
        raise ValueError(message)
    return one.hostname, one.port or default_port


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)
