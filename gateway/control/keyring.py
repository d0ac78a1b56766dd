"""The Keyring: signing keys and tokens, from the store and the disk to the data plane.

Hosts share the keys through the store. A host that starts while the store is away uses the keys
that it saw last; one that never saw any makes its own, serves with them, and offers them to the
store when it comes. If others have put theirs there by then, those sign from that moment on, and
the host's own stay good for what it signed until it restarts.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from gateway.core.access import Token
from gateway.core.errors import InvalidRequest, StoreUnavailable, words_of
from gateway.core.predictions import MAX_KEY_ID, SigningKeys
from gateway.ports import DataPlane, Disk, Secrets, Store

log: Final = logging.getLogger(__name__)

KEY_BYTES: Final = 32


class Keyring:
    """Holds the secrets of this host. Requires: `begin` before `refresh`."""

    __slots__ = (
        "_data_plane",
        "_disk",
        "_entropy",
        "_keys",
        "_own",
        "_saved",
        "_store",
        "alarm",
        "tokens",
    )

    def __init__(
        self,
        store: Store,
        disk: Disk,
        data_plane: DataPlane,
        entropy: Callable[[int], bytes],
    ) -> None:
        """Nothing is known before `begin`."""
        self._store = store
        self._disk = disk
        self._data_plane = data_plane
        self._entropy = entropy
        self._keys: SigningKeys | None = None
        self._saved: SigningKeys | None = None
        # Keys made here while there were no others.
        self._own: SigningKeys | None = None
        self.tokens: tuple[Token, ...] = ()
        """Every token that is good on this host now."""
        self.alarm: str | None = None
        """Why the secrets are not as they should be."""

    async def begin(self) -> None:
        """Entrust the data plane with what is known without the store, or with fresh keys."""
        self.tokens = await asyncio.to_thread(self._disk.tokens)
        cached = await asyncio.to_thread(self._disk.signing_keys)
        self._saved = cached
        if cached is None:
            self._own = fresh_keys(self._entropy)
        self._keys = cached or await self._shared() or self._own
        self._entrust()

    async def refresh(self) -> None:
        """Follow what the store and the token file hold now."""
        self.alarm = None
        tokens, keys = await self._read_tokens(), await self._shared() or self._keys
        if tokens == self.tokens and keys == self._keys:
            return
        self.tokens, self._keys = tokens, keys
        self._entrust()

    async def _read_tokens(self) -> tuple[Token, ...]:
        try:
            return await asyncio.to_thread(self._disk.tokens)
        except (InvalidRequest, OSError) as error:
            self.alarm = f"The tokens stay as they were. {words_of(error)}"
            return self.tokens

    async def _shared(self) -> SigningKeys | None:
        """The store's keys, with those made here kept for reading; None if it has none to give."""
        try:
            offered = self._keys or self._own or fresh_keys(self._entropy)
            shared = await self._store.signing_keys(offered)
        except StoreUnavailable:
            return None
        except InvalidRequest as error:
            self.alarm = f"The signing keys stay as they were. {error}"
            return None
        if shared != self._saved:
            await self._save(shared)
        if self._own is None:
            return shared
        return replace(shared, keys={**self._own.keys, **shared.keys})

    async def _save(self, keys: SigningKeys) -> None:
        try:
            await asyncio.to_thread(self._disk.save_signing_keys, keys)
        except OSError as error:
            self.alarm = f"The signing keys could not be saved. {words_of(error)}"
        else:
            self._saved = keys

    def _entrust(self) -> None:
        if self._keys is not None:
            self._data_plane.entrust(Secrets(keys=self._keys, tokens=self.tokens))


def fresh_keys(entropy: Callable[[int], bytes]) -> SigningKeys:
    """One signing key with a random id, so that keys of several hosts do not collide."""
    key_id = 1 + int.from_bytes(entropy(4), "big") % MAX_KEY_ID
    return SigningKeys(
        schema=1,
        current=key_id,
        keys={key_id: entropy(KEY_BYTES).hex()},
        unit_key=entropy(KEY_BYTES).hex(),
    )
