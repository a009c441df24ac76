"""What can be wrong with a program or with a run of it."""


class Fault(Exception):
    """`thread`: the one it happened to, counted over all that go in step; None where it is the instruction itself."""

    def __init__(self, message: str, thread: int | None = None):
        super().__init__(message)
        self.thread = thread


class Unknown(Fault):
    """An opcode, modifier, operand or directive that this machine does not know; or a number of operands."""


class NotRepeatable(Fault):
    """An instruction whose result the PTX manual does not define to the bit."""


class OutOfBounds(Fault):
    """An access that is not within one buffer, or not within shared memory; a store to a buffer that is read-only."""


class Misaligned(Fault):
    """An access whose address is no multiple of its size."""


class Race(Fault):
    """An access that no barrier orders with another thread's, one of them changing the value."""


class Divergence(Fault):
    """Threads of one block that go different ways at a branch."""


class Uninitialised(Fault):
    """A register or a byte of shared memory that is read before anything was written to it."""
