"""Tokens of an issuer, against one that listens here and signs with real keys."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.adapters import oidc
from gateway.adapters.oidc import MIN_GAP_S, STALE_S, OidcIssuer
from gateway.core.errors import InvalidRequest, NotReady, Unauthenticated
from gateway.governance_ports import Identity
from gateway.oidc_settings import OidcSettings
from tests.fakes import ManualClock

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
ALGORITHM = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}
KEYS: dict[str, Any] = {"rsa": RSA, "ec": EC, "ed": ED}


class Issuer:
    """An issuer on loopback: its documents may be changed, and it counts what it is asked."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = dict(KEYS)
        self.asked: list[str] = []
        self.replies: dict[str, tuple[int, bytes]] = {}
        outer = self

        class Door(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body = outer.reply(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if status == 302:
                    self.send_header("Location", f"{outer.url}/keys")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, path: str) -> tuple[int, bytes]:
        if path in self.replies:
            return self.replies[path]
        if path == oidc.DISCOVERY:
            document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
            return 200, json.dumps(document).encode()
        return 200, json.dumps(
            {"keys": [public(kid, key) for kid, key in self.keys.items()]}
        ).encode()

    def token(self, kid: str = "rsa", **claims: Any) -> bytes:
        """A token as it should be, but for what is given."""
        signer = claims.pop("signer", self.keys.get(kid))
        algorithm = claims.pop("algorithm", ALGORITHM.get(kid, "RS256"))
        headers = claims.pop("headers", {"kid": kid})
        stated = {
            "iss": self.url,
            "aud": "tiltyard",
            "sub": "ada",
            "exp": 1_000,
            "groups": ["ml", "not a name"],
            **claims,
        }
        kept = {name: value for name, value in stated.items() if value is not None}
        return jwt.encode(kept, signer, algorithm=algorithm, headers=headers).encode()


def public(kid: str, key: Any) -> dict[str, Any]:
    """A key as an issuer publishes it."""
    algorithm = jwt.get_algorithm_by_name(ALGORITHM.get(kid, "RS256"))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


def pem_of(key: Any) -> bytes:
    """A public key as text, which a confused verifier would take for a shared secret."""
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> bytes:
    """A token put together by hand, because the library refuses to."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return b".".join(jwt.utils.base64url_encode(part) for part in parts)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer that listens."""
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def clock() -> ManualClock:
    """What time it is."""
    clock = ManualClock()
    clock.at = 500.0
    return clock


@pytest.fixture
async def verifier(issuer: Issuer, clock: ManualClock) -> AsyncIterator[OidcIssuer]:
    """What is under test."""
    settings = OidcSettings(issuer=issuer.url, audience="tiltyard", timeout_s=2.0)
    made = OidcIssuer(settings, now=clock)
    yield made
    await made.close()


@pytest.mark.parametrize("kid", KEYS)
async def test_a_token_names_a_principal_and_its_groups(
    issuer: Issuer, verifier: OidcIssuer, kid: str
) -> None:
    """Each of the three algorithms is taken; groups that could name nothing here are left out."""
    assert await verifier.identify(issuer.token(kid)) == Identity("ada", ("ml",))
    assert await verifier.identify(issuer.token(kid, groups="ops")) == Identity("ada", ("ops",))
    assert await verifier.identify(issuer.token(kid, groups={})) == Identity("ada")
    assert issuer.asked == [oidc.DISCOVERY, "/keys"]


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"aud": "another"}, id="audience"),
        pytest.param({"aud": None}, id="no-audience"),
        pytest.param({"iss": "http://127.0.0.1"}, id="issuer"),
        pytest.param({"iss": None}, id="no-issuer"),
        pytest.param({"exp": 400}, id="expired"),
        pytest.param({"exp": None}, id="no-expiry"),
        pytest.param({"exp": "1000"}, id="expiry-as-text"),
        pytest.param({"exp": float("nan")}, id="expiry-nan"),
        pytest.param({"exp": True}, id="expiry-bool"),
        pytest.param({"nbf": 600}, id="not-yet"),
        pytest.param({"nbf": "now"}, id="not-before-as-text"),
        pytest.param({"sub": None}, id="nobody"),
        pytest.param({"sub": "a/b"}, id="no-name"),
        pytest.param({"signer": STRANGE}, id="other-key"),
        pytest.param({"headers": {"kid": "unknown"}}, id="unknown-key"),
        pytest.param({"headers": {}}, id="no-key"),
        pytest.param({"headers": {"kid": "ec"}}, id="another-kind-of-key"),
        pytest.param({"signer": "s" * 64, "algorithm": "HS256"}, id="shared-secret"),
        pytest.param({"signer": RSA, "algorithm": "RS512"}, id="other-algorithm"),
    ],
)
async def test_a_token_that_is_not_for_us_is_refused(
    issuer: Issuer, verifier: OidcIssuer, claims: dict[str, Any]
) -> None:
    """Whatever is wrong with it, it is 401, and nothing of it is told."""
    with pytest.raises(Unauthenticated) as refused:
        await verifier.identify(issuer.token(**claims))
    assert "ada" not in str(refused.value)


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "", None, ["RS256"], 1])
async def test_an_unsigned_token_is_refused(
    issuer: Issuer, verifier: OidcIssuer, algorithm: object
) -> None:
    """Neither no signature nor one made with the public key as a secret is taken."""
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    header = {"alg": algorithm, "kid": "rsa", "typ": "JWT"}
    unsigned = forged(header, claims).rpartition(b".")[0]
    signature = hmac.new(pem_of(RSA), unsigned, hashlib.sha256).digest()
    for token in (forged(header, claims), forged(header, claims, signature)):
        with pytest.raises(Unauthenticated):
            await verifier.identify(token)


@pytest.mark.parametrize(
    "token",
    [b"..", b"a.b.c", b"\xff.\xfe.\xfd", b"e30.e30.", b"x" * 20_000, b"[" * 9_000 + b"..", b""],
)
async def test_what_is_no_token_is_refused(verifier: OidcIssuer, token: bytes) -> None:
    """Bytes of any other kind are 401, and never an error of ours."""
    with pytest.raises((Unauthenticated, NotReady)):
        await verifier.identify(token)


async def test_new_keys_are_fetched_once_in_a_while(
    issuer: Issuer, verifier: OidcIssuer, clock: ManualClock
) -> None:
    """A key that is not known is looked for, but unknown ones never make us ask without end."""
    await verifier.identify(issuer.token())
    issuer.keys = {"new": RSA}
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await verifier.identify(issuer.token("new"))
    assert issuer.asked.count("/keys") == 1
    clock.at += MIN_GAP_S
    assert (await verifier.identify(issuer.token("new"))).name == "ada"
    assert issuer.asked.count("/keys") == 2
    with pytest.raises(Unauthenticated):
        await verifier.identify(issuer.token("rsa", signer=RSA))


async def test_an_issuer_that_is_away_is_done_without(
    issuer: Issuer, verifier: OidcIssuer, clock: ManualClock
) -> None:
    """Known keys go on for a day; without any the answer is that we are not ready."""
    issuer.replies["/keys"] = (500, b"")
    with pytest.raises(NotReady):
        await verifier.identify(issuer.token())
    clock.at += MIN_GAP_S
    del issuer.replies["/keys"]
    await verifier.identify(issuer.token())
    issuer.replies["/keys"] = (500, b"")
    clock.at += STALE_S - 1
    late = int(clock.at) + 500
    assert (await verifier.identify(issuer.token(exp=late))).name == "ada"
    clock.at += MIN_GAP_S
    with pytest.raises(NotReady):
        await verifier.identify(issuer.token(exp=late))


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        pytest.param("/keys", 302, b"", id="redirect"),
        pytest.param("/keys", 200, b"{" * 100_000, id="nesting"),
        pytest.param("/keys", 200, b" " * 300_000, id="size"),
        pytest.param("/keys", 200, b"[]", id="no-object"),
        pytest.param("/keys", 200, b'{"keys": 1}', id="no-list"),
        pytest.param("/keys", 200, b'{"keys": [1, {}, {"kty": "oct", "k": "eA"}]}', id="none"),
        pytest.param(oidc.DISCOVERY, 200, b'{"issuer": "http://127.0.0.1"}', id="other-issuer"),
    ],
)
async def test_documents_of_another_kind_are_no_keys(
    issuer: Issuer, verifier: OidcIssuer, path: str, status: int, body: bytes
) -> None:
    """What the issuer's address answers is bounded, and never followed elsewhere."""
    issuer.replies[path] = (status, body)
    with pytest.raises(NotReady):
        await verifier.identify(issuer.token())
    assert len(issuer.asked) <= 2


async def test_keys_in_the_clear_are_not_fetched(issuer: Issuer, verifier: OidcIssuer) -> None:
    """A discovery document cannot send us to a place without TLS."""
    told = {"issuer": issuer.url, "jwks_uri": "http://keys.example/"}
    issuer.replies[oidc.DISCOVERY] = (200, json.dumps(told).encode())
    with pytest.raises(NotReady):
        await verifier.identify(issuer.token())


async def test_a_weak_key_signs_nothing(issuer: Issuer, verifier: OidcIssuer) -> None:
    """RSA below 2,048 bits is left out."""
    issuer.keys = {"weak": SMALL, "ec": EC}
    with pytest.raises(Unauthenticated):
        await verifier.identify(issuer.token("weak", signer=RSA))


async def test_a_place_for_keys_may_be_set(issuer: Issuer, clock: ManualClock) -> None:
    """With `jwks_url` nothing is discovered, and another claim may name the principal."""
    settings = OidcSettings(
        issuer=issuer.url,
        audience="tiltyard",
        jwks_url=f"{issuer.url}/keys",
        principal_claim="email",
    )
    verifier = OidcIssuer(settings, now=clock)
    token = issuer.token(email="ada@example.org")
    assert (await verifier.identify(token)).name == "ada@example.org"
    assert issuer.asked == ["/keys"]
    await verifier.close()


def test_without_the_extra_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that cannot be listened to is an error with the fix."""
    monkeypatch.setattr(oidc, "_MISSING", ImportError())
    settings = OidcSettings(issuer="https://issuer.example", audience="tiltyard")
    with pytest.raises(InvalidRequest, match=r"tiltyard\[oidc\]"):
        OidcIssuer(settings, now=time.time)
