"""Listening to a VM that a probe runs in: what it says, whether it hangs, and when it has said enough."""

from __future__ import annotations

import time
from collections.abc import Callable

from armvm.machine.backend import ConsoleOutput, ControlledSession, DeviceGone, Ended, Event
from armvm.probe.wire import Record, Run, Speaker, decode
from armvm.units import MIB

SITTING_SECONDS = 300.0
"""How long one start of the VM may take altogether."""
_SILENT_SECONDS = 40.0
"""Nothing of a probe takes so long under emulation: what says nothing for this time hangs, and is reset by us."""
_MOST_HOST_RESETS = 20
_MOST_CONSOLE_BYTES = 64 * MIB
_LOOK_SECONDS = 0.2
"""What was said is decoded as a whole: not more often than this, as the guest wants the processor too."""


class Ear:
    """Listens to a console, takes it for dead after a silence, and tells what the probes have said so far.

    ``patience`` multiplies every wait, for a VM that is emulated inside another.
    """

    def __init__(self, session: ControlledSession, *, patience: float = 1.0) -> None:
        self._session = session
        self._patience = patience
        self.heard = bytearray()
        self.gone: set[str] = set()
        self._runs: tuple[Run, ...] = ()
        self._decoded_bytes = 0
        self._decoded_at = 0.0
        self._resets = 0

    def listen(self, enough: Callable[[], bool], *, seconds: float = SITTING_SECONDS, patient: bool = False) -> bool:
        """Listen until ``enough``, and say whether it came to that; otherwise the VM ended, or time did.

        A VM that falls silent is reset, so that the probe goes on behind what hung; not with ``patient``.
        """
        deadline = time.monotonic() + seconds * self._patience
        spoken = time.monotonic()
        while True:
            now = time.monotonic()
            if enough():
                return True
            if now >= deadline or len(self.heard) > _MOST_CONSOLE_BYTES:
                return False
            if not patient and now - spoken > _SILENT_SECONDS * self._patience:
                if self._resets >= _MOST_HOST_RESETS:
                    return False
                self._resets += 1
                self._session.reset()
                spoken = now
            for event in self._session.poll(min(deadline - now, _LOOK_SECONDS)):
                if isinstance(event, Ended):
                    return enough()
                spoken = time.monotonic() if self._take(event) else spoken

    def _take(self, event: Event) -> bool:
        if isinstance(event, ConsoleOutput):
            self.heard += event.data
            return True
        if isinstance(event, DeviceGone):
            self.gone.add(event.name)
        return False

    def records(self, speaker: Speaker) -> tuple[Record, ...]:
        """What ``speaker`` has said in its last run, as far as it was looked at."""
        now = time.monotonic()
        if len(self.heard) != self._decoded_bytes and now - self._decoded_at >= _LOOK_SECONDS:
            self._runs = decode(bytes(self.heard))
            self._decoded_bytes, self._decoded_at = len(self.heard), now
        return next((run.records for run in reversed(self._runs) if run.speaker is speaker), ())

    def completed(self, number: int) -> bool:
        """Whether the EFI probe's run of that number has come to its end."""
        return any(
            record.type == "complete" and record.fields.get("run") == number for record in self.records(Speaker.EFI)
        )
