"""Settings of an issuer whose bearer tokens the admin API takes beside its own."""

from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.core.errors import InvalidRequest

_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class OidcSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenID Connect issuer; needs the extra `tiltyard[oidc]`."""

    issuer: str | None = None
    """Its URL, as its tokens have it in `iss`; without it only tokens of our own are taken."""
    audience: str | None = None
    """Who its tokens must be for: one of `aud`."""
    jwks_url: str | None = None
    """Where its keys are; by default what its discovery document says."""
    principal_claim: str = "sub"
    """The claim that names the principal; one that users cannot choose for themselves."""
    groups_claim: str = "groups"
    """The claim that lists groups: the principals `group:<name>`."""
    timeout_s: float = 5.0
    """For its keys to come."""


def check_oidc(settings: OidcSettings) -> None:
    """Refuse settings that would let nobody in, or anybody.

    Raises:
        InvalidRequest: with a sentence that names the setting.
    """
    if (settings.issuer is None) != (settings.audience is None):
        message = "Settings oidc.issuer and oidc.audience go together."
        raise InvalidRequest(message)
    for name, url in (("issuer", settings.issuer), ("jwks_url", settings.jwks_url)):
        if url is not None and not is_safe(url):
            message = f"Setting oidc.{name} must be an https URL; http is for loopback only."
            raise InvalidRequest(message)
    if settings.timeout_s <= 0 or not settings.principal_claim or settings.audience == "":
        message = "Settings oidc.timeout_s, principal_claim and audience must not be empty or 0."
        raise InvalidRequest(message)


def is_here(url: str) -> bool:
    """Whether a URL names this host."""
    return urlsplit(url).hostname in _HERE


def is_safe(url: str) -> bool:
    """Whether keys may be fetched from there: by https, or from this host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _HERE)
