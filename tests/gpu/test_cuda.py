"""A real GPU's class without one: torch and Triton's driver are played, Triton's own launches are the measure."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
import small_kernels
import triton
from v4kernels.triton import cuda, launch
from v4kernels.triton.device import DeviceError

N = 128
STREAM = 0xABC


class Torch:
    """torch on a machine with two cards, whose memory is the host's."""

    def __init__(self):
        self.log = []
        self.version = SimpleNamespace(cuda="13.0", hip=None)
        self.room = 1 << 20
        self.cuda = self
        self.properties = SimpleNamespace(name="Some Card", total_memory=1 << 34, major=8, minor=9)
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.log.append("replay"))

    def __getattr__(self, name):
        return getattr(torch, name)

    def zeros(self, n, dtype, **place):
        if n > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate")
        whole = torch.zeros(n + 256, dtype=dtype)
        return whole[-whole.data_ptr() % 256 :][:n]

    empty = zeros

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def get_device_properties(self, device):
        return self.properties

    def Stream(self, device):
        return SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None)

    def Event(self):
        return SimpleNamespace(record=lambda: None, query=lambda: True)

    def stream(self, stream):
        return contextlib.nullcontext()

    def synchronize(self, device):
        self.log.append("synchronize")

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.log.append("capture")
        yield
        self.log.append("captured")


class Driver:
    """Triton's, which loads kernels and launches them."""

    def __init__(self, log):
        self.log = log
        self.utils = self
        self.broken = None

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return STREAM

    def get_current_target(self):
        return launch.target("sm_89")

    def get_device_properties(self, device):
        return {"max_shared_mem": 1 << 16}

    def load_binary(self, name, *_):
        if self.broken:
            raise self.broken
        self.log.append(f"load {name}")
        return "module", "function", 0, 0, 1024

    def launcher_cls(self, source, metadata):
        return lambda *arguments: self.log.append(arguments)


@pytest.fixture
def played(monkeypatch):
    """torch; its `driver` is Triton's."""
    played = Torch()
    played.driver = Driver(played.log)
    monkeypatch.setattr(cuda, "torch", played)
    monkeypatch.setattr(triton.runtime.driver, "_active", played.driver)
    launch._compiled.cache_clear()  # kernels that another driver loaded
    yield played
    launch._compiled.cache_clear()


def launched(log):
    return [entry for entry in log if isinstance(entry, tuple)]


def test_a_launch_is_called_as_triton_itself_calls_it(played):
    device = cuda.Cuda()
    a, b, out = (device.alloc(4 * N) for _ in range(3))
    device.launch(small_kernels.add, (3, 2), (a, b, out, N), {"BLOCK": N}, warps=2)
    made = launch.compiled(small_kernels.add, {"BLOCK": N}, "sm_89", warps=2)
    made[(3, 2, 1)](a, b, out, N, N, stream=STREAM)
    ours, theirs = launched(played.log)
    assert len(ours) == len(theirs) and ours[6:9] == (None, None, None)  # of hooks, which are nobody's
    assert ours[:6] == theirs[:6] and ours[9:] == theirs[9:]
    assert ours[:5] == (3, 2, 1, STREAM, "function") and ours[9:] == (a, b, out, N, N)


def test_constants_are_where_the_kernel_has_them_and_numbers_stay_numbers(played):
    device = cuda.Cuda()
    at = device.alloc(4 * N)
    device.launch(small_kernels.weighted, (2,), (at, at, at), {"BLOCK": N, "STRIDE": 7})
    assert launched(played.log)[0][9:] == (at, at, at, 7, N)


def test_memory_is_written_read_and_moved(played):
    device = cuda.Cuda()
    a, b = device.alloc(64), device.alloc(64)
    host, at = device.mapped(8)
    device.write(a + 8, np.arange(2, dtype=np.int64) + 5)
    device.move(b, a, 32)
    device.move(at, b + 8, 8)
    assert device.read(b, 32).view(np.int64).tolist() == [0, 5, 6, 0]
    assert host.view(np.int64).tolist() == [5]
    ticket = device.copy([(a, np.ones(2, np.int64)), (b, np.full(1, 3, np.int64))])
    assert device.completed(ticket)
    assert device.read(a, 24).view(np.int64).tolist() == [1, 1, 6] and device.read(b, 1) == 3


def test_only_what_was_allocated_is_accessed(played):
    device = cuda.Cuda()
    a = device.alloc(64)
    for forbidden in (
        lambda: device.read(a + 60, 5),
        lambda: device.write(a - 1, np.zeros(1, np.uint8)),
        lambda: device.move(a, a + 64, 1),
        lambda: device.copy([(a + 63, np.zeros(2, np.uint8))]),
        lambda: device.read(1, 1),
    ):
        with pytest.raises(ValueError, match="not allocated"):
            forbidden()
    with pytest.raises(ValueError, match="nothing was allocated"):
        device.free(a + 1)
    device.free(a)
    assert "synchronize" in played.log  # kernels may still use it
    with pytest.raises(ValueError, match="not allocated"):
        device.read(a, 1)


def test_kernels_are_loaded_before_their_launches_are_captured(played):
    device = cuda.Cuda()
    a = device.alloc(4 * N)
    with device.record() as graph:
        device.launch(small_kernels.add, (1,), (a, a, a, N), {"BLOCK": N})
        device.move(a, a + 64, 64)
        assert not launched(played.log)
    kinds = [entry if isinstance(entry, str) else "launch" for entry in played.log]
    assert kinds == ["load add", "capture", "launch", "captured"]
    graph.replay()
    assert played.log[-1] == "replay"


@pytest.mark.parametrize(
    "change, number, message",
    [
        ({"version": SimpleNamespace(cuda=None, hip=None)}, 0, "built for the CPU alone"),
        ({"is_available": lambda: False}, 0, "no GPU that torch can use, or no driver"),
        ({}, 2, "no GPU 2: there are 2, numbered from 0"),
        ({}, -1, "no GPU -1"),
        ({"device_count": lambda: 1}, 1, "no GPU 1: there is 1"),
    ],
)
def test_a_gpu_that_is_not_there_is_told_of(played, change, number, message):
    vars(played).update(change)
    with pytest.raises(DeviceError, match=message):
        cuda.Cuda(number)


def test_gpus_have_the_names_that_kernels_are_compiled_for(played):
    assert cuda.Cuda().gpu == "sm_89"
    played.properties = SimpleNamespace(name="Another", total_memory=1, gcnArchName="gfx942:sramecc+:xnack-")
    played.version = SimpleNamespace(cuda=None, hip="6.4")
    assert cuda.Cuda().gpu == "gfx942"


def test_lack_of_memory_is_a_memory_error_of_one_line(played):
    device = cuda.Cuda()
    for lacking in (device.alloc, device.mapped):
        with pytest.raises(MemoryError, match=r"^no memory for \d+ .*Tried to$"):
            lacking(played.room + 1)


def test_what_goes_wrong_on_the_way_is_told_of_in_one_line(played):
    device = cuda.Cuda()
    a = device.alloc(4 * N)
    played.driver.broken = RuntimeError("no C compiler was found\nat length")
    with pytest.raises(DeviceError, match=r"^the GPU: add cannot be loaded: no C compiler was found$"):
        device.launch(small_kernels.add, (1,), (a, a, a, N), {"BLOCK": N})

    def fails(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    played.synchronize = fails
    with pytest.raises(DeviceError, match="what was launched failed: CUDA error: an illegal memory access"):
        device.read(a, 1)
