"""What the front step hands to the command line, and how failures leave it."""

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import httpx
import typer
from rich.console import Console
from typer.core import TyperGroup

from gateway.core.deciding import Circumstances, Decide
from gateway.core.errors import (
    Conflict,
    Forbidden,
    GateClosed,
    GatewayError,
    InvalidRequest,
    Unauthenticated,
    excerpt,
)
from gateway.core.models import parse_version
from gateway.ports import SegmentInfo
from gateway.settings import LOOPBACK, AdminSettings, HttpSettings, Settings, load

FAILED: Final = 1
UNREACHABLE: Final = 3
UNAUTHORISED: Final = 4
CONFLICT: Final = 5
PENDING: Final = 7
"""There are changes; 6 is the ledger's."""
MAX_PLACE: Final = 200
_NEARBY: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only read
"""Where a listener on every address is found from this host."""

AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin",
        envvar="TILTYARD_ADMIN_URL",
        help="Where the admin API is; by default as the settings here say.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="A file that holds the bearer token.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for scripts.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A settings file; TILTYARD_CONFIG names one too.")
]
ModelStore = Annotated[
    str | None,
    typer.Option("--model-store", help="Where the models are: a folder, or an object store."),
]


def _version(text: str) -> int:
    """A version's number as the admin API reads it too: `007` and `1_0` are none."""
    try:
        return parse_version(text)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error)) from error


Version = Annotated[
    int, typer.Argument(help="The version's number.", parser=_version, metavar="VERSION")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
IfMatch = Annotated[
    str | None, typer.Option("--if-match", help="Change only what still has this ETag.")
]


class Serve(Protocol):
    """Serves until it is told to stop."""

    def __call__(self, settings: Settings, banner: str = "") -> int:
        """The process's exit code; `banner` is written once the gateway is ready."""


class RecordStore(Protocol):
    """The record log of a state folder."""

    def segments(self) -> list[SegmentInfo]:
        """Every segment, oldest first."""

    def requests(self, segment: int) -> Iterator[bytes]:
        """The requests of a segment in the order in which they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontStep:
    """What commands may use of the rooms above, and of the process.

    `decide` judges an experiment as the steward does, `circumstances` say on what it does here.
    `check` says which versions of the model store load, and what is wrong, a sentence each.
    `admin_token` is that of a state folder, None if there is none yet.
    `transport` carries requests to the admin API; None is the network.
    """

    serve: Serve
    check: Callable[[Settings], tuple[list[str], list[str]]]
    admin_token: Callable[[Settings], str | None]
    record_store: Callable[[Settings], RecordStore]
    decide: Decide
    circumstances: Callable[[], Circumstances]
    environ: Mapping[str, str]
    transport: httpx.BaseTransport | None = None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    unix_time: Callable[[], float] = time.time

    def settings(self, config: Path | None = None, **overrides: object) -> Settings:
        """The effective settings; an override is named like its variable, in lower case.

        Raises:
            InvalidRequest: a setting is wrong.
        """
        given = {
            f"TILTYARD_{name.upper()}": str(value)
            for name, value in overrides.items()
            if value is not None
        }
        return load({**self.environ, **given}, config)

    def admin_url(self, given: str | None) -> str:
        """Where the admin API is: as given, else as a gateway with the settings here has it.

        Raises:
            InvalidRequest: what was given is no URL, or a setting is wrong.
        """
        return check_url(given or nearby_url_of(self.settings().admin))

    def client(
        self, url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> httpx.Client:
        """A client of the listener at a URL.

        Raises:
            InvalidRequest: SSL_CERT_FILE cannot be used.
        """
        return httpx.Client(
            base_url=url,
            headers=headers,
            timeout=timeout_s,
            transport=self.transport,
            verify=self.trusted(),
            trust_env=not is_here(url),
        )

    def trusted(self) -> ssl.SSLContext | bool:
        """Whom TLS trusts: the certificates of SSL_CERT_FILE, True for the usual ones.

        Raises:
            InvalidRequest: that file cannot be used.
        """
        file = self.environ.get("SSL_CERT_FILE")
        if not file:
            return True
        try:
            context = ssl.create_default_context(cafile=file)
        except OSError as error:
            message = "SSL_CERT_FILE names no file of certificates that can be read."
            raise InvalidRequest(message) from error
        # A listener's own certificate will do; later Pythons have it so by themselves.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


class Commands(TyperGroup):
    """Runs a command; a failure is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as its parent has it
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except GateClosed as error:
            complain_of_gates(error)
            raise typer.Exit(CONFLICT) from error
        except GatewayError as error:
            complain(str(error))
            raise typer.Exit(code_of(error)) from error
        except httpx.TransportError as error:
            complain(_unreached(error))
            raise typer.Exit(UNREACHABLE) from error


def code_of(error: GatewayError) -> int:
    """The exit code that tells a script what kind of failure it was."""
    if isinstance(error, Unauthenticated | Forbidden):
        return UNAUTHORISED
    return CONFLICT if isinstance(error, Conflict) else FAILED


def complain(sentence: str) -> None:
    """Say on stderr what went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="red", markup=False)


def complain_of_gates(error: GateClosed) -> None:
    """Say on stderr what gates miss, a line each."""
    sentence = str(error)
    cut = sentence.find(error.missing[0].sentence) if error.missing else -1
    complain(sentence[:cut].rstrip() if cut > 0 else sentence)
    for one in error.missing:
        complain(f"  - {one.gate}: {one.sentence}")


def url_of(listener: HttpSettings | AdminSettings, host: str | None = None) -> str:
    """Where a listener answers."""
    name = host or listener.host
    place = f"[{name}]" if ":" in name else name
    return f"{'https' if listener.tls_cert else 'http'}://{place}:{listener.port}"


def nearby_url_of(listener: HttpSettings | AdminSettings) -> str:
    """Where a listener of this host answers those who ask from here."""
    return url_of(listener, _NEARBY.get(listener.host))


def check_url(url: str) -> str:
    """Pass on what can be the address of a listener.

    Raises:
        InvalidRequest: it cannot.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        message = f"'{excerpt(url)}' is no address of a gateway; write http://host:port."
        raise InvalidRequest(message)
    return url


def is_here(url: str) -> bool:
    """Whether a URL names this host: a proxy of the environment is not for it, nor a token."""
    return httpx.URL(url).host in LOOPBACK


def distrust_of(error: BaseException | None) -> str | None:
    """Why a certificate was not trusted, None if it was not that."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.verify_message


def _unreached(error: httpx.TransportError) -> str:
    """What was tried, and what to do."""
    url = error.request.url
    place = excerpt(f"{url.scheme}://{url.netloc.decode('ascii')}", MAX_PLACE)
    distrusted = distrust_of(error)
    if distrusted is not None:
        return (
            f"The certificate of {place} is not trusted: {distrusted}. "
            "Set SSL_CERT_FILE to a file with that certificate or its CA's."
        )
    return (
        f"The gateway cannot be reached at {place} ({type(error).__name__}). Is `tiltyard serve` "
        "running? If it is elsewhere, say where with --admin or TILTYARD_ADMIN_URL."
    )


def front_of(context: typer.Context) -> FrontStep:
    """What the front step handed in."""
    front: FrontStep = context.find_root().obj
    return front
