"""Tuning by CMA-ES (``hydra/sweeper=cmaes``).

:mod:`~bouton.sweeps.sweep` is the whole search, top to bottom; the plugin in ``hydra_plugins`` only calls it.
"""
