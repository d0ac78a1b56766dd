"""What the front step hands to the command line, and how failures leave it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import httpx
import typer
from rich.console import Console
from typer.core import TyperGroup

from gateway.core.access import Token
from gateway.core.errors import Conflict, Forbidden, GatewayError, Unauthenticated
from gateway.settings import Settings, load

FAILED: Final = 1
UNREACHABLE: Final = 3
UNAUTHORISED: Final = 4
CONFLICT: Final = 5
DEFAULT_ADMIN_URL: Final = "http://127.0.0.1:8082"

AdminUrl = Annotated[
    str, typer.Option("--admin", envvar="TILTYARD_ADMIN_URL", help="Where the admin API is.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="A file that holds the bearer token.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for scripts.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A settings file; TILTYARD_CONFIG names one too.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
IfMatch = Annotated[
    str | None, typer.Option("--if-match", help="Change only what still has this ETag.")
]


class Serve(Protocol):
    """Serves until it is told to stop."""

    def __call__(
        self, settings: Settings, announce: Callable[[Settings], None] | None = None
    ) -> int:
        """The process's exit code; `announce` is called once the gateway is ready."""


class TokenFolder(Protocol):
    """The tokens of a state folder."""

    def fresh(self) -> str:
        """A token that nobody holds."""

    def read(self) -> tuple[Token, ...]:
        """Those of `tokens.json`."""

    def write(self, tokens: tuple[Token, ...]) -> None:
        """Replace `tokens.json` whole."""

    def admin_token(self) -> str | None:
        """The admin's own, None if there is none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontStep:
    """What commands may use of the rooms above, and of the process.

    `transport` carries requests to the admin API; None is the network.
    """

    serve: Serve
    check: Callable[[Settings], list[str]]
    token_folder: Callable[[Settings], TokenFolder]
    environ: Mapping[str, str]
    transport: httpx.BaseTransport | None = None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic

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


class Commands(TyperGroup):
    """Runs a command; a failure is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as its parent has it
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except GatewayError as error:
            complain(str(error))
            raise typer.Exit(code_of(error)) from error
        except httpx.TransportError as error:
            complain(f"The gateway's admin API cannot be reached: {type(error).__name__}.")
            raise typer.Exit(UNREACHABLE) from error


def code_of(error: GatewayError) -> int:
    """The exit code that tells a script what kind of failure it was."""
    if isinstance(error, Unauthenticated | Forbidden):
        return UNAUTHORISED
    return CONFLICT if isinstance(error, Conflict) else FAILED


def complain(sentence: str) -> None:
    """Say on stderr what went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="red", markup=False)


def front_of(context: typer.Context) -> FrontStep:
    """What the front step handed in."""
    front: FrontStep = context.find_root().obj
    return front
