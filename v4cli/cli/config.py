"""`v4 config show`: every setting, its origin, and the MCP servers; values that may be secret stay hidden."""

from v4cli import paths, settings
from v4cli.cli import output


def show(as_json: bool) -> None:
    """All settings, those that are not set too."""
    found = settings.load()
    if as_json:
        keys = {key: {"value": _plain(s.value), "origin": s.origin} for key, s in found.keys.items()}
        output.json_page(keys | {"mcp": {name: _server(server) for name, server in found.mcp.items()}})
        return
    rows = [("setting", "value", "from", "")]
    for key, setting in found.keys.items():
        shown = "-" if setting.value is None else str(_plain(setting.value))
        rows.append((key, shown, setting.origin, settings.KEYS[key].help))
    for name, server in found.mcp.items():
        rows.append((f"mcp.{name}", _shown(server.url) or " ".join(server.command), str(paths.config_file()), ""))
    output.table(rows)


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
