"""Operations on uploads. A file goes to disk as it comes; it is never whole in memory."""

import asyncio
import base64
import binascii
from typing import Final

from gateway.core.errors import InvalidRequest, TooLarge, UnsupportedMedia
from gateway.core.models import check_name, is_hex256
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.admin_version_documents import Discarded, Upload, UploadedFile
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import Disconnected, Receive, Response, header_values
from gateway.governance_ports import Incoming, Staged

PART_BYTES: Final = 1024 * 1024
"""As much is gathered before it is written, in a thread."""
RAW: Final = b"application/octet-stream"
SHA256_BYTES: Final = 32


async def begin(call: Call) -> Response:
    """Open an upload."""
    model = check_name("a model", call.path["model"])
    uploads = call.parts.registrar.uploads
    return answer(_shown(await asyncio.to_thread(uploads.begin, model, _actor(call))))


async def show(call: Call) -> Response:
    """What of an upload came so far."""
    return answer(_shown(await _found(call)))


async def discard(call: Call) -> Response:
    """Forget an upload."""
    staged = await _found(call)
    await asyncio.to_thread(call.parts.registrar.uploads.discard, staged.id)
    return answer(Discarded(staged.id))


async def put_file(call: Call) -> Response:
    """Take one file, as raw bytes."""
    staged = await _found(call)
    _check_raw(call.headers)
    sha256 = stated_digest(call.headers)
    uploads = call.parts.registrar.uploads
    incoming = await asyncio.to_thread(uploads.receive, staged.id, call.path["file"])
    try:
        await _take(call.receive, incoming)
    except BaseException:
        # Also where the caller leaves or the server stops: a thread that began goes on to its end.
        await asyncio.shield(asyncio.to_thread(incoming.abandon))
        raise
    file = await asyncio.to_thread(incoming.finish, sha256)
    return answer(UploadedFile(file.name, file.size, file.sha256))


async def _take(receive: Receive, incoming: Incoming) -> None:
    """Write a body in parts; while one is written no more is read than the connection holds."""
    part = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part += message.get("body", b"")
        more = message.get("more_body", False)
        if len(part) >= PART_BYTES or (part and not more):
            await asyncio.to_thread(incoming.write, bytes(part))
            part.clear()


def stated_digest(headers: Headers) -> str | None:
    """The SHA-256 that a body should have, in hex: from X-Sha256, Digest or Content-Digest.

    Raises:
        InvalidRequest: one of them holds none.
    """
    plain = header_values(headers, b"x-sha256")
    if plain:
        stated = plain[0].strip().lower().decode("latin-1")
        if len(plain) > 1 or not is_hex256(stated):
            message = "X-Sha256 holds one SHA-256 in hex."
            raise InvalidRequest(message)
        return stated
    for name in (b"digest", b"content-digest"):
        for value in header_values(headers, name):
            kind, _, text = value.strip().partition(b"=")
            if kind.lower() == b"sha-256":
                return _decoded(text.strip(b":"))
    return None


def _decoded(text: bytes) -> str:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != SHA256_BYTES:
        message = "The digest of the body is no SHA-256 in base64."
        raise InvalidRequest(message)
    return digest.hex()


def _check_raw(headers: Headers) -> None:
    """Bytes as they are: no form, no archive that we would have to open, no coding."""
    media = header_values(headers, b"content-type")
    if any(one.partition(b";")[0].strip().lower() != RAW for one in media):
        message = "Send the file's bytes as they are, as 'application/octet-stream'."
        raise UnsupportedMedia(message)
    if header_values(headers, b"content-encoding"):
        message = "Content-Encoding is not read here; send the file's bytes as they are."
        raise UnsupportedMedia(message)
    for length in header_values(headers, b"content-length"):
        if len(length) > len(str(2**63)):
            message = "The file is too large."
            raise TooLarge(message)


async def _found(call: Call) -> Staged:
    return await call.parts.registrar.find(call.path["model"], call.path["upload"], _actor(call))


def _actor(call: Call) -> str:
    return "" if call.principal is None else call.principal.name


def _shown(staged: Staged) -> Upload:
    files = tuple(UploadedFile(file.name, file.size, file.sha256) for file in staged.files)
    return Upload(staged.id, staged.model, staged.expires_at, files)
