"""Runs the command line from a checkout: `python cli.py --help`."""

from fastexplain.cli.main import main

if __name__ == "__main__":
    main()
