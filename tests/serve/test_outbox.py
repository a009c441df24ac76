"""From the thread of an answer to the event loop: nothing lost, nothing out of order, texts in one piece."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v4cli.serve.events import Call, Finish, Text, Thinking, Usage
from v4cli.serve.outbox import Outbox, joined
from v4cli.serve.workers import Workers

words = st.text(min_size=1, max_size=3)
events = st.lists(
    st.tuples(st.integers(0, 1), st.builds(Thinking, words) | st.builds(Text, words) | st.just(Call("1", "a", "{}"))),
    max_size=12,
)


@given(events)
def test_texts_are_joined_and_all_else_stays(told):
    want: list = []
    for choice, event in told:
        if want and want[-1][0] == choice and type(want[-1][1]) is type(event) and not isinstance(event, Call):
            want[-1] = choice, type(event)(want[-1][1].text + event.text)
        else:
            want.append((choice, event))
    assert list(joined(told)) == want


def test_a_thread_that_tells_all_the_time_is_heard_to_its_end():
    n = 2000

    async def play() -> tuple[str, int]:
        box, text, times = Outbox(asyncio.get_running_loop(), lambda: 1e-5), "", 0

        def tell() -> None:
            for i in range(n):
                box.put(0, Text(f"{i} "))
            box.put(0, Finish("stop"))
            box.put(0, Usage())

        threading.Thread(target=tell).start()
        while True:
            times += 1
            for _, event in await box.take():
                if isinstance(event, Text):
                    text += event.text
                elif isinstance(event, Usage):
                    return text, times

    text, times = asyncio.run(play())
    assert text == "".join(f"{i} " for i in range(n)) and times <= n + 2


@pytest.mark.parametrize("every", [0.0, 0.005])
def test_each_piece_comes_although_no_other_follows(every):
    async def play() -> list[str]:
        box, out = Outbox(asyncio.get_running_loop(), lambda: every), []
        for i in range(5):
            box.put(0, Text(str(i)))
            while not (came := await box.take()):
                pass
            out += [event.text for _, event in came]
        return out

    assert asyncio.run(play()) == list("01234")


def test_what_is_urgent_does_not_wait_and_brings_what_came_before():
    async def play() -> None:
        box = Outbox(asyncio.get_running_loop(), lambda: 1e9)
        assert box.is_due
        box.put(0, Text("first"))
        assert not box.is_due and await box.take() == [(0, Text("first"))]
        for urgent in (Call("1", "a", "{}"), Usage()):
            box.put(0, Text("b"))
            box.put(0, Text("c"))
            box.put(0, urgent)
            assert await asyncio.wait_for(box.take(), 60) == [(0, Text("bc")), (0, urgent)]

    asyncio.run(play())


def test_work_is_done_in_threads_that_stay():
    workers, seen, held = Workers(), [], threading.Event()

    def work(done: threading.Event) -> None:
        seen.append(threading.current_thread())
        done.set()

    def hold(at: threading.Event) -> None:
        at.set()
        held.wait()

    for _ in range(5):
        done = threading.Event()
        workers.submit(lambda done=done: work(done))
        done.wait()
    busy, after = threading.Event(), threading.Event()
    workers.submit(lambda: hold(busy))
    busy.wait()
    workers.submit(lambda: work(after))  # is not held up
    after.wait()
    held.set()
    assert len(set(seen)) <= 3 and all(thread.daemon for thread in seen)
