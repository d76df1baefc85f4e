"""Clocks for tests: exact, and nobody waits for them."""


class FakeClock:
    """A clock that moves only when it is told to, or by `step` at every reading."""

    def __init__(self, step: float = 0.0):
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
