"""`v4`, but of the machine it measures little, which is quick: for tests to which the figures do not matter."""

import sys

from v4cli import hardware
from v4cli.cli.start import main

hardware.PROBE_RAM, hardware.PROBE_DISK, hardware.PROBE_SECONDS = 16 << 20, 8 << 20, 0.02
if sys.argv[1:2] == ["bench"]:
    from v4cli.bench import speed

    speed.PRODUCT = (16, 256, 128)

if __name__ == "__main__":
    main()
