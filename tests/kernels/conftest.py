"""Every ISA tier, and the op table on each."""

import pytest
from steps import Steps
from v4kernels import native


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon", "i8mm"])
def tier(request):
    """Name of a tier this machine has, which the library uses meanwhile."""
    if not native.available():
        pytest.skip(native.reason())
    if request.param not in native.isa_tiers():
        pytest.skip(f"this machine has no {request.param}")
    native.set_isa(request.param)
    yield request.param
    native.set_isa(native.isa_tiers()[-1])


@pytest.fixture
def ops(tier):
    """The cpu op table and the steps of its attention, on each tier."""
    return Steps()
