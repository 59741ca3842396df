"""What every command does with an error: one line on stderr and an exit code, a traceback only on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from bouton.config.messages import explain

FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def guard(command: Callable[[], int | None], *, quiet: bool = False) -> int:
    """Run ``command`` and return its exit code.

    An error that the user can mend gives ``error: <message>`` and 1, Ctrl-C gives 130. Any other exception is a bug and
    passes, as does everything with ``HYDRA_FULL_ERROR=1``.

    Args:
        command: returns an exit code, or None for 0.
        quiet: keep the line back; somebody else reports it.
    """
    try:
        return command() or 0
    except KeyboardInterrupt as interrupt:
        return _interrupted(quiet, str(interrupt))
    except SystemExit as stop:
        # Lightning answers Ctrl-C with an orderly shutdown that ends in exit(1).
        if _came_from_interrupt(stop):
            return _interrupted(quiet, "")
        raise
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get(FULL_ERROR) == "1":
            raise
        if not quiet:
            print(f"error: {message}", file=sys.stderr)
        return 1


def _interrupted(quiet: bool, message: str) -> int:
    if not quiet:
        print(message or "interrupted", file=sys.stderr)
    return INTERRUPTED


def _came_from_interrupt(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
