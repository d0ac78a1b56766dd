"""The front door: `tiltyard` and `python -m gateway`.

Hands the rooms above to the command line, which may not import them. `gateway.running` is imported
by the commands that need it only, so that the others start fast.
"""

import os
import sys
import time
from pathlib import Path

from gateway.adapters.disk import stored_admin_token
from gateway.adapters.logs import configure
from gateway.adapters.segments import StoredRecords
from gateway.core.deciding import Circumstances
from gateway.core.experiments import ExperimentRecord
from gateway.core.readings import Decision
from gateway.core.tallies import Evidence
from gateway.doors.cli.app import create_cli
from gateway.doors.cli.front import FrontStep
from gateway.processes.birth import become_supervisor
from gateway.processes.quota import worker_count
from gateway.settings import Settings


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    front = FrontStep(
        serve=_serve,
        check=_check,
        admin_token=lambda settings: stored_admin_token(Path(settings.state_dir)),
        record_store=lambda settings: StoredRecords(Path(settings.state_dir)),
        decide=_decide,
        circumstances=_circumstances,
        environ=os.environ,
    )
    create_cli(front)()


def _serve(settings: Settings, banner: str = "") -> int:
    """Serve in this process, or turn it into the supervisor of others and never return."""
    workers = worker_count(settings.workers)
    if workers:
        become_supervisor(settings, workers, banner)
    from gateway.running import serve  # noqa: PLC0415 - it imports everything

    configure(sys.stderr, time.monotonic)
    return serve(settings, banner)


def _decide(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
    from gateway.core.judging import decide  # noqa: PLC0415 - it imports scipy

    return decide(record, evidence, now, display=True)


def _circumstances() -> Circumstances:
    from gateway.adapters.circumstances import circumstances  # noqa: PLC0415 - as above

    return circumstances()


def _check(settings: Settings) -> tuple[list[str], list[str]]:
    from gateway.running import check  # noqa: PLC0415 - as above

    return check(settings)


if __name__ == "__main__":
    main()
