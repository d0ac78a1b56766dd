"""The Keyring: signing keys and tokens, from the store and the disk to the data plane.

Tokens are in the Snapshot, but for the admin's own, which is each host's.

Hosts share the keys through the store. A host that starts while the store is away uses the keys
that it saw last; one that never saw any makes its own, serves with them, and offers them to the
store when it comes. If others have put theirs there by then, those sign from that moment on, and
the host's own stay good for what it signed until it restarts.

A rotation takes three steps: a new key is made known to all hosts, after a settling time it signs,
and with the same write those go of which no id would be accepted any more. Each step changes
the shared keys only if nobody else did; a rotation that ends early leaves a key that waits, which
the next one takes up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from gateway.core.access import Token, Tokens, built_in, tokens_in
from gateway.core.errors import Conflict, InvalidRequest, StoreUnavailable, excerpt, words_of
from gateway.core.predictions import MAX_KEY_ID, SigningKeys
from gateway.core.signing_keys import retired, signing_with, with_next
from gateway.core.snapshot import Snapshot
from gateway.ports import DataPlane, Disk, Secrets, Store

log: Final = logging.getLogger(__name__)

KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When the steps of a rotation are taken.

    `now` is in UTC seconds. After `settle_s` every host that reaches the store has read its keys
    again. `max_age_s` is how old a prediction may be when its outcome comes.
    """

    now: Callable[[], float]
    settle_s: float
    max_age_s: float
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Keyring:
    """Holds the secrets of this host. Requires: `begin` before `refresh` and `rotate`."""

    __slots__ = (
        "_data_plane",
        "_disk",
        "_entropy",
        "_followed",
        "_keys",
        "_known",
        "_known_of",
        "_own",
        "_own_token",
        "_reading",
        "_rotating",
        "_saved",
        "_store",
        "alarm",
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
        # A look that began earlier must not end later and bring back what it saw.
        self._reading = asyncio.Lock()
        self._rotating = asyncio.Lock()
        self._own_token: tuple[Token, ...] = ()
        self._followed: tuple[Token, ...] = ()
        # Of the Snapshot that was asked about last.
        self._known = Tokens(())
        self._known_of: Snapshot | None = None
        self.alarm: str | None = None
        """Why the secrets are not as they should be."""

    async def begin(self) -> None:
        """Entrust the data plane with what is known without the store, or with fresh keys."""
        self._own_token = (built_in(await asyncio.to_thread(self._disk.admin_token)),)
        self._known_of = None
        cached = await asyncio.to_thread(self._disk.signing_keys)
        self._saved = cached
        if cached is None:
            self._own = fresh_keys(self._entropy)
            cached = await self._read_keys()
            if cached is not None:
                # They never signed, or are the shared ones from now on.
                self._own = None
        self._keys = cached or self._own
        self._entrust()

    @property
    def keys(self) -> SigningKeys | None:
        """What this host signs and reads ids with; None before `begin`."""
        return self._keys

    def tokens(self, snapshot: Snapshot) -> Tokens:
        """Every token that is good on this host by a Snapshot; cheap to ask for again."""
        if snapshot is not self._known_of:
            self._known = Tokens((*self._own_token, *tokens_in(snapshot)))
            self._known_of = snapshot
        return self._known

    def follow(self, snapshot: Snapshot) -> None:
        """Entrust the data plane with the tokens of a Snapshot."""
        tokens = tokens_in(snapshot)
        if tokens != self._followed:
            self._followed = tokens
            self._entrust()

    async def refresh(self) -> None:
        """Follow the signing keys that the store holds now."""
        async with self._reading:
            self.alarm = None
            keys = await self._shared() or self._keys
            if keys == self._keys:
                return
            self._keys = keys
            self._entrust()

    async def rotate(self, actor: str, timing: Timing) -> SigningKeys:
        """Let a new key sign, on every host; what is shared from then on.

        Takes `settle_s`. Whatever is raised, every id that was signed can still be read.

        Args:
            actor: who asks, for the log.
            timing: when the steps are taken.

        Raises:
            Conflict: another rotation was faster.
            StoreUnavailable: the store is away; the same key signs on, unless it went in the
                moment of the last write.
            InvalidRequest: the shared keys cannot be read.
        """
        if self._rotating.locked():
            message = "The signing keys are being rotated already."
            raise Conflict(message)
        async with self._rotating:
            known, waiting = await self._make_known(actor)
            await self.refresh()
            # Also for a key that was found waiting: nobody knows for how long it has.
            await timing.sleep(timing.settle_s)
            now = timing.now()
            signing = retired(signing_with(known, waiting, now), now, timing.max_age_s)
            await self._store.replace_signing_keys(known, signing)
            log.info(
                "'%s' rotated the signing keys: %d signs in the place of %d; dropped: %s.",
                excerpt(actor),
                signing.current,
                known.current,
                sorted(known.keys.keys() - signing.keys.keys()) or "none",
            )
            await self.refresh()
        return signing

    async def _make_known(self, actor: str) -> tuple[SigningKeys, int]:
        """The shared keys with one among them that waits, and its id."""
        shared = await self._store.signing_keys(self._offered())
        if shared.waiting is not None:
            log.info("'%s' takes up a rotation that was left half done.", excerpt(actor))
            return shared, shared.waiting
        key_id = fresh_id(self._entropy)
        while key_id in shared.keys or (self._keys is not None and key_id in self._keys.keys):
            key_id = fresh_id(self._entropy)
        known = with_next(shared, key_id, self._entropy(KEY_BYTES).hex())
        await self._store.replace_signing_keys(shared, known)
        return known, key_id

    async def _shared(self) -> SigningKeys | None:
        """The store's keys, with those made here kept for reading; None if it has none to give."""
        shared = await self._read_keys()
        if shared is None or self._own is None:
            return shared
        if self._own.keys.items() <= shared.keys.items():
            # From now on they go when the store lets them go.
            self._own = None
            return shared
        return replace(shared, keys={**self._own.keys, **shared.keys})

    async def _read_keys(self) -> SigningKeys | None:
        """The store's keys, kept on disk; None if it has none to give."""
        try:
            shared = await self._store.signing_keys(self._offered())
        except StoreUnavailable:
            return None
        except InvalidRequest as error:
            self.alarm = f"The signing keys stay as they were. {error}"
            return None
        if shared != self._saved:
            await self._save(shared)
        return shared

    def _offered(self) -> SigningKeys:
        """What becomes the shared keys if there are none."""
        return self._keys or self._own or fresh_keys(self._entropy)

    async def _save(self, keys: SigningKeys) -> None:
        try:
            await asyncio.to_thread(self._disk.save_signing_keys, keys)
        except OSError as error:
            self.alarm = f"The signing keys could not be saved. {words_of(error)}"
        else:
            self._saved = keys

    def _entrust(self) -> None:
        if self._keys is not None:
            tokens = (*self._own_token, *self._followed)
            self._data_plane.entrust(Secrets(keys=self._keys, tokens=tokens))


def fresh_keys(entropy: Callable[[int], bytes]) -> SigningKeys:
    """One signing key with a random id, so that keys of several hosts do not collide."""
    key_id = fresh_id(entropy)
    return SigningKeys(
        schema=1,
        current=key_id,
        keys={key_id: entropy(KEY_BYTES).hex()},
        unit_key=entropy(KEY_BYTES).hex(),
    )


def fresh_id(entropy: Callable[[int], bytes]) -> int:
    """A random key id."""
    return 1 + int.from_bytes(entropy(4), "big") % MAX_KEY_ID
