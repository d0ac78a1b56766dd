"""Orders: what every worker is to be told, less what has proved to end processes.

A version that ended two lives by a fault while it was loaded is quarantined: it is told as missing,
with the reason, so endpoints keep the plan that they have. A worker that starts then has no plan to
keep, so it is first told the newest Snapshot that was served whole, and the newest once it serves.
"""

import signal
from typing import Final

from msgspec.structs import replace

from gateway.core.models import Key
from gateway.ports import Secrets, Update, WorkerReport
from gateway.processes.frames import Apply, Entrust, encode

MAX_ACCUSED: Final = 1
"""So often may a version be loading when a process dies; the next time it is quarantined."""
FAULTS: Final = frozenset(
    -signum
    for signum in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
)
"""Exit codes of processes that ended by a fault of their own; whoever is killed is not to blame."""
_REASON: Final = "It ended the process when it was loaded, twice; it is not tried again."
_SETTLED: Final = frozenset({"ready", "draining", "failed"})


class Orders:
    """The newest Snapshot and secrets, as frames."""

    __slots__ = ("_accused", "_complete", "_quarantined", "_update", "entrust")

    def __init__(self) -> None:
        """Nothing was handed over yet."""
        self.entrust: bytes | None = None
        self._update: Update | None = None
        self._complete: Update | None = None
        self._accused: dict[Key, int] = {}
        self._quarantined: set[Key] = set()

    @property
    def newest(self) -> bytes | None:
        """The newest Snapshot."""
        return None if self._update is None else self._frame(self._update)

    @property
    def first(self) -> bytes | None:
        """What a worker that has no plan yet should hear before `newest`; None for nothing."""
        update, complete = self._update, self._complete
        if not self._quarantined or update is None or complete is None:
            return None
        is_older = complete.snapshot.revision < update.snapshot.revision
        return self._frame(complete) if is_older else None

    def take(self, update: Update) -> None:
        """Control hands a Snapshot over."""
        self._update = update

    def take_secrets(self, secrets: Secrets) -> None:
        """Control hands the secrets over."""
        self.entrust = encode(Entrust(secrets))

    def note(self, report: WorkerReport) -> None:
        """See what all workers serve: the newest Snapshot, whole, is what can be gone back to."""
        update = self._update
        if update is None or not report.ready or report.revision != update.snapshot.revision:
            return
        if not any(endpoint.lagging for endpoint in report.endpoints.values()):
            self._complete = update

    def accuse(self, report: WorkerReport | None, code: int) -> Key | None:
        """A process ended with that code; the version that is quarantined for it, if one is now.

        Args:
            report: what the process served last, None if it never said.
            code: its exit code, negative for a signal.
        """
        if code not in FAULTS or self._update is None:
            return None
        settled = set()
        if report is not None:
            settled = {(v.model, v.number) for v in report.versions if v.state in _SETTLED}
        loading = [key for key in self._update.artifacts if key not in settled]
        suspects = [key for key in loading if key not in self._quarantined]
        if not suspects:
            return None
        key = suspects[0]  # they are loaded in this order, one at a time
        self._accused[key] = self._accused.get(key, 0) + 1
        if self._accused[key] <= MAX_ACCUSED:
            return None
        self._quarantined.add(key)
        return key

    def _frame(self, update: Update) -> bytes:
        banned = self._quarantined & update.artifacts.keys()
        if banned:
            kept = {key: one for key, one in update.artifacts.items() if key not in banned}
            missing = {**update.missing, **dict.fromkeys(banned, _REASON)}
            update = replace(update, artifacts=kept, missing=missing)
        return encode(Apply(update))
