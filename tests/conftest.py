"""For all tests."""

import signal


def pytest_configure() -> None:
    """Interrupts are heard also where the tests were started in the background, which has them ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
