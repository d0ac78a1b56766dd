"""Processes that fold for ever, to be killed: `python folding_child.py URL NAMESPACE`.

One begins for each line that comes in, once the one before is gone; its number is printed when it
is about to fold. They are forks of a process that has imported everything, which takes much longer
than all that one of them does.
"""

import asyncio
import os
import sys
import time

from gateway.adapters.redis import RedisFolds
from gateway.control import folder
from gateway.control.folder import Folder, FolderParts
from gateway.core.studies import Studies, studies_of
from gateway.serving.cells import Cells
from tests.evidence import killed_record


async def main(url: str, namespace: str) -> None:
    """Fold in small batches, so that there are many moments to be killed at."""
    folder.MAX_ENTRIES = folder.MAX_EVENTS = 7  # type: ignore[misc] # more and smaller turns
    folder.FREEZE_S = 0.0  # type: ignore[misc] # likewise
    studies = studies_of(100, {"exp": killed_record()})

    async def newest() -> Studies:
        return studies

    folding = Folder(
        FolderParts(
            store=RedisFolds(url, namespace=namespace, timeout_s=5.0, name="child"),
            studies=lambda: studies,
            newest=newest,
            leads=lambda: True,
            now=time.time,
            entropy=os.urandom,
            cells=Cells(),
        )
    )
    print(os.getpid(), flush=True)  # noqa: T201 - for the parent
    await folding.run()


if __name__ == "__main__":
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            asyncio.run(main(*sys.argv[1:]))
        os.waitpid(child, 0)
