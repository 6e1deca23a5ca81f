"""Run the command line as `python -m halfmeg`."""

from halfmeg.cli.main import main

main()
