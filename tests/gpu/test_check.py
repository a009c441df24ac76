"""The checks that `v4 doctor` makes of a card pass on a device that is right, and on none that is not."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from emulated import Emulated
from v4kernels.triton import check


class Wrong(Emulated):
    """The last bit of one byte of all that is read is another one."""

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        found = super().read(address, n_bytes)
        found[n_bytes // 2] ^= 1
        return found


@pytest.mark.parametrize("name", ["quantizing", "multiplying"])
def test_a_device_with_the_bits_of_the_cpu_passes_and_keeps_nothing(name):
    device = Emulated()
    assert getattr(check, name)(device) == ""
    assert device.nbytes == 0


@pytest.mark.parametrize("name", ["quantizing", "multiplying"])
def test_a_single_bit_is_noticed(name):
    assert "1 of" in getattr(check, name)(Wrong())
