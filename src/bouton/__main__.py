"""``python -m bouton`` is the command ``bouton``."""

from bouton.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
