"""Ending a run cleanly on a signal from the user or the scheduler."""

import signal
from types import FrameType


class StopSignal:
    """Notes SIGTERM, SIGUSR1 (schedulers) and SIGINT (Ctrl-C), for the loop to act on after its
    current step or the next. A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.name = ""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
