"""Whoever has no GPU needs no Triton."""

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["triton"] = None  # importing it fails
import v4cli.cli.start, v4cli.engine.engine, v4kernels.cpu, v4kernels.reference, v4kernels.native
print([name for name in sys.modules if name.startswith("v4kernels.triton")])
"""


def test_no_other_backend_imports_triton():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
