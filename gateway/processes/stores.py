"""The adapters that speak to the shared store, all of them made alike."""

from typing import Protocol, TypeVar

from gateway.core.errors import InvalidRequest
from gateway.processes.names import process_name
from gateway.settings import Settings

T_co = TypeVar("T_co", covariant=True)


class Kind(Protocol[T_co]):
    """An adapter on Redis, as it is made."""

    def __call__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> T_co:
        """Prepare the connections; nothing is connected yet."""


class SealedKind(Protocol[T_co]):
    """One that reads or writes what may be sealed."""

    def __call__(
        self, url: str, *, namespace: str, timeout_s: float, name: str, seal_key: str | None
    ) -> T_co:
        """Prepare the connections; nothing is connected yet."""


class Stores:
    """Makes adapters for one place and namespace."""

    def __init__(self, settings: Settings, embedded: str | None) -> None:
        """Choose the place: the embedded server's URL, or that of the settings.

        Raises:
            InvalidRequest: neither is there.
        """
        url = settings.redis.url if embedded is None else embedded
        if url is None:
            message = "Set TILTYARD_REDIS_URL, or allow the embedded store."
            raise InvalidRequest(message)
        self._url = url
        self._redis = settings.redis
        self._name = process_name(settings)

    def made(self, kind: Kind[T_co]) -> T_co:
        """An adapter of this kind."""
        redis = self._redis
        return kind(
            self._url, namespace=redis.namespace, timeout_s=redis.timeout_s, name=self._name
        )

    def sealed(self, kind: SealedKind[T_co]) -> T_co:
        """An adapter of a kind that seals what it writes, where a key is set."""
        redis = self._redis
        return kind(
            self._url,
            namespace=redis.namespace,
            timeout_s=redis.timeout_s,
            name=self._name,
            seal_key=redis.seal_key,
        )
