"""`python -m v4cli`."""

from v4cli.cli.app import main

main()
