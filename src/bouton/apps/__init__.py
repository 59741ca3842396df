"""The users' commands. Each module has ``main(argv) -> exit code``; the table of commands is in ``bouton.cli.main``."""
