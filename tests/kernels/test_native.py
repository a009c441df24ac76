"""The kernel library: every tier against float64 and bit for bit against the others, its loader, its threads."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from v4kernels import native

from v4cli.store import formats

ROOT = Path(__file__).parents[2]
OTHERS = ("avx2", "avx512", "neon", "i8mm", "platform_macos", "platform_windows")
BASELINE = sorted(f.stem for f in (ROOT / "kernels" / "cpu").glob("*.cpp") if f.stem not in OTHERS)
needs_library = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
EPS = 2.0**-24


@pytest.fixture(autouse=True)
def _restore():
    """One thread and the best tier, whatever a test chose."""
    yield
    if native.available():
        native.set_isa(native.isa_tiers()[-1])
        native.set_threads(1)


def g(seed):
    return torch.Generator().manual_seed(seed)


def by_scalar(compute):
    """The same computation by the scalar tier."""
    before = native.isa()
    native.set_isa("scalar")
    try:
        return compute()
    finally:
        native.set_isa(before)


def rounded(x):
    """x (N, K) as the kernels see it, in float64: int8 codes times scales."""
    q, scale = native.quantize(x)
    return (q.double().unflatten(1, (-1, 32)) * scale.double()[..., None]).flatten(1)


def packed(form, w):
    """A weight in a format, and what it stands for in float64."""
    codes, scale = getattr(formats, f"encode_{form}")(w)
    return native.matrix(codes, scale, form), getattr(formats, f"decode_{form}")(codes, scale).double()


def hard_rows(n, k, seed=0):
    """Activations with every kind of trouble that is finite: outliers, zeros, subnormals, huge and tiny rows."""
    x = torch.randn((n, k), generator=g(seed)) * torch.logspace(-6, 6, n)[:, None]
    x[0, 0] = 1e6
    x[n // 2, : k // 2] = 0.0
    x[-1] = 1e-42
    x[n // 3] *= 1e-30
    return x


# -- quantization of activations -------------------------------------------------------------------------------------


@needs_library
def test_activations_are_rounded_to_nearest_even_by_the_group_peak(tier):
    x = torch.cat((hard_rows(9, 96), torch.zeros(1, 96), torch.full((1, 96), 3.0)))
    q, scale = native.quantize(x)
    groups = x.unflatten(1, (-1, 32))
    want = (groups.abs().amax(-1) / 127).clamp_min(2.0**-120)
    assert torch.equal(scale, want)
    assert torch.equal(q.unflatten(1, (-1, 32)), torch.round(groups / want[..., None]).to(torch.int8))
    half = torch.zeros(1, 32)
    half[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    assert native.quantize(half)[0][0, :4].tolist() == [127, 0, 2, -2]


@needs_library
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_makes_its_own_token_nan(tier, bad):
    m, _ = packed("int8", torch.randn((5, 64), generator=g(1)))
    x = torch.ones(4, 64)
    x[2, 40] = bad
    q, scale = native.quantize(x)
    assert scale[2, 1].isnan() and scale.isnan().sum() == 1 and (q[2, 32:] == 0).all()
    y = native.linear(x, m)
    assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()


# -- linear ----------------------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("form", ["fp4", "int8", "int4", "q3", "q2"])
@pytest.mark.parametrize("k", [32, 96, 256, 288, 544])
def test_linear_is_within_rounding_of_float64_and_the_same_everywhere(tier, form, k):
    """Bits equal those of the scalar tier, of one token at a time, and of any number of threads."""
    w = torch.randn((70, k), generator=g(2)) * torch.logspace(-3, 3, 70)[:, None]
    w[3], w[4, : k // 2] = 0.0, 0.0
    for rows, n in ((1, 1), (7, 2), (16, 3), (33, 4), (70, 37)):
        m, dense = packed(form, w[:rows])
        x = hard_rows(n, k)
        y = native.linear(x, m)
        want = rounded(x) @ dense.T
        bound = (rounded(x).abs() @ dense.abs().T) * (k / 32 + 8) * EPS
        assert ((y - want).abs() <= bound + 1e-37).all()
        assert torch.equal(y, by_scalar(lambda x=x, m=m: native.linear(x, m)))
        assert torch.equal(y, torch.cat([native.linear(row[None], m) for row in x]))
        native.set_threads(2)
        assert torch.equal(y, native.linear(x, m))
        native.set_threads(1)


@needs_library
def test_extreme_codes_do_not_saturate(tier):
    """Every sign of the largest codes, -128 included, which the store never writes but a file may hold."""
    x = torch.ones(6, 64) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])[:, None]
    x[2:4, ::2] *= -1
    for low, high in ((-128, 127), (-128, -128), (127, 127)):
        codes = torch.tensor([low, high] * 32, dtype=torch.int8).repeat(40, 1)
        y = native.linear(x, native.matrix(codes, torch.ones(40, 2, dtype=torch.bfloat16), "int8"))
        assert torch.allclose(y.double(), rounded(x) @ codes.double().T, rtol=1e-6)
    for form, dtype in (("fp4", torch.float8_e8m0fnu), ("int4", torch.bfloat16)):
        decode = getattr(formats, f"decode_{form}")
        for byte in (0x00, 0x77, 0xFF, 0x7F, 0xF7, 0x88):
            codes, scale = torch.full((40, 32), byte, dtype=torch.uint8), torch.ones(40, 2).to(dtype)
            y = native.linear(x, native.matrix(codes, scale, form))
            assert torch.allclose(y.double(), rounded(x) @ decode(codes, scale).double().T, rtol=1e-6)


@needs_library
@pytest.mark.parametrize("form", ["q3", "q2"])
def test_every_code_and_multiplier_is_what_it_stands_for(tier, form):
    """Random bytes, which use all of them, by inputs of the largest codes, and rows that end with the memory."""
    about, decode = formats.FORMATS[form], getattr(formats, f"decode_{form}")
    for rows, k in ((40, 288), (1, 32), (3, 96)):
        stored = about.tensors(rows, k)
        codes, scale = (torch.randint(256, stored[half][1], generator=g(5), dtype=torch.uint8) for half in stored)
        scale[:, :2] = torch.tensor([0x80, 0x3F], dtype=torch.uint8)  # 1
        x = torch.cat((torch.ones(1, k), -torch.ones(1, k), torch.randn((3, k), generator=g(6)).sign()))
        dense = decode(codes, scale).double()
        y = native.linear(x, native.matrix(codes, scale, form))
        assert torch.allclose(y.double(), rounded(x) @ dense.T, rtol=1e-6, atol=1e-3)
        assert torch.equal(y, torch.cat([native.linear(row[None], native.matrix(codes, scale, form)) for row in x]))
        extreme = decode(codes, scale).sign()[:5]  # inputs of the sign of a row's weights: sums as large as can be
        y = native.linear(extreme, native.matrix(codes, scale, form))
        assert torch.allclose(y.double(), rounded(extreme) @ dense.T, rtol=1e-6, atol=1e-3)


@needs_library
def test_every_fp4_scale_is_the_power_of_two_it_stands_for(tier):
    scale = torch.arange(247, dtype=torch.uint8)[:, None].view(torch.float8_e8m0fnu)
    codes = torch.full((247, 16), 0x22, dtype=torch.uint8)  # all ones
    for n in (1, 5):
        y = native.linear(torch.ones(n, 32), native.matrix(codes, scale, "fp4"))
        want = 32 * 2.0 ** (torch.arange(247).double() - 127)
        assert ((y.double() - want).abs() <= 1e-6 * want + 2.0**-140).all()


@needs_library
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_grouped_rows_see_their_own_inputs(tier, form):
    m, dense = packed(form, torch.randn((3 * 24, 96), generator=g(3)))
    for n in (1, 5):
        x = torch.randn((n, 3 * 96), generator=g(4))
        parts = rounded(x).unflatten(1, (3, 96))
        want = torch.einsum("ngi,goi->ngo", parts, dense.unflatten(0, (3, 24))).flatten(1)
        assert torch.allclose(native.linear(x, m, groups=3).double(), want, rtol=1e-4, atol=1e-4)


# -- experts ---------------------------------------------------------------------------------------------------------


def expert(forms, d, inter, seed):
    """`forms`: of w1, w3 and w2, or one of all."""
    shapes, forms = ((inter, d), (inter, d), (d, inter)), (forms,) * 3 if isinstance(forms, str) else forms
    parts = [
        packed(form, torch.randn(shape, generator=g(seed + i)) * shape[1] ** -0.5 * 2)
        for i, (form, shape) in enumerate(zip(forms, shapes))
    ]
    return native.Expert(*(p[0] for p in parts)), [p[1] for p in parts], parts


def expert64(x, dense, weight, limit):
    gate, up = (rounded(x) @ dense[0].T).clamp(max=limit), (rounded(x) @ dense[1].T).clamp(-limit, limit)
    return rounded((gate * torch.sigmoid(gate) * up * weight).float()) @ dense[2].T


@needs_library
@pytest.mark.parametrize("d,inter,count,top_k,shared_form,forms", [
    (256, 128, 6, 2, "int8", ["fp4"]), (96, 32, 4, 3, "int4", ["fp4"]), (512, 288, 3, 1, None, ["fp4"]),
    (64, 64, 5, 2, "fp4", ["fp4"]), (256, 96, 4, 2, None, ["int8"]), (96, 64, 4, 2, "int8", ["int4"]),
    (96, 32, 6, 3, ("int8", "int4", "fp4"),
     [("fp4", "fp4", "int8"), "int4", ("int4", "int8", "fp4"), ("int8", "int8", "int4"), "fp4"]),
    (192, 128, 6, 2, "int8", [("q2", "q2", "q3"), "q3", ("q3", "fp4", "q2"), "q2"]),
])  # fmt: skip
def test_experts_are_within_rounding_of_float64_and_the_same_everywhere(
    tier, d, inter, count, top_k, shared_form, forms
):
    """`forms` of the experts, in turn: they may differ between matrices and between experts."""
    limit = 2.0
    made = [expert(forms[e % len(forms)], d, inter, 10 * e) for e in range(count)]
    table = (native.Expert * count)(*(e[0] for e in made))
    shared = expert(shared_form, d, 2 * inter, 999) if shared_form else None

    def run(x, ids, weights):
        out = torch.zeros_like(x)
        native.experts(x, ids, weights, table, shared and shared[0], limit, out)
        return out

    for n in (1, 3, 45):
        x = torch.randn((n, d), generator=g(n)) * 3
        ids = torch.rand((n, count), generator=g(n + 1)).topk(top_k).indices
        weights = torch.rand((n, top_k), generator=g(n + 2))
        want = expert64(x, shared[1], 1.0, limit) if shared else torch.zeros((n, d), dtype=torch.float64)
        for t in range(n):
            for e, weight in zip(ids[t].tolist(), weights[t].tolist()):
                want[t] += expert64(x[t : t + 1], made[e][1], weight, limit)[0]
        got = run(x, ids, weights)
        # Rounding of the middle activations may flip where float64 lies near a tie: half a step of a few values.
        assert (got - want).norm() <= 2e-3 * want.norm()
        assert torch.equal(got, by_scalar(lambda x=x, ids=ids, weights=weights: run(x, ids, weights)))
        assert torch.equal(got, torch.cat([run(x[t : t + 1], ids[t : t + 1], weights[t : t + 1]) for t in range(n)]))
        native.set_threads(2)
        assert torch.equal(got, run(x, ids, weights))
        native.set_threads(1)


@needs_library
def test_arguments_are_checked():
    m, _ = packed("int8", torch.randn((8, 64), generator=g(0)))
    codes, scale = m.tensors
    with pytest.raises(ValueError, match="does not fit"):
        native.linear(torch.ones(1, 32), m)
    with pytest.raises(ValueError, match="not a int8 weight"):
        native.matrix(codes, scale[:, :1].contiguous(), "int8")
    with pytest.raises(ValueError, match="contiguous"):
        native.matrix(codes.T.contiguous().T, scale, "int8")
    with pytest.raises(ValueError, match="out of range"):
        native.linear(torch.ones(1, 192), m, groups=3)
    one, _, alive = expert("fp4", 64, 32, 0)
    for ids in ([[1]], [[-1]]):
        with pytest.raises(ValueError, match="out of range"):
            native.experts(torch.ones(1, 64), torch.tensor(ids), torch.ones(1, 1), (native.Expert * 1)(one), None, 10.0,
                           torch.zeros(1, 64))  # fmt: skip
    for call in (lambda: native.set_isa("sse9"), lambda: native.set_threads(0), lambda: native.set_threads(5000)):
        with pytest.raises(ValueError):
            call()
    assert alive


# -- loader, tiers, objects ------------------------------------------------------------------------------------------


def library_path():
    from importlib.resources import files

    return Path(str(files("v4kernels").joinpath(native.LIBRARY)))


def test_a_library_that_is_missing_foreign_or_old_is_refused_with_a_reason(tmp_path, monkeypatch):
    assert "not built" in native.load(tmp_path / "none.so")[1]
    (tmp_path / "text.so").write_text("not a library")
    assert "cannot be loaded" in native.load(tmp_path / "text.so")[1]
    if native.available():
        monkeypatch.setattr(native, "ABI_VERSION", 99)
        library, reason = native.load(library_path())
        assert library is None and "needs 99" in reason


def test_a_machine_that_can_build_has_the_library():
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    assert native.available(), native.reason()


@needs_library
def test_environment_only_lowers_the_tier():
    code = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.v4k_isa.restype = ctypes.c_char_p;"
        "lib.v4k_isa_tiers.restype = ctypes.c_char_p; print(lib.v4k_isa().decode(), lib.v4k_isa_tiers().decode())"
    )

    def tiers(cap):
        out = subprocess.run([sys.executable, "-c", code, str(library_path())], env=os.environ | {"V4_ISA": cap},
                             capture_output=True, text=True, check=True)  # fmt: skip
        return out.stdout.split()

    assert tiers("scalar") == ["scalar", "scalar"]
    best = tiers("")
    assert best[0] == best[-1]
    assert tiers("avx9000") == best


def test_baseline_objects_run_on_any_machine():
    """No VEX or EVEX instruction outside the files of a tier."""
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    found = sorted(ROOT.glob("build/*x86_64/CMakeFiles/v4k.dir/cpu/*.o"))
    objects = [path for path in found if path.name.split(".")[0] in BASELINE]
    if len(objects) != len(BASELINE):
        pytest.skip("objects of an x86-64 build are not in build/")
    for path in objects:
        lines = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True).stdout
        words = [line.split("\t")[1].split() for line in lines.splitlines() if line.count("\t") >= 1]
        assert len(words) > 10
        bad = [word for word in words if word and word[0].startswith("v") and word[0] not in ("verr", "verw")]
        assert not bad and "ymm" not in lines and "zmm" not in lines, (path.name, bad[:3])


# -- threads ---------------------------------------------------------------------------------------------------------


@needs_library
def test_calls_from_many_threads_do_not_disturb_each_other():
    native.set_threads(3)
    m, _ = packed("int8", torch.randn((512, 512), generator=g(5)))
    inputs = [torch.randn((3, 512), generator=g(i)) for i in range(4)]
    want = [native.linear(x, m) for x in inputs]
    bad = []

    def work(i):
        for _ in range(30):
            if not torch.equal(native.linear(inputs[i], m), want[i]):
                bad.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for threads in (1, 2, 4, 3):
        native.set_threads(threads)
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not bad


@needs_library
def test_a_forked_child_computes_with_threads_of_its_own():
    native.set_threads(2)
    m, _ = packed("int8", torch.randn((512, 512), generator=g(5)))
    x = torch.ones(2, 512)
    want = native.linear(x, m)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(native.linear(x, m), want) and native.threads() == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(native.linear(x, m), want)


@needs_library
@pytest.mark.parametrize("official", ["fp8", "bf16"])
def test_int8_weights_are_those_of_the_reference(official):
    w = torch.randn((200, 160), generator=g(1)) * torch.exp2(torch.randint(-30, 20, (200, 1), generator=g(2)))
    w[3], w[5, 40:70] = 0, torch.linspace(-448, 448, 30)
    w[9, :32] = torch.arange(-16, 16) / 2  # on the grid of a power of two
    if official == "fp8":
        values, block = formats.encode_fp8(w)
        dense, block_at = formats.decode_fp8(values, block), block.data_ptr()
    else:
        values, block_at = w.bfloat16(), None
        dense = values.float()
    want_codes, want_scale = formats.encode_int8(dense)
    codes, scale = torch.empty_like(want_codes), torch.empty_like(want_scale)
    call = native.library().v4k_encode_int8
    native.checked(call(values.data_ptr(), block_at, 200, 160, codes.data_ptr(), scale.data_ptr()))
    assert torch.equal(codes, want_codes) and torch.equal(scale, want_scale)
    values[7, 9] = float("nan")
    with pytest.raises(FloatingPointError):
        native.checked(call(values.data_ptr(), block_at, 200, 160, codes.data_ptr(), scale.data_ptr()))
