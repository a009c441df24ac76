"""Instructions that access memory -> actions: ld, st, atom, cp.async, and what orders them with the host."""

import re
import time
from collections.abc import Callable

import numpy as np

from ptx.action import Action, expect
from ptx.faults import Unknown
from ptx.group import Group, named
from ptx.host import Order
from ptx.memory import Access
from ptx.parse import Address, Immediate, Instruction, Operand, Program, Symbol, Vector
from ptx.values import DTYPES, everyone, typed, width

ACCESS = re.compile(r"(ld|st)((?:\.[a-zA-Z][\w:]*?)*?)(?:\.v([24]))?\.([bsuf](?:8|16|32|64))")
ATOMIC = re.compile(r"atom((?:\.[a-z]\w*)*)\.([bsu](?:32|64))")
SPACES = {"global", "shared", "param"}
SCOPES = {"cta", "gpu", "sys"}
CACHE = re.compile(r"nc|ca|cg|cs|lu|wb|wt|L[12]::(?!cache_hint)\w+")  # how long to keep what was read: of no matter
COPY = re.compile(r"cp\.async\.(ca|cg)\.shared\.global")
COPY_GROUPS = re.compile(r"cp\.async\.(commit_group|wait_group)")
FENCE = re.compile(r"fence\.(?:sc|acq_rel)\.(cta|gpu|sys)|membar\.(cta|gl|sys)")
CHANGES: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda old, b: old + b,
    "min": np.minimum,
    "max": np.maximum,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
}


def access(program: Program, instruction: Instruction) -> Action | None:
    """None for other instructions."""
    opcode = instruction.opcode
    if opcode.startswith(("ld.", "st.")):
        return _load_or_store(program, instruction)
    if opcode.startswith("atom."):
        return _atomic(instruction)
    if COPY.fullmatch(opcode):
        return _copy(instruction)
    if found := COPY_GROUPS.fullmatch(opcode):
        return _copy_groups(instruction, found[1] == "commit_group")
    if found := FENCE.fullmatch(opcode):
        expect(instruction, 0)
        return Action(
            _fence if "sys" in found.groups() else lambda: None, takes=_GROUPED if "sys" in found.groups() else ()
        )
    if opcode == "nanosleep.u32":
        (duration,) = expect(instruction, 1)
        return Action(lambda ns: time.sleep(int(ns.max()) * 1e-9), [(duration, "u32")])
    return None


_GROUPED = ("group", "mask")


def cell(program: Program, space: str) -> int:
    """Bytes that its instructions always access together: the smallest item, up to a word."""
    matrices = space == "shared" and any("matrix." in i.opcode for i in program.instructions)
    sizes = [2 if matrices else 4]
    for instruction in program.instructions:
        found = ACCESS.fullmatch(instruction.opcode)
        if found and space in found[2].split("."):
            sizes.append(width(found[4]) // 8)
    return min(sizes)


def base(place: Operand, space: str) -> tuple[Operand, str]:
    """The input that an address is computed from."""
    if not isinstance(place, Address):
        raise Unknown(f"{named(place)} as an address")
    short = space == "shared" and (isinstance(place.base, Symbol) or place.base.bits == 32)
    return place.base, "u32" if short else "s64"


def addresses(at: np.ndarray, place: Address) -> np.ndarray:
    """int64"""
    return at.astype(np.int64) + place.offset if at.dtype != np.int64 else at + place.offset if place.offset else at


def taking_part(mask: np.ndarray | None, threads: int) -> np.ndarray | slice | None:
    """Which threads do; None where none does."""
    if mask is None:
        return slice(None)
    count = np.count_nonzero(mask)
    return None if count == 0 else slice(None) if count == len(mask) else mask


def _order(words: list[str], kinds: tuple[str, ...]) -> Order:
    """Of the modifiers of an access that say it; `kinds` are those that it can have. Takes them from `words`."""
    said = [word for word in words if word in kinds]
    scopes = [word for word in words if word in SCOPES]
    for word in said + scopes:
        words.remove(word)
    if len(said) > 1 or len(scopes) > 1 or bool(scopes) != bool(set(said) - {"weak", "volatile"}):
        raise Unknown(f"{'.'.join(said + scopes)} as an order")
    kind = said[0] if said else "weak"
    return Order(
        kind in ("acquire", "acq_rel"), kind in ("release", "acq_rel"), kind == "volatile" or scopes == ["sys"]
    )


def _load_or_store(program: Program, instruction: Instruction) -> Action:
    found = ACCESS.fullmatch(instruction.opcode)
    if not found:
        raise Unknown(f"opcode {instruction.opcode}")
    operation, modifiers, count, kind = found.groups()
    words = modifiers.split(".")[1:]
    spaces = [word for word in words if word in SPACES]
    words = [word for word in words if word not in SPACES]
    order = _order(words, ("weak", "volatile", "relaxed", "acquire" if operation == "ld" else "release"))
    if len(spaces) != 1 or not all(CACHE.fullmatch(word) for word in words) or (order.system and spaces != ["global"]):
        raise Unknown(f"opcode {instruction.opcode}")
    first, second = expect(instruction, 2)
    value, place = (first, second) if operation == "ld" else (second, first)
    items = value.items if isinstance(value, Vector) else (value,)
    if not isinstance(place, Address) or len(items) != int(count or 1):
        raise Unknown(f"{named(value)} and {named(place)} as operands of {instruction.opcode}")
    if spaces == ["param"]:
        return _parameter(program, place, value, kind)
    if operation == "ld":
        return _load(spaces[0], place, items, kind, order)
    return _store(spaces[0], place, items, kind, order)


def _parameter(program: Program, place: Address, value: Operand, kind: str) -> Action:
    name = place.base.name
    declared = dict(program.parameters).get(name)
    if declared is None or place.offset or width(declared) != width(kind):
        raise Unknown(f"parameter {named(place)} as {kind}")
    return Action(lambda group: typed(group.run.parameters[name], kind), [], [(value, kind)], ("group",), exact=True)


def _load(space: str, place: Address, items: tuple[Operand, ...], kind: str, order: Order) -> Action:
    item_bytes, dtype, count = width(kind) // 8, DTYPES[kind], len(items)

    def load(group: Group, mask: np.ndarray | None, at: np.ndarray):
        at, thread = addresses(at, place), group.thread
        some = taking_part(mask, len(thread))
        if some is None:
            value = np.zeros((1, count), dtype)
        else:
            if some is mask:
                at, thread = everyone(at, len(thread))[some], thread[some]
            wanted = Access(thread, at, item_bytes, count)
            if space == "global":
                value = group.run.memory.load(wanted, group.clock, order)
            else:
                value = group.shared.load(wanted, group.clock)
            value = value.view(dtype)
            if some is mask:
                whole = np.zeros((len(group.thread), count), dtype)
                whole[some] = value
                value = whole
        return value[:, 0] if count == 1 else list(value.T.copy())

    return Action(load, [base(place, space)], [(item, kind) for item in items], _GROUPED, exact=True)


def _store(space: str, place: Address, items: tuple[Operand, ...], kind: str, order: Order) -> Action:
    item_bytes, bits = width(kind) // 8, f"b{width(kind)}"

    def store(group: Group, mask: np.ndarray | None, at: np.ndarray, *values: np.ndarray) -> None:
        thread, n = group.thread, len(group.thread)
        some = taking_part(mask, n)
        if some is None:
            return
        at = everyone(addresses(at, place), n)
        value = np.empty((n, len(values)), DTYPES[bits])
        for i, each in enumerate(values):
            value[:, i] = each
        if some is mask:
            at, thread, value = at[some], thread[some], value[some]
        wanted = Access(thread, at, item_bytes, len(values))
        if space == "global":
            group.run.memory.store(wanted, value, group.clock, order)
        else:
            group.shared.store(wanted, value, group.clock)

    return Action(store, [base(place, space), *((item, bits) for item in items)], [], _GROUPED)


def _atomic(instruction: Instruction) -> Action:
    found = ATOMIC.fullmatch(instruction.opcode)
    words = found[1].split(".")[1:] if found else []
    operations = [word for word in words if word in CHANGES]
    if "global" not in words or len(operations) != 1:
        raise Unknown(f"opcode {instruction.opcode}")
    words.remove("global")
    words.remove(operations[0])
    order = _order(words, ("relaxed", "acquire", "release", "acq_rel")) if words else Order()
    if words:
        raise Unknown(f"opcode {instruction.opcode}")
    result, place, *values = expect(instruction, 4 if operations == ["cas"] else 3)
    compute, kind, item_bytes = CHANGES[operations[0]], found[2], width(found[2]) // 8

    def change(group: Group, mask: np.ndarray | None, at: np.ndarray, *given: np.ndarray) -> np.ndarray:
        n = len(group.thread)
        mask = np.ones(n, bool) if mask is None else everyone(mask, n)
        old = np.zeros(n, DTYPES[kind])
        if mask.any():
            wanted = Access(group.thread, addresses(at, place), item_bytes, 1).only(mask)
            given = [everyone(each, n)[mask][:, None] for each in given]
            new = lambda was: compute(was.view(DTYPES[kind]), *given).view(was.dtype)  # noqa: E731
            old[mask] = group.run.memory.change(wanted, new, group.clock, order)[:, 0].view(DTYPES[kind])
        return old

    inputs = [base(place, "global"), *((value, kind) for value in values)]
    return Action(change, inputs, [(result, kind)], _GROUPED, exact=True)


def _fence(group: Group, mask: np.ndarray | None) -> None:
    n = len(group.thread)
    threads = group.thread if mask is None else group.thread[everyone(mask, n)]
    group.run.memory.fence(threads, group.clock)


def _copy(instruction: Instruction) -> Action:
    """cp.async: destination, source, bytes, and whether these are read (as many) or zeros (none)."""
    place, source, size, *some = instruction.operands
    if not isinstance(size, Immediate) or size.value not in (4, 8, 16) or some[1:]:
        raise Unknown(f"operands of {instruction.opcode}")
    words = size.value // 4

    def copy(group: Group, mask: np.ndarray | None, to: np.ndarray, at: np.ndarray, count: np.ndarray) -> None:
        n = len(group.thread)
        mask = np.ones(n, bool) if mask is None else everyone(mask, n)
        if not mask.any():
            return
        count = everyone(count, n)
        if not np.isin(count[mask], (0, size.value)).all():
            raise Unknown("a copy of a part of its bytes")
        loaded = mask & (count > 0)
        value = np.zeros((n, words), np.uint32)
        if loaded.any():
            wanted = Access(group.thread, addresses(at, source), 4, words).only(loaded)
            value[loaded] = group.run.memory.load(wanted, group.clock)
        wanted = Access(group.thread, addresses(to, place), 4, words).only(mask)
        group.copies.begin(group.shared, wanted, value[mask], group.clock)

    inputs = [base(place, "shared"), base(source, "global"), ((*some, size)[0], "u32")]
    return Action(copy, inputs, [], _GROUPED)


def _copy_groups(instruction: Instruction, commit: bool) -> Action:
    if instruction.guard:
        raise Unknown(f"a guard before {instruction.opcode}")
    if commit:
        expect(instruction, 0)
        return Action(lambda group: group.copies.commit(), takes=("group",))
    (left,) = expect(instruction, 1)
    if not isinstance(left, Immediate):
        raise Unknown(f"operands of {instruction.opcode}")
    return Action(lambda group: group.copies.wait(group.shared, left.value, group.clock), takes=("group",))
