"""MCP servers and the grammar from the settings, in v4 run and v4 chat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mcp_server.py")
QUESTION = "what is 17*23?"


@pytest.fixture
def v4(tmp_path):
    """Run v4 with a server in the settings, and the grammar, without which nano would say calculator."""
    config = f'temp = 0\nconstrain = true\n[mcp.my]\ncommand = ["{sys.executable}", "{SCRIPT}", "single"]\n'
    (tmp_path / "config.toml").write_text(config)
    env = os.environ | {"V4_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*args, stdin=""):
        command = [sys.executable, "-m", "v4cli", *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=env)

    return run


def test_run_calls_a_server_that_is_named_and_allowed(v4):
    done = v4("run", "--tools", "mcp", "--approve", "all", QUESTION)
    assert done.returncode == 0 and done.stdout.strip() == "17*23 = 391"
    assert "my__calculator" in done.stderr
    refused = v4("run", "--tools", "mcp", QUESTION)
    assert "my__calculator" in refused.stderr and "not run" in refused.stderr and "391" not in refused.stdout
    assert "my__" not in v4("run", "--tools", "nano", QUESTION).stderr


def test_chat_calls_it_too(v4):
    done = v4("chat", "--tools", "mcp", "--approve", "all", stdin=f"{QUESTION}\n/tools\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert "391" in done.stdout and "my__calculator" in done.stdout + done.stderr
