"""Common machines, and what would become of a model on them."""

from dataclasses import dataclass

from v4cli.plan.budget import SHARE
from v4cli.plan.placement import Budget, Needs, Plan, make_plan, shortage

GPU_SPEED = 1e12  # bytes/s, assumed: reading VRAM is not measured
SSD_SPEED = 3e9  # bytes/s, assumed where it cannot be measured
SSD_SPEEDS = (3e9, 7e9)
DESKTOP, WORKSTATION, SERVER = 80e9, 300e9, 460e9


@dataclass(frozen=True)
class Machine:
    """RAM and VRAM in GiB, of which SHARE is used; bytes/s of RAM."""

    name: str
    ram: int
    vram: int
    ram_speed: float

    def budget(self, ssd_speed: float) -> Budget:
        ram, vram = (int(SHARE * (n << 30)) for n in (self.ram, self.vram))
        return Budget(ram, vram, self.ram_speed, GPU_SPEED, ssd_speed)


MACHINES = (
    *(Machine(f"{n} GB", n, 0, DESKTOP) for n in (16, 32, 64, 128, 192)),
    Machine("64 GB + 24 GB GPU", 64, 24, DESKTOP),
    Machine("128 GB + 24 GB GPU", 128, 24, DESKTOP),
    Machine("512 GB workstation", 512, 0, WORKSTATION),
    Machine("1 TB server", 1024, 0, SERVER),
)


def plans(needs: Needs, machine: Machine) -> tuple[dict[float, Plan], int]:
    """The plan on a machine by speed of its SSD; bytes of RAM missing, if there is none."""
    missing = shortage(needs, machine.budget(SSD_SPEED))
    if missing > 0:
        return {}, missing
    return {speed: make_plan(needs, machine.budget(speed)) for speed in SSD_SPEEDS}, 0
