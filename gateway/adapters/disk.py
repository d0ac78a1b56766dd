"""The state folder: what this host remembers by itself, in files that only its owner may read.

Each file is replaced whole (written beside, synced, renamed), so that a full disk or a crash leaves
the old one, and the last good Snapshot carries a checksum, so that damage is seen.
"""

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.core.access import fresh_token
from gateway.core.checkpoints import KEY_BYTES, KEY_FILE, read_key
from gateway.core.errors import InvalidRequest
from gateway.core.models import Manifest
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import decode, encode
from gateway.ports import LastKnown

log: Final = logging.getLogger(__name__)

LAST_GOOD_FILE: Final = "last-good.json"
KEYS_FILE: Final = "signing-keys.json"
ADMIN_FILE: Final = "admin.token"


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The layout of the last good file, below its first line, which is the SHA-256 of the rest."""

    snapshot: msgspec.Raw
    manifests: tuple[Manifest, ...]


class StateFolder:
    """The `Disk` port on the state folder."""

    __slots__ = ("_admin_token", "_entropy", "_folder")

    def __init__(
        self, folder: Path, *, entropy: Callable[[int], bytes], admin_token: str | None = None
    ) -> None:
        """Make the folder, for its owner only.

        Args:
            folder: the state folder.
            entropy: fresh random bytes, for the admin token.
            admin_token: the token from the settings; without it one is made and kept here.
        """
        self._folder = folder
        self._entropy = entropy
        self._admin_token = admin_token
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def last_good(self) -> LastKnown | None:
        """The newest Snapshot saved.

        Raises:
            InvalidRequest: what lies there was damaged.
        """
        try:
            content = (self._folder / LAST_GOOD_FILE).read_bytes()
        except FileNotFoundError:
            return None
        checksum, _, body = content.partition(b"\n")
        if checksum != hashlib.sha256(body).hexdigest().encode():
            message = f"{LAST_GOOD_FILE} in the state folder is damaged."
            raise InvalidRequest(message)
        try:
            kept = msgspec.json.decode(body, type=_Kept)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{LAST_GOOD_FILE} in the state folder is of another kind."
            raise InvalidRequest(message) from error
        return LastKnown(snapshot=decode(bytes(kept.snapshot)), manifests=kept.manifests)

    def save_last_good(self, known: LastKnown) -> None:
        """Replace it whole, or leave the old one and raise OSError."""
        kept = _Kept(snapshot=msgspec.Raw(encode(known.snapshot)), manifests=known.manifests)
        body = msgspec.json.encode(kept)
        checksum = hashlib.sha256(body).hexdigest().encode()
        write_whole(self._folder / LAST_GOOD_FILE, checksum + b"\n" + body)

    def signing_keys(self) -> SigningKeys | None:
        """The keys seen last, None if there are none or they cannot be read."""
        content = _read_private(self._folder / KEYS_FILE)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=SigningKeys)
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.warning("The cached signing keys cannot be read; they are ignored.")
            return None

    def save_signing_keys(self, keys: SigningKeys) -> None:
        """Keep the keys for a start without the store."""
        write_whole(self._folder / KEYS_FILE, msgspec.json.encode(keys))

    def audit_key(self) -> bytes:
        """The key that signs checkpoints of the audit log; made on first use.

        Raises:
            InvalidRequest: what lies there is none. It is never replaced: old signatures need it.
        """
        path = self._folder / KEY_FILE
        content = _read_private(path)
        if content is None:
            write_whole(path, f"{self._entropy(KEY_BYTES).hex()}\n".encode())
            content = path.read_bytes()
        return read_key(content)

    def admin_token(self) -> str:
        """The admin's bearer token; made on first use."""
        if self._admin_token is not None:
            return self._admin_token
        path = self._folder / ADMIN_FILE
        content = _read_private(path)
        if content is None or not content.strip():
            write_whole(path, f"{fresh_token(self._entropy)}\n".encode())
            content = path.read_bytes()
        self._admin_token = content.decode(errors="replace").strip()
        return self._admin_token


def stored_admin_token(folder: Path) -> str | None:
    """The admin's token in a state folder, None if there is none yet; makes none.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        content = _read_private(folder / ADMIN_FILE)
    except OSError as error:
        message = f"{ADMIN_FILE} in the state folder cannot be read: {error.strerror}."
        raise InvalidRequest(message) from error
    return None if content is None else content.decode(errors="replace").strip() or None


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file at once, or leave the old one and raise OSError; it outlives a power cut."""
    work = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        held = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(held, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        work.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            work.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlive a power cut."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def _read_private(path: Path) -> bytes | None:
    """A secret's content, None if there is none; closed to others if it was open."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(held, "rb") as file:
        if stat.S_IMODE(os.fstat(held).st_mode) & 0o077:
            os.fchmod(held, 0o600)
            log.warning("%s could be read by others; it is now its owner's only.", path.name)
        return file.read()
