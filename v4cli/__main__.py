"""`python -m v4cli`."""

from v4cli.cli.start import main

main()
