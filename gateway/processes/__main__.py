"""The start of every process of the many-process form; each role imports what it needs only."""

import sys
import time
from typing import Final

from gateway.adapters.logs import configure
from gateway.core.errors import Conflict, GatewayError
from gateway.processes.birth import REFUSED, Birth, Role, find, follow_parent

FAILED: Final = 1
CONFLICT: Final = 5


def main(role: Role, birth: Birth) -> int:
    """Live one life; the exit code."""
    names = {"supervise": "supervisor", "control": "control"}
    configure(sys.stderr, time.monotonic, names.get(role, f"worker {birth.slot}"))
    try:
        return _live(role, birth)
    except GatewayError as error:
        sys.stderr.write(f"{error}\n")
        code = CONFLICT if isinstance(error, Conflict) else FAILED
        return code if role == "supervise" else REFUSED + code


def _live(role: Role, birth: Birth) -> int:
    if role == "supervise":
        from gateway.processes.supervisor import Supervisor  # noqa: PLC0415 - see above

        return Supervisor(birth).run()
    follow_parent()
    if role == "control":
        from gateway.processes.control import run  # noqa: PLC0415 - see above
    else:
        from gateway.processes.worker import run  # noqa: PLC0415 - see above
    return run(birth)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], find(int(sys.argv[2]))))  # type: ignore[arg-type]  # we wrote it
