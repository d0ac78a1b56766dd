"""The pump: in one process, what carries parcels from serving to control in place of a link."""

import asyncio
from typing import Final

from gateway.control.export import Exporter
from gateway.serving.recording import Recorder
from gateway.telemetry import Attributes

INTERVAL_S: Final = 0.1
SOURCE: Final = "0"


class Pump:
    """Requires: all calls on one event loop."""

    def __init__(self, recorder: Recorder, exporter: Exporter, resource: Attributes) -> None:
        """Name this process to the exporter."""
        self._recorder = recorder
        self._exporter = exporter
        exporter.source(SOURCE, resource)
        recorder.enabled = exporter.wants_records

    async def run(self) -> None:
        """Carry until cancelled."""
        while True:
            self.carry()
            await asyncio.sleep(INTERVAL_S)

    def carry(self) -> None:
        """Carry all that is there."""
        while self._recorder.encode_pending():
            pass
        while (parcel := self._recorder.take()) is not None:
            self._exporter.receive(SOURCE, parcel)

    def close(self) -> None:
        """Carry what is left; what is recorded from now on is not kept."""
        self.carry()
        self._recorder.enabled = False
