"""Grids: which runs a study has, in which folders, and how each is run and recorded."""
