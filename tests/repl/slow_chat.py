"""`v4 chat` with a model that takes its time: SECONDS after each token, for tests of what happens meanwhile."""

import os
import sys
import time

from v4cli.cli.start import main
from v4cli.engine.session import Session

_generate = Session.generate


def slowly(self, *args, **kwargs):
    for step in _generate(self, *args, **kwargs):
        time.sleep(float(os.environ["SECONDS"]))
        yield step


Session.generate = slowly
sys.argv[0] = "v4"
main()
