"""`v4 config`: every setting, its origin, and the MCP servers; values that may be secret stay hidden. And to change
one."""

import json
import re
import tomllib
from pathlib import Path

from v4cli import paths, settings
from v4cli.cli import output
from v4cli.errors import UsageError
from v4cli.files import contents, decoded, write_atomically


def show(as_json: bool) -> None:
    """All settings, those that are not set too."""
    found = settings.load()
    if as_json:
        keys = {key: {"value": _plain(s.value), "origin": s.origin} for key, s in found.keys.items()}
        output.json_page(keys | {"mcp": {name: _server(server) for name, server in found.mcp.items()}})
        return
    rows = [("setting", "value", "from", "")]
    for key, setting in found.keys.items():
        shown = _default(key) if setting.value is None else str(_plain(setting.value))
        rows.append((key, shown, setting.origin, settings.KEYS[key].help))
    for name, server in found.mcp.items():
        rows.append((f"mcp.{name}", _shown(server.url) or " ".join(server.command), str(paths.config_file()), ""))
    output.table(rows)


def _default(key: str) -> str:
    """What holds where nothing is settled; "-" for what depends on the model or the machine."""
    value = settings.default_model() if key == "model" else settings.KEYS[key].default
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) and value != "" else "-"


def _plain(value):
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _server(server: settings.McpServer) -> dict:
    """A server without the values of its variables and headers."""
    where = {"url": _shown(server.url)} if server.url else {"command": list(server.command), "cwd": server.cwd}
    return where | {"env": sorted(server.env), "headers": sorted(server.headers), "timeout": server.timeout}


def _shown(url: str) -> str:
    """An address without what may be a password or key in it."""
    scheme, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def change(key: str, text: str) -> None:
    """Settle one setting in the user's file, or take it back (`default`). Nothing else in the file changes. UsageError
    for what is no setting or no value of it, and for a file that this cannot change."""
    path = paths.config_file()
    if key not in settings.KEYS:
        raise UsageError(f"there is no setting {key!r}", settings.meant(key))
    value = None if text == "default" else settings.from_text(key, text, "v4 config set")
    value = text if settings.KEYS[key].kind is Path and value is not None else value
    before = settings.read(path)
    lines = decoded(contents(path, settings.MAX_BYTES, UsageError), str(path)).splitlines() if path.exists() else []
    written = _written(lines, key, value)
    wanted = {name: old for name, old in before.items() if name != key} | ({} if value is None else {key: value})
    data = "".join(f"{line}\n" for line in written)
    if _values(data) != wanted:
        raise UsageError(f"{path}: {key} is written there in a way that only an editor can change", f"$EDITOR {path}")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, data.encode(), 0o600, keep=True)
    output.note(f"{path}: {key} is {'not set' if value is None else text}")
    now = settings.load().keys[key]
    if now.value is not None and now.origin != str(path):
        output.note(f"v4: {now.origin} goes before it: {key} is {_plain(now.value)} here")


def _values(data: str) -> dict | None:
    """What a file of settings says; None if it is none."""
    try:
        return tomllib.loads(data)
    except tomllib.TOMLDecodeError:
        return None


def _written(lines: list[str], key: str, value: object) -> list[str]:
    """The lines of a file of settings with this one; None: without it. It stands where it stood, else last of those
    before the first table."""
    at = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    there = [i for i in range(at) if re.match(rf"\s*{key}\s*=", lines[i])]
    new = [] if value is None else [f"{key} = {json.dumps(value, ensure_ascii=False)}"]
    if there:
        return lines[: there[0]] + new + lines[there[0] + 1 :]
    while at and not lines[at - 1].strip():
        at -= 1
    return lines[:at] + new + lines[at:]
