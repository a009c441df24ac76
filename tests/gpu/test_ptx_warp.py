"""What the threads of a warp do together, and what memory instructions cost."""

import numpy as np
import ptx
import pytest
from assembly import run

RNG = np.random.default_rng(7)


def lanes(values: np.ndarray, instruction: str, warps: int = 1) -> np.ndarray:
    """%r4 = the thread's value, the instruction, then %r5 is the result."""
    out = np.zeros(32 * warps, np.uint32)
    run(
        f"""
        mul.wide.u32 %rd4, %r0, 4;
        add.s64 %rd5, %rd0, %rd4;
        ld.global.b32 %r4, [%rd5];
        {instruction}
        add.s64 %rd6, %rd1, %rd4;
        st.global.b32 [%rd6], %r5;
        """,
        np.resize(values, 32 * warps).astype(np.uint32),
        out,
        threads=32 * warps,
    )
    return out


@pytest.mark.parametrize("by", [1, 4, 16, 31])
def test_shuffles_take_from_the_lane_they_name_and_keep_the_own_value_beyond_the_ends(by):
    values = RNG.integers(0, 2**32, 64)
    for mode, clamp, source in (
        ("bfly", 31, lambda lane: lane ^ by),
        ("up", 0, lambda lane: lane - by),
        ("down", 31, lambda lane: lane + by),
        ("idx", 31, lambda lane: by),
    ):
        got = lanes(values, f"shfl.sync.{mode}.b32 %r5, %r4, {by}, {clamp}, -1;", warps=2)
        want = [source(i % 32) if 0 <= source(i % 32) < 32 else i % 32 for i in range(64)]
        assert got.tolist() == [values[i // 32 * 32 + j] for i, j in enumerate(want)], mode


def test_shuffles_stay_within_segments_and_say_whether_they_did():
    values = np.arange(32)
    half = (0b10000 << 8) | 15  # lanes of a half share bit 4; the last is 15 above the first
    got = lanes(values, f"shfl.sync.down.b32 %r5|%p1, %r4, 3, {half}, -1;\nselp.b32 %r5, %r5, 999, %p1;")
    assert got.tolist() == [i + 3 if i % 16 < 13 else 999 for i in range(32)]
    got = lanes(values, f"shfl.sync.idx.b32 %r5, %r4, 5, {half}, 0xffffffff;")
    assert got.tolist() == [i // 16 * 16 + 5 for i in range(32)]


def test_reductions_give_every_lane_of_a_warp_the_same():
    values = RNG.integers(0, 2**32, 64)
    signed = values.astype(np.uint32).view(np.int32)
    got = lanes(values, "redux.sync.max.s32 %r5, %r4, -1;", warps=2)
    assert got.view(np.int32).tolist() == np.repeat([max(signed[:32]), max(signed[32:])], 32).tolist()
    got = lanes(values, "redux.sync.min.u32 %r5, %r4, -1;", warps=2)
    assert got.tolist() == np.repeat([min(values[:32]), min(values[32:])], 32).tolist()
    got = lanes(values, "redux.sync.add.u32 %r5, %r4, 0xffffffff;", warps=2)
    assert got.tolist() == np.repeat([sum(values[:32]) % 2**32, sum(values[32:]) % 2**32], 32).tolist()


def test_a_shuffle_of_some_lanes_is_refused():
    with pytest.raises(ptx.Unknown, match="a part of a warp"):
        lanes(np.arange(32), "shfl.sync.bfly.b32 %r5, %r4, 1, 31, 0xffff;")
    with pytest.raises(ptx.Unknown, match="guard"):
        lanes(np.arange(32), "setp.eq.b32 %p1, %r0, 0;\n@%p1 shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1;")


@pytest.mark.parametrize("load, store", [("", ""), (".trans", ""), ("", ".trans"), (".trans", ".trans")])
def test_matrices_of_halves_are_loaded_and_stored_straight_and_transposed(load, store):
    given = RNG.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    out = np.zeros((4, 8, 8), np.uint16)
    counted = run(
        f"""
        mov.b32 %r3, global_smem;
        mad.lo.s32 %r3, %r0, 16, %r3;
        mul.wide.u32 %rd4, %r0, 16;
        add.s64 %rd5, %rd4, %rd0;
        ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd5];
        st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{load}.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r3];
        bar.sync 0;
        stmatrix.sync.aligned.m8n8.x2{store}.shared.b16 [%r3], {{%r8, %r9}};
        stmatrix.sync.aligned.m8n8.x2{store}.shared.b16 [%r3+256], {{%r10, %r11}};
        bar.sync 0;
        ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3];
        add.s64 %rd5, %rd4, %rd1;
        st.global.v4.b32 [%rd5], {{%r4, %r5, %r6, %r7}};
        """,
        *(given, out),
        shared_bytes=512,
    )
    assert np.array_equal(out, given if load == store else given.swapaxes(1, 2))
    assert counted.shared_loads == ptx.Requests(2, 8)  # four at once of each
    assert counted.shared_stores == ptx.Requests(3, 8)


def test_matrix_units_multiply_int8_tiles_that_ldmatrix_laid_out():
    """D = A B + C of m16n8k32: rows of A and columns of B are 32 bytes in shared memory, two 16-byte rows of 8x8."""
    a = RNG.integers(-128, 128, (2, 16, 32)).astype(np.int8)
    b = RNG.integers(-128, 128, (2, 8, 32)).astype(np.int8)  # a column a row
    c = RNG.integers(-(2**30), 2**30, (2, 16, 8)).astype(np.int32)
    d = np.zeros((2, 16, 8), np.int32)
    run(
        """
        mov.b32 %r3, global_smem;
        shr.u32 %r4, %r0, 5;            // warp
        and.b32 %r5, %r0, 31;           // lane
        mad.lo.s32 %r3, %r4, 768, %r3;  // each warp's A and B
        mul.wide.u32 %rd10, %r4, 512;
        add.s64 %rd11, %rd0, %rd10;
        mul.wide.u32 %rd12, %r5, 16;
        add.s64 %rd11, %rd11, %rd12;    // A: 32 threads of 16 bytes
        ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%rd11];
        mad.lo.s32 %r10, %r5, 16, %r3;
        st.shared.v4.b32 [%r10], {%r6, %r7, %r8, %r9};
        mul.wide.u32 %rd13, %r4, 256;
        mul.wide.u32 %rd14, %r5, 8;
        add.s64 %rd15, %rd1, %rd13;
        add.s64 %rd15, %rd15, %rd14;    // B: 32 threads of 8 bytes
        ld.global.v2.b32 {%r6, %r7}, [%rd15];
        mad.lo.s32 %r10, %r5, 8, %r3;
        st.shared.v2.b32 [%r10+512], {%r6, %r7};
        bar.sync 0;
        and.b32 %r11, %r5, 15;          // rows 0 to 15, left half, then right half
        shr.u32 %r12, %r5, 4;
        shl.b32 %r12, %r12, 4;
        mad.lo.s32 %r13, %r11, 32, %r12;
        add.s32 %r13, %r13, %r3;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r14, %r15, %r16, %r17}, [%r13];
        and.b32 %r11, %r5, 7;           // 8 columns of B, upper half, then lower half
        and.b32 %r12, %r5, 8;
        shl.b32 %r12, %r12, 1;
        mad.lo.s32 %r13, %r11, 32, %r12;
        add.s32 %r13, %r13, %r3;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r18, %r19}, [%r13+512];
        shr.u32 %r20, %r5, 2;           // C: rows g and g + 8, columns 2 t and 2 t + 1
        and.b32 %r21, %r5, 3;
        shl.b32 %r21, %r21, 3;
        mad.lo.s32 %r22, %r20, 32, %r21;
        cvt.u64.u32 %rd16, %r22;
        add.s64 %rd16, %rd16, %rd10;
        add.s64 %rd17, %rd16, %rd2;
        ld.global.v2.b32 {%r23, %r24}, [%rd17];
        ld.global.v2.b32 {%r25, %r26}, [%rd17+256];
        mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32
          {%r27, %r28, %r29, %r30}, {%r14, %r15, %r16, %r17}, {%r18, %r19}, {%r23, %r24, %r25, %r26};
        add.s64 %rd17, %rd16, %rd3;
        st.global.v2.b32 [%rd17], {%r27, %r28};
        st.global.v2.b32 [%rd17+256], {%r29, %r30};
        """,
        *(a, b, c, d),
        threads=64,
        shared_bytes=2 * 768,
    )
    assert np.array_equal(d, a.astype(np.int32) @ b.astype(np.int32).swapaxes(1, 2) + c)


def test_a_sum_of_matrix_units_that_leaves_int32_is_refused():
    registers = "mov.b32 %r4, 0x7f7f7f7f;\nmov.b32 %r5, 0x7fffffff;\n"
    vectors = "{%r6, %r7, %r8, %r9}, {%r4, %r4, %r4, %r4}, {%r4, %r4}, {%r5, %r5, %r5, %r5}"
    with pytest.raises(ptx.NotRepeatable, match="order"):
        cost(f"{registers}mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {vectors};")


def cost(body: str, shared_bytes: int = 0) -> ptx.Counters:
    return run(body, np.zeros(1024, np.uint32), threads=64, shared_bytes=shared_bytes)


@pytest.mark.parametrize("stride, sectors", [(0, 1), (4, 4), (8, 8), (32, 32), (16, 16)])
def test_sectors_of_a_request_are_counted(stride, sectors):
    counted = cost(f"""
        and.b32 %r4, %r0, 31;
        mul.wide.u32 %rd4, %r4, {stride};
        add.s64 %rd4, %rd4, %rd0;
        ld.global.b32 %r5, [%rd4];
    """)
    assert counted.global_loads == ptx.Requests(2, 2 * sectors)
    assert counted.instructions["ld.global.b32"] == 2


@pytest.mark.parametrize("stride, wavefronts", [(0, 1), (4, 1), (8, 2), (128, 32), (132, 1), (12, 1)])
def test_words_of_one_bank_are_served_one_after_the_other(stride, wavefronts):
    counted = cost(
        f"""
        mov.b32 %r3, global_smem;
        and.b32 %r4, %r0, 31;
        mad.lo.s32 %r4, %r4, {stride}, %r3;
        mov.b32 %r6, 7;
        setp.lt.u32 %p1, %r0, 32;
        @%p1 st.shared.b32 [%r4], %r6;
        bar.sync 0;
        ld.shared.b32 %r5, [%r4];
        """,
        shared_bytes=31 * 132 + 4,
    )
    assert counted.shared_stores == ptx.Requests(1, wavefronts)
    assert counted.shared_loads == ptx.Requests(2, 2 * wavefronts)


def test_shared_memory_is_of_the_block_whether_that_is_said_or_not():
    out = np.zeros(32, np.uint32)
    body = """
        mov.b32 %r3, global_smem;
        add.s32 %r3, %r3, %r2;
        st.shared::cta.b32 [%r3], %r0;
        ld.shared.b32 %r4, [%r3];
        mul.wide.u32 %rd4, %r0, 4;
        add.s64 %rd4, %rd4, %rd0;
        st.global.b32 [%rd4], %r4;
    """
    run(body, out, shared_bytes=128)
    assert out.tolist() == list(range(32))


def test_wide_accesses_go_by_halves_and_quarters_of_a_warp():
    body = """
        mov.b32 %r3, global_smem;
        mov.b32 %r6, 7;
        mad.lo.s32 %r4, %r0, {size}, %r3;
        st.shared.{kind} [%r4], {value};
    """
    for size, kind, value, wavefronts in ((8, "v2.b32", "{%r6, %r6}", 4), (16, "v4.b32", "{%r6, %r6, %r6, %r6}", 8)):
        counted = cost(body.format(size=size, kind=kind, value=value), shared_bytes=1024)
        assert counted.shared_stores == ptx.Requests(2, wavefronts)
