"""System calls a sandboxed program is refused: the ways around namespaces that go through the kernel itself."""

import errno
import platform
import socket
import struct
from collections.abc import Sequence

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
X32 = 0x40000000  # numbers from here on are a second set of calls on x86_64

# number on x86_64, on aarch64
SOCKET, IOCTL = (41, 198), (16, 29)
REFUSED = {
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),  # keys of the user
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),  # calls not seen here
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}  # fmt: skip
UNKNOWN = {"openat2": (437, 437)}  # its arguments cannot be seen here; programs go on without it
SET_ID, DEVICE = 0o6000, 0o020000  # bits of a mode: setuid and setgid; set in those of character and block devices only
CREATING = 0x400040  # O_CREAT, and the part of O_TMPFILE that is its own: without them there is no mode
MODES = {  # calls that set permissions: which argument is the mode, and which bits it must not have
    "chmod": ((90, None), 1, SET_ID), "fchmod": ((91, 52), 1, SET_ID), "fchmodat": ((268, 53), 2, SET_ID),
    "fchmodat2": ((452, 452), 2, SET_ID), "creat": ((85, None), 1, SET_ID),
    "mknod": ((133, None), 1, SET_ID | DEVICE), "mknodat": ((259, 33), 2, SET_ID | DEVICE),
}  # fmt: skip
OPENS = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # which argument is the flags; the mode comes next
SHMGET, MAX_SEGMENT = (29, 194), 64 << 10  # bytes: this memory belongs to no process, so that nobody would count it
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # no sockets that are files: docker, ssh-agent, dbus
TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing on the user's terminal

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST, SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; of arguments, the low half
ALLOW, ERROR = 0x7FFF0000, 0x00050000
REFUSE = ERROR | errno.EPERM


def program(machine: str = platform.machine()) -> bytes:
    """The filter, as the kernel takes it; empty for a machine whose numbers are not known."""
    if machine not in ARCHITECTURES:
        return b""
    which = list(ARCHITECTURES).index(machine)
    lines = [_line(LOAD, ARCHITECTURE), _line(EQUAL, ARCHITECTURES[machine], 1, 0), _line(RETURN, REFUSE)]
    lines += [_line(LOAD, NUMBER), _line(AT_LEAST, X32, 0, 1), _line(RETURN, REFUSE)]
    for numbers in REFUSED.values():
        lines += [_line(EQUAL, numbers[which], 0, 1), _line(RETURN, REFUSE)]
    for numbers in UNKNOWN.values():
        lines += [_line(EQUAL, numbers[which], 0, 1), _line(RETURN, ERROR | errno.ENOSYS)]
    for numbers, argument, bits in MODES.values():
        lines += _on_mode(numbers[which], argument, bits)
    for numbers, argument in OPENS.values():
        lines += _on_mode(numbers[which], argument + 1, SET_ID, [_low(argument), _line(ANY_BIT, CREATING, 0, 3)])
    lines += _on_size(SHMGET[which], 1, MAX_SEGMENT)
    lines += _on_argument(SOCKET[which], FIRST, FAMILIES, ALLOW, REFUSE)
    lines += _on_argument(IOCTL[which], SECOND, TERMINAL, REFUSE, ALLOW)
    return b"".join([*lines, _line(RETURN, ALLOW)])


def _on_argument(number: int, offset: int, values: tuple[int, ...], result: int, otherwise: int) -> list[bytes]:
    """One result for a call whose argument is one of the values, another for the rest."""
    tests = [line for v in values for line in (_line(EQUAL, v, 0, 1), _line(RETURN, result))]
    block = [_line(LOAD, offset), *tests, _line(RETURN, otherwise)]
    return [_line(EQUAL, number, 0, len(block)), *block]


def _on_mode(number: int | None, argument: int, bits: int, condition: Sequence[bytes] = ()) -> list[bytes]:
    """No mode with one of these bits; `condition` skips the three lines that say so."""
    if number is None:  # this machine has no such call
        return []
    test = [_low(argument), _line(ANY_BIT, bits, 0, 1), _line(RETURN, REFUSE)]
    block = [*condition, *test, _line(RETURN, ALLOW)]
    return [_line(EQUAL, number, 0, len(block)), *block]


def _on_size(number: int, argument: int, most: int) -> list[bytes]:
    """No argument above this."""
    high = _line(LOAD, FIRST + 8 * argument + 4)
    block = [high, _line(EQUAL, 0, 0, 2), _low(argument), _line(AT_LEAST, most + 1, 0, 1)]
    block += [_line(RETURN, ERROR | errno.EINVAL), _line(RETURN, ALLOW)]
    return [_line(EQUAL, number, 0, len(block)), *block]


def _low(argument: int) -> bytes:
    """Load the low half of an argument."""
    return _line(LOAD, FIRST + 8 * argument)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
