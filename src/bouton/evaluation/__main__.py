"""``python -m bouton.evaluation``: the command of lm-eval (``lm_eval``), to which the model ``bouton`` is known."""

from __future__ import annotations

from bouton.cli.guard import guard
from bouton.hub.optional import require


def main() -> None:
    """Hand the command line on to lm-eval."""
    require("lm_eval", "eval", "python -m bouton.evaluation")
    from lm_eval.__main__ import cli_evaluate

    import bouton.evaluation.harness  # noqa: F401 (importing it registers the model)

    cli_evaluate()


if __name__ == "__main__":
    raise SystemExit(guard(main))
