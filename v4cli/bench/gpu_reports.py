"""A plugin of pytest (-p v4cli.bench.gpu_reports): a line of JSON for each test as soon as it is over, so that whoever
ends a run in the middle keeps what it has shown."""

import json
import os
from typing import Any

FILE = "V4_GPU_REPORTS"  # names the file


def pytest_runtest_logreport(report: Any) -> None:
    """`report`: of one phase of a test; setup and teardown matter only if they did not pass."""
    if report.when != "call" and report.outcome == "passed":
        return
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": report.nodeid.split("::")[-1], "outcome": report.outcome}) + "\n")
