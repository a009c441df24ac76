"""Claude Code, Codex, opencode, aider and llm, as they are installed from npm and PyPI, against nano: `make clients`.

Each answers one prompt, and one that wants a call of the tool `calculator`, which it is given in its own way; aider has
no tools. nano knows few prompts, and those of clients are long: where there are tools it has to call one first. Nothing
is sent anywhere else. What could not be installed is said; exit status 1 if a client gave no answer, or made no call.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from behind_port import behind_port

from v4cli import paths
from v4cli.chat.turn import Chat
from v4cli.serve.asked import Asked
from v4cli.serve.prompts import Encoded
from v4cli.serve.served import Served
from v4cli.serve.service import Service

BUILD = Path("build/clients").absolute()
NPM = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex", "opencode": "opencode-ai"}
PYPI = {"aider": "aider-chat", "llm": "llm"}
HELLO, SUM = "Hello, who are you?", "What is 17*23?"
SECONDS = 300
CALCULATOR = '''
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression"""
    import ast
    import operator as op

    ops = {ast.Add: op.add, ast.Sub: op.sub, ast.Mult: op.mul, ast.Div: op.truediv}

    def value(node):
        return ops[type(node.op)](value(node.left), value(node.right)) if isinstance(node, ast.BinOp) else node.value

    with open(MARKER, "a") as file:
        file.write(expression + "\\n")
    return str(value(ast.parse(expression, mode="eval").body))
'''
MCP = """
import json
import sys

ABOUT = {"name": "calculator", "description": "Evaluate an arithmetic expression"}
ABOUT["inputSchema"] = {
    "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]
}
for line in sys.stdin:
    asked = json.loads(line)
    told = asked.get("params") or {}
    if asked.get("method") == "initialize":
        result = {"protocolVersion": told["protocolVersion"], "capabilities": {"tools": {}}}
        result["serverInfo"] = {"name": "v4", "version": "1"}
    elif asked.get("method") == "tools/list":
        result = {"tools": [ABOUT]}
    elif asked.get("method") == "tools/call":
        result = {"content": [{"type": "text", "text": calculator(**told["arguments"])}]}
    else:
        result = {}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""  # that of the mcp package takes longer to start than Claude Code waits on a busy machine


def install(wanted: list[str]) -> dict[str, str]:
    """Where each client is; empty for those that are not to be had."""
    found = {}
    for name in wanted:
        if package := NPM.get(name):
            path = BUILD / "npm" / "node_modules" / ".bin" / name
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(BUILD / "npm"), package]
        else:
            path = BUILD / name / "bin" / name
            command = [str(BUILD / name / "bin" / "pip"), "install", "-q", PYPI[name]]
        if name in PYPI and not path.exists():
            subprocess.run([sys.executable, "-m", "venv", str(BUILD / name)])
        if not path.exists():
            with contextlib.suppress(OSError):  # there is no npm
                subprocess.run(command)
        found[name] = str(path) if path.exists() else ""
    return found


class Clients:
    """How each is told where the model is and what `calculator` is; `home` is all that they may write to."""

    def __init__(self, url: str, home: Path):
        self.url, self.home, self.marker = url, home, home / "called"
        self.work = home / "work"
        self.work.mkdir()
        (home / "calculator.py").write_text(self._with_marker(CALCULATOR))
        (home / "server.py").write_text(self._with_marker(CALCULATOR) + MCP)
        self.server = {"command": sys.executable, "args": [str(home / "server.py")]}

    def _with_marker(self, code: str) -> str:
        """Code that leaves a trace of every call."""
        return code.replace("MARKER", json.dumps(str(self.marker)))

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "TERM": "dumb", "NO_COLOR": "1",
            "ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_AUTH_TOKEN": "any", "ANTHROPIC_MODEL": "nano",
            "ANTHROPIC_SMALL_FAST_MODEL": "nano", "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1",
            "OPENAI_API_KEY": "any", "OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_BASE": f"{self.url}/v1",
            "V4_KEY": "any", "AIDER_ANALYTICS": "false", "LLM_USER_PATH": str(self.home / "llm"),
        }  # fmt: skip

    def claude(self, program: str, prompt: str, tools: bool) -> list[str]:
        config = json.dumps({"mcpServers": {"v4": self.server}} if tools else {"mcpServers": {}})
        more = ["--allowedTools", "mcp__v4__calculator"] if tools else []
        return [program, "-p", "--tools", "", "--strict-mcp-config", "--mcp-config", config, *more, "--", prompt]

    def codex(self, program: str, prompt: str, tools: bool) -> list[str]:
        provider = f'{{name="v4",base_url="{self.url}/v1",wire_api="responses",env_key="V4_KEY"}}'
        told = {"model_provider": '"v4"', "model_providers.v4": provider, "model": '"nano"'}
        told |= {"mcp_servers.v4": f'{{command="{sys.executable}",args=["{self.home}/server.py"]}}'} if tools else {}
        settings = [word for key, value in told.items() for word in ("-c", f"{key}={value}")]
        return [program, "exec", "--skip-git-repo-check", "--sandbox", "read-only", *settings, prompt]

    def opencode(self, program: str, prompt: str, tools: bool) -> list[str]:
        npm, options = "@ai-sdk/openai-compatible", {"baseURL": f"{self.url}/v1", "apiKey": "any"}
        provider = {"npm": npm, "name": "v4", "options": options, "models": {"nano": {"name": "nano"}}}
        config = {"provider": {"v4": provider}, "model": "v4/nano", "small_model": "v4/nano", "autoupdate": False}
        server = {"type": "local", "command": [self.server["command"], *self.server["args"]]}
        config |= {"tools": {"*": False, "v4_calculator": tools}, "mcp": {"v4": server} if tools else {}}
        (self.work / "opencode.json").write_text(json.dumps(config))
        return [program, "run", "-m", "v4/nano", prompt]

    def aider(self, program: str, prompt: str, tools: bool) -> list[str]:
        flags = ["--no-git", "--no-show-model-warnings", "--no-check-update", "--yes-always", "--no-stream"]
        return [] if tools else [program, "--model", "openai/nano", *flags, "--message", prompt]

    def llm(self, program: str, prompt: str, tools: bool) -> list[str]:
        folder = self.home / "llm"
        folder.mkdir(exist_ok=True)
        about = f"- model_id: nano\n  model_name: nano\n  api_base: {self.url}/v1\n  supports_tools: true\n"
        (folder / "extra-openai-models.yaml").write_text(about)
        more = ["--functions", str(self.home / "calculator.py")] if tools else []
        return [program, "-m", "nano", "--key", "any", *more, prompt]

    def run(self, name: str, program: str, tools: bool) -> tuple[bool, str]:
        """Whether it answered, with a call if there are tools; and the end of what it said."""
        command = getattr(self, name)(program, SUM if tools else HELLO, tools)
        if not command:
            return True, "has no tools"
        self.marker.unlink(missing_ok=True)
        try:
            done = subprocess.run(
                command, cwd=self.work, env=self.environment(), capture_output=True, text=True, timeout=SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False, f"no answer in {SECONDS} s"
        said = " ".join(done.stdout.split())[-160:] or " ".join(done.stderr.split())[-160:]
        called = self.marker.exists()
        is_right = done.returncode == 0 and bool(done.stdout.strip()) and (called or not tools)
        return is_right, said + (f" [called with {self.marker.read_text().strip()!r}]" if called else "")


def service() -> Service:
    """nano, which has to call a tool where there are some and none has been called."""
    its = Service(Served(lambda: Chat.open(paths.NANO), print), "nano", 4, lambda line: None)
    usual = its.encoded

    def encoded(asked: Asked) -> list[Encoded]:
        is_first = asked.tools and not any(message["role"] == "tool" for message in asked.messages)
        return usual(replace(asked, choice="required") if is_first else asked)

    its.encoded = encoded
    return its


def main() -> int:
    failed, programs = 0, install(sys.argv[1:] or [*NPM, *PYPI])
    with tempfile.TemporaryDirectory() as folder, behind_port(service()) as http:
        for name, program in programs.items():
            if not program:
                print(f"{name}: not installed", flush=True)
                continue
            for tools in (False, True):
                home = Path(tempfile.mkdtemp(dir=folder))
                right, said = Clients(str(http.base_url).rstrip("/"), home).run(name, program, tools)
                failed += not right
                what = "a call" if tools else "a prompt"
                print(f"{name}, {what}: {'ok' if right else 'FAILED'}: {said}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
