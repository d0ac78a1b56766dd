"""How processes are known to each other."""

import os
import socket

from gateway.settings import Settings


def process_name(settings: Settings) -> str:
    """How this gateway is known to the others: its host and port, stable over restarts."""
    place = settings.http.port or f"pid-{os.getpid()}"
    return f"{socket.gethostname()}:{place}"
