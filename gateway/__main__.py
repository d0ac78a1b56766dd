"""The front door: `tiltyard` and `python -m gateway`.

Hands the rooms above to the command line, which may not import them. `gateway.app` is imported by
the commands that need it only, so that the others start fast.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.adapters.disk import ADMIN_FILE, TOKENS_FILE, fresh_token, write_whole
from gateway.core.access import Token
from gateway.core.errors import InvalidRequest
from gateway.doors.cli.app import create_cli
from gateway.doors.cli.front import FrontStep
from gateway.settings import Settings


class StoredTokens:
    """The tokens of a state folder; implements `gateway.doors.cli.front.TokenFolder`."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or made yet."""
        self._folder = folder

    def fresh(self) -> str:
        """A token that nobody holds."""
        return fresh_token(secrets.token_bytes)

    def read(self) -> tuple[Token, ...]:
        """Those of `tokens.json`; none if there is no such file.

        Raises:
            InvalidRequest: it cannot be read.
        """
        content = self._content(TOKENS_FILE)
        if content is None:
            return ()
        try:
            return msgspec.json.decode(content, type=tuple[Token, ...])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{TOKENS_FILE} in the state folder cannot be read."
            raise InvalidRequest(message) from error

    def write(self, tokens: tuple[Token, ...]) -> None:
        """Replace `tokens.json` whole.

        Raises:
            InvalidRequest: it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._folder / TOKENS_FILE, msgspec.json.encode(tokens))
        except OSError as error:
            message = f"{TOKENS_FILE} in the state folder cannot be written: {error.strerror}."
            raise InvalidRequest(message) from error

    def admin_token(self) -> str | None:
        """The admin's own, None if there is none yet."""
        content = self._content(ADMIN_FILE)
        return None if content is None else content.decode(errors="replace").strip() or None

    def _content(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"{name} in the state folder cannot be read: {error.strerror}."
            raise InvalidRequest(message) from error


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    front = FrontStep(
        serve=_serve,
        check=_check,
        token_folder=lambda settings: StoredTokens(Path(settings.state_dir)),
        environ=os.environ,
    )
    create_cli(front)()


def _serve(settings: Settings, announce: Callable[[Settings], None] | None = None) -> int:
    from gateway.app import serve  # noqa: PLC0415 - it imports everything

    return serve(settings, announce)


def _check(settings: Settings) -> list[str]:
    from gateway.app import check  # noqa: PLC0415 - it imports everything

    return check(settings)


if __name__ == "__main__":
    main()
