"""Exit codes and the one line on stderr."""

from __future__ import annotations

import pytest

from bouton.cli.guard import guard
from bouton.errors import DataError


def _raise(error: BaseException) -> int:
    raise error


def test_success_passes_the_code() -> None:
    assert guard(lambda: None) == 0
    assert guard(lambda: 3) == 3


def test_users_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: _raise(DataError("data.path = x\n  does not exist"))) == 1
    assert capsys.readouterr().err == "error: data.path = x does not exist\n"
    assert guard(lambda: _raise(DataError("x")), quiet=True) == 1
    assert capsys.readouterr().err == ""


def test_full_error_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(DataError):
        guard(lambda: _raise(DataError("x")))


def test_bugs_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        guard(lambda: 1 // 0)


def test_interrupt_also_through_an_orderly_exit(capsys: pytest.CaptureFixture[str]) -> None:
    def orderly() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1) from None

    assert guard(lambda: _raise(KeyboardInterrupt())) == 130
    assert guard(orderly) == 130
    assert capsys.readouterr().err.split() == ["interrupted", "interrupted"]
    with pytest.raises(SystemExit):
        guard(lambda: _raise(SystemExit(2)))


def test_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: _raise(KeyboardInterrupt("interrupted at step 5: continue with ckpt_path=x"))) == 130
    assert capsys.readouterr().err == "interrupted at step 5: continue with ckpt_path=x\n"
