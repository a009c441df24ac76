"""Programs that a GPU would run without a word are refused: each test plants one fault."""

import numpy as np
import ptx
import pytest
from assembly import assemble, run


def read_only(n: int) -> np.ndarray:
    array = np.zeros(n, np.uint32)
    array.flags.writeable = False
    return array


AT_OWN_WORD = """
    mul.wide.u32 %rd4, %r0, 4;
    add.s64 %rd4, %rd4, %rd0;
"""
TO_NEIGHBOUR = """
    mov.b32 %r3, global_smem;
    add.s32 %r4, %r3, %r2;
    st.shared.b32 [%r4], %r0;
    {barrier}
    add.s32 %r5, %r2, {distance};
    and.b32 %r5, %r5, 255;
    add.s32 %r5, %r5, %r3;
    ld.shared.b32 %r6, [%r5];
    {second_barrier}
    st.shared.b32 [%r5], %r0;
"""


def exchange(barrier: str, second_barrier: str = "bar.sync 0;", distance: int = 4) -> ptx.Counters:
    """Two warps: each thread reads what another one wrote, then overwrites it."""
    body = TO_NEIGHBOUR.format(barrier=barrier, second_barrier=second_barrier, distance=distance)
    return run(body, np.zeros(1, np.uint32), threads=64, shared_bytes=256)


def test_an_exchange_with_barriers_is_no_race():
    assert exchange("bar.sync 0;").instructions["bar.sync"] == 4


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;"])
@pytest.mark.parametrize("distance", [4, 128])
def test_reading_what_another_thread_wrote_takes_a_barrier_of_both(barrier, distance):
    with pytest.raises(ptx.Race, match="another thread wrote"):
        exchange(barrier, distance=distance)


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;"])
def test_overwriting_what_another_thread_read_takes_a_barrier_of_both(barrier):
    body = f"""
        mov.b32 %r3, global_smem;
        add.s32 %r4, %r3, %r2;
        st.shared.b32 [%r4], %r0;
        bar.sync 0;
        ld.shared.b32 %r5, [%r4];
        {barrier}
        xor.b32 %r6, %r2, 128;
        add.s32 %r6, %r6, %r3;
        st.shared.b32 [%r6], %r0;
    """
    with pytest.raises(ptx.Race, match="another thread used"):
        run(body, np.zeros(1, np.uint32), threads=64, shared_bytes=256)


def test_a_barrier_of_the_warp_is_enough_within_it():
    body = """
        mov.b32 %r3, global_smem;
        add.s32 %r4, %r3, %r2;
        st.shared.b32 [%r4], %r0;
        bar.warp.sync 0xffffffff;
        xor.b32 %r5, %r2, 64;
        add.s32 %r5, %r5, %r3;
        ld.shared.b32 %r6, [%r5];
        bar.warp.sync 0xffffffff;
        st.shared.b32 [%r4], %r6;
    """
    run(body, np.zeros(1, np.uint32), threads=64, shared_bytes=256)


COPY = """
    mov.b32 %r3, global_smem;
    add.s32 %r4, %r3, %r2;
    xor.b32 %r5, %r4, {other};
    mul.wide.u32 %rd4, %r0, 4;
    add.s64 %rd5, %rd4, %rd0;
    add.s64 %rd6, %rd4, %rd1;
    setp.lt.u32 %p1, %r0, 60;
    selp.b32 %r7, 4, 0, %p1;
    cp.async.ca.shared.global [%r4], [%rd5], 0x4, %r7;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r4+256], [%rd5], 0x4, %r7;
    cp.async.commit_group;
    cp.async.wait_group {left};
    {barrier}
    ld.shared.b32 %r6, [%r5+{offset}];
    st.global.b32 [%rd6], %r6;
"""


def copied(left: int = 1, barrier: str = "bar.sync 0;", other: int = 128, offset: int = 0) -> np.ndarray:
    """Two copies of 64 words, the last four zeros; what was read of the first (offset 0) or the second (256)."""
    out = np.zeros(64, np.uint32)
    body = COPY.format(left=left, barrier=barrier, other=other, offset=offset)
    run(body, np.arange(60, dtype=np.uint32), out, threads=64, shared_bytes=512)
    return out


def test_what_was_copied_asynchronously_is_there_after_waiting_and_a_barrier():
    want = np.concatenate([np.arange(60), np.zeros(4)])
    assert np.array_equal(copied(), np.roll(want, 32))
    assert np.array_equal(copied(left=0, offset=256), np.roll(want, 32))
    assert np.array_equal(copied(barrier="", other=0), want)


def test_waiting_for_a_copy_takes_the_right_count_and_for_others_copies_a_barrier():
    with pytest.raises(ptx.Race, match="under way"):
        copied(offset=256)
    with pytest.raises(ptx.Race, match="under way"):
        copied(left=2, other=0)
    with pytest.raises(ptx.Race, match="another thread wrote"):
        copied(barrier="")


def test_a_copy_must_not_overtake_readers():
    body = """
        mov.b32 %r3, global_smem;
        add.s32 %r4, %r3, %r2;
        xor.b32 %r5, %r4, 128;
        st.shared.b32 [%r4], %r0;
        bar.sync 0;
        ld.shared.b32 %r6, [%r5];
        {barrier}
        cp.async.ca.shared.global [%r4], [%rd0], 4;
    """
    run(body.format(barrier="bar.sync 0;"), read_only(1), threads=64, shared_bytes=256)
    with pytest.raises(ptx.Race, match="another thread used"):
        run(body.format(barrier=""), read_only(1), threads=64, shared_bytes=256)


def test_threads_may_store_equal_values_to_one_word_but_no_others():
    body = "mov.b32 %r3, global_smem;\nst.shared.b32 [%r3], {value};"
    run(body.format(value="%r1"), np.zeros(1, np.uint32), threads=64, shared_bytes=4)
    with pytest.raises(ptx.Race, match="different values"):
        run(body.format(value="%r0"), np.zeros(1, np.uint32), threads=64, shared_bytes=4)


def test_bytes_of_one_word_may_belong_to_different_threads():
    body = """
        mov.b32 %r3, global_smem;
        add.s32 %r4, %r3, %r0;
        cvt.u16.u32 %rs1, %r0;
        st.shared.b8 [%r4], %rs1;
        ld.shared.b8 %rs2, [%r4];
    """
    run(body, np.zeros(1, np.uint32), threads=64, shared_bytes=64)


def test_blocks_cannot_exchange_anything():
    body = f"{AT_OWN_WORD}\nadd.s32 %r3, %r0, {{value}};\nst.global.b32 [%rd4], %r3;"
    run(body.format(value=7), np.zeros(32, np.uint32), blocks=2)
    with pytest.raises(ptx.Race, match="different values"):
        run(body.format(value="%r1"), np.zeros(32, np.uint32), blocks=2)
    with pytest.raises(ptx.Race, match="another thread used"):
        run(
            f"{AT_OWN_WORD}\nld.global.b32 %r3, [%rd4];\nbar.sync 0;\nst.global.b32 [%rd4], 7;",
            np.zeros(32, np.uint32),
            blocks=2,
        )


def test_a_block_may_exchange_through_device_memory_behind_a_barrier():
    body = f"""
        {AT_OWN_WORD}
        st.global.b32 [%rd4], %r0;
        {{barrier}}
        xor.b32 %r3, %r2, 128;
        cvt.u64.u32 %rd5, %r3;
        add.s64 %rd5, %rd5, %rd0;
        ld.global.b32 %r4, [%rd5];
    """
    run(body.format(barrier="bar.sync 0;"), np.zeros(64, np.uint32), threads=64)
    with pytest.raises(ptx.Race, match="another thread wrote"):
        run(body.format(barrier=""), np.zeros(64, np.uint32), threads=64)


def test_an_access_behind_a_buffer_is_out_of_bounds():
    body = f"{AT_OWN_WORD}\nld.global.b32 %r3, [%rd4+{{offset}}];"
    run(body.format(offset=0), np.zeros(32, np.uint32), read_only(1000))
    with pytest.raises(ptx.OutOfBounds, match=r"block 0, thread 31: .*byte 128 of test_param_0, which has 128"):
        run(body.format(offset=4), np.zeros(32, np.uint32), read_only(1000))
    with pytest.raises(ptx.OutOfBounds, match=r"thread 0: .*byte -4 of test_param_0"):
        run(body.format(offset=-4), np.zeros(32, np.uint32), read_only(1000))


def test_an_access_that_a_guard_leaves_out_is_not_made():
    body = (
        f"{AT_OWN_WORD}\nsetp.lt.u32 %p1, %r0, 20;\n@%p1 ld.global.b32 %r3, [%rd4];\n@!%p1 ld.global.b32 %r4, [%rd0];"
    )
    counted = run(body, np.zeros(20, np.uint32))
    assert counted.global_loads == ptx.Requests(2, 4)


def test_threads_may_go_to_different_buffers_each_within_its_own():
    body = """
        and.b32 %r3, %r0, 1;
        setp.eq.b32 %p1, %r3, 0;
        selp.b64 %rd4, %rd0, %rd1, %p1;
        mul.wide.u32 %rd5, %r0, 4;
        add.s64 %rd4, %rd4, %rd5;
        ld.global.b32 %r4, [%rd4];
        add.s64 %rd6, %rd2, %rd5;
        st.global.b32 [%rd6], %r4;
    """
    a, b, out = np.arange(32, dtype=np.uint32), np.arange(100, 132, dtype=np.uint32), np.zeros(32, np.uint32)
    counted = run(body, a, b, out)
    assert out.tolist() == [100 * (i % 2) + i for i in range(32)]
    assert counted.global_loads == ptx.Requests(1, 8)
    with pytest.raises(ptx.OutOfBounds, match=r"thread 31: .*test_param_1"):
        run(body, a, b[:31].copy(), out)


def test_null_is_near_no_buffer():
    with pytest.raises(ptx.OutOfBounds, match="near no buffer"):
        run("mov.b64 %rd4, 0;\nld.global.b32 %r3, [%rd4];", np.zeros(32, np.uint32))


def test_an_access_beyond_shared_memory_is_out_of_bounds():
    body = "mov.b32 %r3, global_smem;\nadd.s32 %r3, %r3, %r2;\nst.shared.b32 [%r3], %r0;"
    run(body, np.zeros(1, np.uint32), shared_bytes=128)
    with pytest.raises(ptx.OutOfBounds, match=r"thread 31: .*byte 124 of shared memory, which has 124"):
        run(body, np.zeros(1, np.uint32), shared_bytes=124)
    with pytest.raises(ptx.OutOfBounds, match="shared memory"):
        run("st.shared.b32 [%r2], %r0;", np.zeros(1, np.uint32), shared_bytes=128)


def test_a_store_to_what_is_only_read_is_out_of_bounds():
    with pytest.raises(ptx.OutOfBounds, match="read-only"):
        run("st.global.b32 [%rd0], 1;", read_only(32))


@pytest.mark.parametrize("access", ["ld.global.b32 %r3, [%rd0+2];", "ld.global.v4.b32 {%r3, %r4, %r5, %r6}, [%rd0+8];"])
def test_an_access_is_aligned_to_its_size(access):
    with pytest.raises(ptx.Misaligned, match="no multiple"):
        run(access, np.zeros(32, np.uint32))


def test_rows_of_matrices_are_aligned():
    body = "mov.b32 %r3, global_smem;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3+8];"
    with pytest.raises(ptx.Misaligned, match="row of a matrix"):
        run(body, np.zeros(1, np.uint32), shared_bytes=64)


def test_threads_of_a_block_that_part_before_a_barrier_are_told_of():
    body = "setp.eq.b32 %p1, %r0, 5;\n@%p1 bra $L;\nbar.sync 0;\n$L:"
    with pytest.raises(ptx.Divergence, match="thread 5: "):
        run(body, np.zeros(1, np.uint32))
    with pytest.raises(ptx.Divergence):
        run(body.replace("bra $L", "ret"), np.zeros(1, np.uint32))
    with pytest.raises(ptx.Unknown, match="barrier of a part"):
        run("setp.eq.b32 %p1, %r0, 5;\n@%p1 bar.sync 0;", np.zeros(1, np.uint32))
    with pytest.raises(ptx.Unknown, match="barrier of a part"):
        run("bar.sync 1;", np.zeros(1, np.uint32))


def test_blocks_may_part_and_each_goes_its_own_way():
    """Each block goes round as often as its number says; block 2 leaves early."""
    body = """
        setp.eq.b32 %p1, %r1, 2;
        @%p1 ret;
        mov.b32 %r3, 0;
        mov.b32 %r4, 0;
    $LOOP:
        setp.ge.u32 %p2, %r3, %r1;
        @%p2 bra $END;
        add.s32 %r3, %r3, 1;
        add.s32 %r4, %r4, %r0;
        bar.sync 0;
        bra $LOOP;
    $END:
        mad.lo.s32 %r5, %r1, 32, %r0;
        mul.wide.u32 %rd4, %r5, 4;
        add.s64 %rd4, %rd4, %rd0;
        st.global.b32 [%rd4], %r4;
    """
    out = np.full(5 * 32, 99, np.uint32)
    counted = run(body, out, blocks=5)
    want = np.arange(5)[:, None] * np.arange(32)
    want[2] = 99
    assert np.array_equal(out.reshape(5, 32), want)
    assert counted.instructions["bar.sync"] == 0 + 1 + 3 + 4


def test_a_register_is_written_before_it_is_read():
    for body in ("add.s32 %r3, %r4, 1;", "@%p3 st.global.b32 [%rd0], 1;", "st.global.b32 [%rd0], %r9;"):
        with pytest.raises(ptx.Uninitialised, match="read before it is written"):
            run(body, np.zeros(1, np.uint32))


def test_threads_that_a_guard_left_out_have_junk():
    body = f"{AT_OWN_WORD}\nsetp.eq.b32 %p1, %r0, 0;\n@%p1 mov.b32 %r3, 0;\nst.global.b32 [%rd4], %r3;"
    out = np.zeros(32, np.uint32)
    run(body, out)
    assert out[0] == 0 and out[1:].all()


def test_shared_memory_is_written_before_it_is_read():
    body = """
        mov.b32 %r3, global_smem;
        add.s32 %r3, %r3, %r2;
        setp.ne.b32 %p1, %r0, 9;
        @%p1 st.shared.b32 [%r3], %r0;
        ld.shared.b32 %r4, [%r3];
    """
    with pytest.raises(ptx.Uninitialised, match="thread 9: "):
        run(body, np.zeros(1, np.uint32), shared_bytes=128)


@pytest.mark.parametrize(
    "body",
    [
        "red.global.add.u32 [%rd0], 1;",
        "atom.shared.add.u32 %r3, [%r0], 1;",
        "atom.global.add.noftz.u32 %r3, [%rd0], 1;",
        "atom.global.acquire.add.u32 %r3, [%rd0], 1;",
        "ld.acquire.global.b32 %r3, [%rd0];",
        "ld.global.sys.b32 %r3, [%rd0];",
        "ld.release.sys.global.b32 %r3, [%rd0];",
        "ld.volatile.relaxed.sys.global.b32 %r3, [%rd0];",
        "ld.volatile.shared.b32 %r3, [%r0];",
        "st.acquire.sys.global.b32 [%rd0], %r0;",
        "fence.sys;",
        "ld.local.b32 %r3, [%rd0];",
        "ld.global.v4.b32 {%r3, %r4}, [%rd0];",
        "ld.global.L2::cache_hint.b32 %r3, [%rd0], %rd1;",
        "ld.global.b32 %rd3, %rd0;",
        "ld.global.b64 %r3, [%rd0];",
        "mov.b32 %r3, %clock;",
        "mov.b64 %r3, %rd0;",
        "bra $NOWHERE;",
        "bar.sync 0, 64;",
        "ret 1;",
        "wgmma.fence.sync.aligned;",
        "cp.async.wait_all;",
        "cp.async.cg.shared.global [%r0], [%rd0], 3;",
        ".local .align 4 .b8 stack[4];",
        "shfl.sync.bfly.b32 %r3, %r0, 1, 31;",
    ],
)
def test_what_the_machine_does_not_know_it_does_not_run(body):
    with pytest.raises(ptx.Unknown):
        run(f"setp.ne.b32 %p1, %r0, 99;\n@%p1 ret;\n{body}", np.zeros(1, np.uint32))


def test_what_is_never_reached_must_be_known_too():
    with pytest.raises(ptx.Unknown, match="opcode frobnicate"):
        run("bra $END;\nfrobnicate.b32 %r3, %r0;\n$END:", np.zeros(1, np.uint32))


def test_modules_are_one_kernel_with_one_size_of_block():
    with pytest.raises(ptx.Unknown, match="not one kernel"):
        ptx.load(".version 8.6\n.target sm_90\n")
    with pytest.raises(ptx.Unknown, match="blocks of"):
        assemble("", threads=48)


def test_arguments_fit_the_parameters():
    program = assemble("", 1)
    with pytest.raises(ValueError, match="2 arguments for 1"):
        ptx.launch(program, (1,), [0, 0])
    with pytest.raises(ValueError, match="test_param_0"):
        ptx.launch(program, (1,), [-1])
    with pytest.raises(ValueError, match="contiguous"):
        ptx.launch(program, (1,), [np.zeros((4, 4))[:, 1]])


def test_a_fault_says_where_it_is_in_the_source():
    text = """
        .visible .entry test(.param .u64 test_param_0)
        .reqntid 32
        {
        .reg .b32 %r<9>; .reg .b64 %rd<9>;
        ld.param.b64 %rd0, [test_param_0];
        .loc 1 27 9
        ld.global.b32 %r3, [%rd0+4];
        ret;
        }
        .file 1 "/some/where/linear.py"
    """
    with pytest.raises(ptx.OutOfBounds, match=r"^test, line 8 \(linear.py:27\), block 0, thread 0: ld.global.b32 %r3"):
        ptx.launch(ptx.load(text), (1,), [np.zeros(1, np.uint32)])
