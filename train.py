"""Train: ``python train.py mechanism=presyn+hebb``; ``--help`` shows the groups."""

from bouton.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
