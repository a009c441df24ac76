"""The tools that run programs: a shell command, Python code."""

import base64
import os
import shutil

from v4cli import system
from v4cli.agent import sandbox
from v4cli.agent.process import STANDARD, Finished, Limits
from v4cli.agent.sandbox import Access
from v4cli.agent.tools import Context, Kind, Tool, argument, parameters

POWERSHELL = os.path.join("System32", "WindowsPowerShell", "v1.0", "powershell.exe")
BEGIN = "[Console]::OutputEncoding = New-Object Text.UTF8Encoding $false; $ProgressPreference = 'SilentlyContinue'"
END = "if (-not $?) { if ($LASTEXITCODE) { exit $LASTEXITCODE }; exit 1 }"  # as of a program, where it was one


def tools(limits: Limits = STANDARD, network: bool = False) -> list[Tool]:
    """run_shell and run_python, within these limits."""

    def run(argv: list[str], context: Context) -> str:
        access = Access.OWN if context.disposable else Access.WORK
        done = sandbox.run(argv, context.folder, limits, network, context.output, context.cancelled, access)
        return report(done)

    return [
        Tool(
            "run_shell",
            "Run a shell command",
            parameters(["command"], command={"type": "string"}),
            Kind.RUN,
            lambda arguments, context: run(shell(argument(arguments["command"])), context),
            lambda arguments, context: arguments["command"],
        ),
        Tool(
            "run_python",
            "Run Python code as a script of its own; print what you want to see",
            parameters(["code"], code="the source code"),
            Kind.RUN,
            lambda arguments, context: run([sandbox.python(), "-c", argument(arguments["code"])], context),
            lambda arguments, context: arguments["code"],
        ),
    ]


def report(done: Finished) -> str:
    """What the model is told: what became of what it left, the output, and how it ended unless it went well."""
    text = done.text.rstrip("\n")
    if done.stopped:
        ending = f"[stopped: {done.stopped}]"
    else:
        ending = f"[exit status {done.status}]" if done.status else ""
    return "\n".join(part for part in (done.note, text, ending) if part) or "[no output]"


def shell(command: str) -> list[str]:
    """What runs a command line: bash, where there is one; on Windows PowerShell, which knows ls, cat and others too."""
    if system.WINDOWS:
        program = os.path.join(os.environ.get("SystemRoot", ""), POWERSHELL)
        coded = base64.b64encode(f"{BEGIN}\n{command}\n{END}\n".encode("utf-16-le")).decode()  # which needs no quotes
        return [program, "-NoProfile", "-NonInteractive", "-OutputFormat", "Text", "-EncodedCommand", coded]
    return ["bash" if shutil.which("bash", path=sandbox.PATH) else "sh", "-c", command]
