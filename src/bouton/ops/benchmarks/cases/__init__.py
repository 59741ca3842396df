"""One file for each op: its benchmark cases."""
