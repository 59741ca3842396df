"""The entry points: ``python train.py`` and the command ``bouton``."""
