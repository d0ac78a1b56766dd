"""Readers of requests, one for each signature that this process serves."""

from typing import Final

from gateway.core.oip.messages import Limits
from gateway.core.oip.reading import Reader
from gateway.core.tensors import Signature

MAX_READERS: Final = 1024


class Readers:
    """Compiles a reader for each signature it meets. Used by many threads at once."""

    def __init__(self, limits: Limits) -> None:
        """`limits` bound every request."""
        self._limits = limits
        # By the identity of a signature, which is kept here so that it stays unique.
        self._readers: dict[int, tuple[Signature, Reader]] = {}

    def of(self, signature: Signature) -> Reader:
        """The reader of requests that should look like this."""
        known = self._readers.get(id(signature))
        if known is None:
            if len(self._readers) >= MAX_READERS:
                self._readers.clear()
            known = self._readers[id(signature)] = (signature, Reader(signature, self._limits))
        return known[1]
