"""Run the command line as `python -m halfmeg`."""

from halfmeg.cli import main

main()
