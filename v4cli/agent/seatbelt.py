"""The sandbox of macOS: a profile for `sandbox-exec` that makes the promises of bubblewrap's (sandbox.py). What is not
allowed is denied; of rules that concern the same, the last counts."""

import os
import re
from collections.abc import Iterable, Sequence

PROGRAM = "/usr/bin/sandbox-exec"
SYSTEM = (  # folders that programs need, with nothing of the user's
    "/usr", "/bin", "/sbin", "/opt/homebrew", "/opt/local", "/System/Library", "/System/Cryptexes",
    "/System/Volumes/Preboot/Cryptexes", "/Library/Apple", "/Library/Developer", "/Library/Frameworks",
    "/Library/Fonts", "/Library/Java", "/Applications/Xcode.app", "/private/var/db/dyld", "/private/var/db/timezone",
    "/private/var/select", "/private/etc/ssl", "/private/etc/pki",
)  # fmt: skip
FILES = (
    "/", "/etc", "/var", "/tmp", "/private/etc/group", "/private/etc/localtime", "/private/etc/passwd",
    "/private/etc/protocols", "/private/etc/services", "/private/etc/shells", "/private/var/db/xcode_select_link",
    "/dev/random", "/dev/urandom", "/dev/null", "/dev/zero", "/dev/stdin", "/dev/stdout", "/dev/stderr",
)  # fmt: skip
OPEN = "/dev/fd"  # what a process has open, under names that shells use: for <(...), and as /dev/stderr
WRITTEN = ("/dev/null", "/dev/zero")
SERVICES = (  # programs of the system that may be asked: about users and groups; to log
    "com.apple.system.opendirectoryd.libinfo", "com.apple.system.opendirectoryd.membership",
    "com.apple.system.logger", "com.apple.system.notification_center",
)  # fmt: skip
NETWORK_FILES = ("/private/etc/hosts", "/private/etc/resolv.conf", "/private/var/run/resolv.conf")
NETWORK_SERVICES = ("com.apple.SystemConfiguration.configd", "com.apple.trustd", "com.apple.trustd.agent")
RESOLVER = "/private/var/run/mDNSResponder"  # a socket


def command(argv: Sequence[str], profile: str) -> list[str]:
    """That which runs argv under a profile."""
    return [PROGRAM, "-p", profile, *argv]


def profile(
    folder: str,
    temporary: str,
    readable: Iterable[str] = (),
    writable: bool = True,
    read_only: Iterable[str] = (),
    network: bool = False,
) -> str:
    """The profile of a run in the workspace `folder`, which may be written if `writable`, but for what is in
    `read_only`; so may its folder `temporary`. `readable`: folders to read besides those of the system. All real paths.
    """
    seen, kept = [*SYSTEM, *readable, folder, temporary], sorted(set(read_only))
    rules = [
        "(version 1)",
        "(deny default)",
        "(allow process-exec process-fork)",
        "(allow process-info* signal (target same-sandbox))",
        "(allow sysctl-read ipc-posix-sem)",
        _rule("allow mach-lookup", "global-name", SERVICES),
        _rule("allow file-read* file-map-executable", "subpath", seen),
        _rule("allow file-read*", "literal", FILES),
        _rule("allow file-read-metadata", "literal", _above(seen)),
        _rule("allow file-write-data", "literal", WRITTEN),
        _rule("allow file-read* file-write-data", "subpath", [OPEN]),
        _rule("allow file-write*", "subpath", [temporary, *([folder] if writable else [])]),
        _rule("deny file-write*", "subpath", kept),
        # who moves a folder above it would write it under another name
        _rule("deny file-write-unlink", "literal", [path for path in _above(kept) if _within(path, folder)]),
        _network() if network else "(deny network*)",
    ]
    return "\n".join(filter(None, rules)) + "\n"


def _network() -> str:
    """Rules that allow the internet, and asking for names and certificates; not the sockets of other programs."""
    rules = [
        "(allow system-socket)",
        '(allow network-outbound (remote ip "*:*"))',
        '(allow network-bind network-inbound (local ip "*:*"))',
        _rule("allow network-outbound", "literal", [RESOLVER]),
        _rule("allow file-read*", "literal", NETWORK_FILES),
        _rule("allow mach-lookup", "global-name", NETWORK_SERVICES),
    ]
    return "\n".join(rules)


def _rule(what: str, filter_name: str, values: Iterable[str]) -> str:
    """A rule about each of the values; nothing if there are none, for a rule without filters is about all."""
    filters = [f"\n  ({filter_name} {quoted(value)})" for value in values]
    return f"({what}{''.join(filters)})" if filters else ""


def quoted(text: str) -> str:
    """A string of the profile's language. ValueError for a text that it cannot hold."""
    if "\0" in text:
        raise ValueError("NUL in a path")
    text = re.sub(r'[\\"]', lambda found: "\\" + found[0], text)
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _above(paths: Iterable[str]) -> list[str]:
    """Folders on the way to paths, those without them."""
    found: dict[str, None] = {}
    for path in paths:
        while (path := os.path.dirname(path)) not in ("/", ""):
            found[path] = None
    return sorted(found)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
