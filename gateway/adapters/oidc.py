"""Bearer tokens of an OpenID Connect issuer, verified with its keys by PyJWT.

Only signatures with a public key are taken, by an algorithm that the key itself is for. Keys are
fetched when they are first needed, again when one is asked for that is not known, and now and then;
at most once in a few seconds whatever tokens come. While the issuer is away the keys seen last go
on for a day.
"""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from gateway.core.errors import InvalidRequest, NotReady, Unauthenticated, words_of
from gateway.core.principals import is_principal_name
from gateway.governance_ports import Identity
from gateway.oidc_settings import OidcSettings, is_here, is_safe

try:
    import jwt
except ImportError as error:  # pragma: no cover - the extra is installed where tests run
    jwt = None  # type: ignore[assignment]
    _MISSING: ImportError | None = error
else:
    _MISSING = None

log: Final = logging.getLogger(__name__)

ALGORITHMS: Final[Mapping[str, str]] = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""What may sign, and the kind of key that it needs."""
MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 64
MAX_GROUPS: Final = 256
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
LEEWAY_S: Final = 30.0
"""By how much the issuer's clock may differ from ours."""
MIN_GAP_S: Final = 10.0
"""Between two attempts to fetch keys, whatever tokens come."""
FRESH_S: Final = 3600.0
"""Keys older than this are fetched again, which takes back those that the issuer withdrew."""
STALE_S: Final = 86_400.0
"""Keys older than this are of no use."""
DISCOVERY: Final = "/.well-known/openid-configuration"
_REFUSED: Final = "The bearer token is not one that the issuer gave for this gateway."


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the issuer, and the one algorithm that it verifies."""

    algorithm: str
    key: Any


class OidcIssuer:
    """Implements `gateway.governance_ports.Issuer`."""

    def __init__(self, settings: OidcSettings, *, now: Callable[[], float]) -> None:
        """Nothing is fetched yet.

        Args:
            settings: which issuer, and for whom its tokens must be.
            now: UTC seconds.

        Raises:
            InvalidRequest: the extra is not installed, or no issuer is named.
        """
        if _MISSING is not None:
            message = "oidc.issuer is set, but PyJWT is missing: install 'tiltyard[oidc]'."
            raise InvalidRequest(message) from _MISSING
        if settings.issuer is None or settings.audience is None:
            message = "Settings oidc.issuer and oidc.audience go together."
            raise InvalidRequest(message)
        self._issuer, self._audience = settings.issuer, settings.audience
        self._settings = settings
        self._now = now
        self._keys: dict[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()
        self._client = httpx.AsyncClient(
            timeout=settings.timeout_s,
            follow_redirects=False,
            headers={"accept": "application/json"},
            trust_env=not is_here(self._issuer),
        )

    async def identify(self, token: bytes) -> Identity:
        """Whom a token names.

        Raises:
            Unauthenticated: it is not the issuer's, not for us, or not good now.
            NotReady: the issuer's keys are not known, and it is away.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(_REFUSED)
        key = await self._key_of(_head_of(token))
        # A signature takes up to a few tenths of a millisecond, and anybody may send any.
        claims = await asyncio.to_thread(self._verified, token, key)
        self._check_times(claims)
        name = claims.get(self._settings.principal_claim)
        if not isinstance(name, str) or not is_principal_name(name):
            message = f"The token's claim '{self._settings.principal_claim}' names no principal."
            raise Unauthenticated(message)
        return Identity(name, _groups(claims.get(self._settings.groups_claim)))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _key_of(self, head: Mapping[str, Any]) -> Key:
        """The key that a token says it was signed with, if that may sign by its algorithm."""
        algorithm = head.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise Unauthenticated(_REFUSED)
        await self._refresh(FRESH_S)
        key = self._find(head)
        if key is None:
            await self._refresh(MIN_GAP_S)
            key = self._find(head)
        if key is None or key.algorithm != algorithm:
            if not self._keys:
                message = "The issuer's keys are not known yet; try again."
                raise NotReady(message)
            raise Unauthenticated(_REFUSED)
        return key

    def _find(self, head: Mapping[str, Any]) -> Key | None:
        name = head.get("kid")
        if name is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(name) if isinstance(name, str) else None

    def _verified(self, token: bytes, key: Key) -> dict[str, Any]:
        """The claims of a token; its times are seen to by who knows what time it is."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise Unauthenticated(_REFUSED) from error
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._now()
        until, since = claims.get("exp"), claims.get("nbf", 0)
        if not (_is_time(until) and _is_time(since)):
            raise Unauthenticated(_REFUSED)
        if until + LEEWAY_S <= now or since - LEEWAY_S > now:  # type: ignore[operator]  # both are times
            message = "The bearer token has expired, or is not good yet."
            raise Unauthenticated(message)

    async def _refresh(self, after_s: float) -> None:
        """Fetch the keys if those here are older than that, and it was not tried just now."""
        async with self._fetching:
            now = self._now()
            if self._fetched_at is not None and 0 <= now - self._fetched_at < after_s:
                return
            if self._tried_at is not None and 0 <= now - self._tried_at < MIN_GAP_S:
                return
            self._tried_at = now
            try:
                async with asyncio.timeout(2 * self._settings.timeout_s):
                    keys = await self._fetched()
            except (httpx.HTTPError, httpx.InvalidURL, InvalidRequest, TimeoutError) as error:
                log.warning("The keys of the issuer could not be had. %s", words_of(error))
                if self._fetched_at is not None and now - self._fetched_at >= STALE_S:
                    self._keys = {}
                return
            self._keys, self._fetched_at = keys, now

    async def _fetched(self) -> dict[str, Key]:
        url = self._settings.jwks_url
        if url is None:
            described = await self._read(self._issuer.removesuffix("/") + DISCOVERY)
            url = described.get("jwks_uri")
            if described.get("issuer") != self._issuer or not isinstance(url, str):
                message = "The issuer's discovery document is of another issuer."
                raise InvalidRequest(message)
        if not is_safe(url):
            message = "The issuer's keys are to be fetched in the clear."
            raise InvalidRequest(message)
        listed = (await self._read(url)).get("keys")
        keys = _usable(listed if isinstance(listed, list) else [])
        if not keys:
            message = "The issuer has no key that is of use here."
            raise InvalidRequest(message)
        return keys

    async def _read(self, url: str) -> dict[str, Any]:
        """A JSON object; of bounded size, and never from where a redirect leads."""
        content = bytearray()
        async with self._client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                message = f"The issuer answers with status {response.status_code}."
                raise InvalidRequest(message)
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_DOCUMENT_BYTES:
                    message = "The issuer's document is too long."
                    raise InvalidRequest(message)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            message = "The issuer's document is no JSON."
            raise InvalidRequest(message) from error
        if not isinstance(document, dict):
            message = "The issuer's document is no object."
            raise InvalidRequest(message)
        return document


def _head_of(token: bytes) -> dict[str, Any]:
    """What a token says of itself; nothing of it is true yet."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise Unauthenticated(_REFUSED) from error


def _usable(listed: list[Any]) -> dict[str, Key]:
    """The keys that may verify signatures here, by their ids; others are left out."""
    keys: dict[str, Key] = {}
    for one in listed[:MAX_KEYS]:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig":
            continue
        kind = next((alg for alg, kty in ALGORITHMS.items() if kty == one.get("kty")), None)
        if kind is None or one.get("alg", kind) != kind:
            continue
        try:
            key = jwt.PyJWK(one, algorithm=kind).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if kind == "RS256" and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            continue
        if kind == "ES256" and one.get("crv") != "P-256":
            continue
        name = one.get("kid", "")
        if isinstance(name, str):
            keys[name] = Key(kind, key)
    return keys


def _groups(stated: object) -> tuple[str, ...]:
    """The groups that could name a principal; a claim of another form is none."""
    if isinstance(stated, str):
        stated = [stated]
    if not isinstance(stated, list):
        return ()
    named = [one for one in stated if isinstance(one, str) and is_principal_name(one)]
    return tuple(named[:MAX_GROUPS])


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value is not True
