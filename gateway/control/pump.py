"""The pump: in one process, what carries parcels from serving to control in place of a link."""

import asyncio
from typing import Final

from gateway.control.export import Exporter
from gateway.core.evidence import decode_sightings
from gateway.serving.recording import Recorder
from gateway.serving.sightings import Observe
from gateway.telemetry import Attributes

INTERVAL_S: Final = 0.1
SOURCE: Final = "0"


class Pump:
    """Requires: all calls on one event loop."""

    def __init__(
        self,
        recorder: Recorder,
        exporter: Exporter | None,
        resource: Attributes,
        observe: Observe,
    ) -> None:
        """Name this process to the exporter, if there is one; `observe` takes sightings in."""
        self._recorder = recorder
        self._exporter = exporter
        self._observe = observe
        recorder.enabled = False
        if exporter is not None:
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
            if parcel.sightings:
                self._observe(decode_sightings(parcel.sightings))
            if self._exporter is not None:
                self._exporter.receive(SOURCE, parcel)

    def close(self) -> None:
        """Carry what is left; what is recorded from now on is not kept."""
        self.carry()
        self._recorder.enabled = False
