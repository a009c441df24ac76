"""The op table on every tier."""

import pytest
from steps import Steps
from v4kernels import native


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def ops(request):
    """The cpu op table and its steps, on each tier this machine has."""
    if not native.available():
        pytest.skip(native.reason())
    if request.param not in native.isa_tiers():
        pytest.skip(f"this machine has no {request.param}")
    native.set_isa(request.param)
    yield Steps()
    native.set_isa(native.isa_tiers()[-1])
