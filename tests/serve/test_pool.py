"""Which session a request gets, and what becomes of the others."""

import threading

import pytest
from test_answers import chat, post
from test_fairness import until

from v4cli.errors import Interrupted, ResourceError
from v4cli.serve.events import Call
from v4cli.serve.memory import Memory, Turn
from v4cli.serve.pool import Pool


class Timeline:
    """As much of a session as the pool looks at."""

    def __init__(self, tokens=()):
        self.tokens, self.kept, self.notes, self.unsaved_s = list(tokens), [], [], 1.0

    def keep(self, worth_s=None):
        if worth_s == 0.0:
            self.kept.append(list(self.tokens))

    def fork(self):
        return Timeline(self.tokens)


def taken(pool: Pool, tokens, ids=None):
    """Use a session for `tokens`; the one that it was."""
    with pool.session(tokens, lambda: False) as session:
        session.tokens = list(ids or tokens)
    return session


def at_once(work) -> None:
    work()


A, B, C = (list(range(i * 1000, i * 1000 + 100)) for i in range(3))


def test_a_conversation_gets_its_own_session_again():
    pool = Pool(Timeline, 3, at_once)
    first, second = taken(pool, A), taken(pool, B)
    assert first is not second
    assert taken(pool, [*A, 1, 2]) is first and taken(pool, [*B, 1, 2]) is second and pool.n_kept == 2
    assert not first.kept and not second.kept


def test_a_branch_is_a_copy_and_the_other_stays():
    pool = Pool(Timeline, 2, at_once)
    first = taken(pool, A)
    second = taken(pool, [*A[:50], 7, 7])
    assert second is not first and first.tokens == A and not first.kept


class Following:
    """A request that begins like another, in a thread of its own."""

    def __init__(self, pool: Pool, ids):
        self.pool, self.ids, self.cancel = pool, ids, threading.Event()
        self.got, self.error = None, None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        until(lambda: pool._n_following or not self.thread.is_alive())

    def _run(self):
        try:
            with self.pool.session(self.ids, self.cancel.is_set) as session:
                self.got = list(session.tokens)
        except Interrupted as error:
            self.error = error

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive() and not self.pool._n_following
        return self.got


def test_who_begins_like_another_waits_for_that_much_and_gets_a_copy():
    pool = Pool(Timeline, 3, at_once)
    with pool.session(A, lambda: False) as leader:
        follower = Following(pool, [*A[:60], 7])
        for n in (0, 59):
            leader.tokens = A[:n]
            pool.passed(leader)
            assert pool._n_following == 1
        leader.tokens = A[:64]
        pool.passed(leader)
        assert follower.end() == A[:64] and leader.tokens == A[:64]
    assert pool.n_busy == 0 and pool.n_kept == 2


@pytest.mark.parametrize("ids", [B, [*A[:20], *B]])
def test_who_has_little_in_common_with_others_does_not_wait(ids):
    pool = Pool(Timeline, 3, at_once)
    with pool.session(A, lambda: False):
        assert Following(pool, ids).end() == []


def test_who_is_left_behind_gets_what_there_is():
    pool = Pool(Timeline, 3, at_once)
    with pytest.raises(ZeroDivisionError), pool.session(A, lambda: False) as leader:
        follower = Following(pool, [*A[:60], 7])
        leader.tokens = A[:10]
        raise ZeroDivisionError
    assert follower.end() == A[:10] and pool.n_busy == 0


def test_who_goes_on_with_one_that_ends_gets_it_itself():
    """As the next turn does while the last one is being stored; who branches off gets a copy."""
    pool = Pool(Timeline, 3, at_once)
    with pool.session(A[:20], lambda: False) as leader:
        leader.tokens = list(A)
        branch, turn = Following(pool, [*A[:60], 7]), Following(pool, [*A, 7])
        leader.fork = lambda: Timeline(["copied"])
    assert (branch.end(), turn.end()) == (["copied"], A)
    assert pool.n_busy == 0 and pool.n_kept == 2


def test_who_hangs_up_while_waiting_for_a_copy_leaves_nothing():
    pool = Pool(Timeline, 3, at_once)
    with pool.session(A, lambda: False) as leader:
        follower = Following(pool, [*A[:60], 7])
        follower.cancel.set()
        assert follower.end() is None and follower.error
        leader.tokens = A
        pool.passed(leader)
    assert pool.n_busy == 0 and pool.n_kept == 1


def test_without_memory_for_a_copy_one_looks_for_another(monkeypatch):
    pool, forks = Pool(Timeline, 3, at_once), []

    def fork(self):
        forks.append(1)
        raise ResourceError("none")

    monkeypatch.setattr(Timeline, "fork", fork)
    with pool.session(A, lambda: False) as leader:
        follower = Following(pool, [*A[:60], 7])
        leader.tokens = A
        pool.passed(leader)
    assert follower.end() is not None and forks and pool.n_busy == 0


def test_who_was_used_first_gives_way_and_is_stored():
    pool = Pool(Timeline, 2, at_once)
    first, second = taken(pool, A), taken(pool, B)
    third = taken(pool, C)
    assert third not in (first, second) and first.kept == [A] and not second.kept
    branch = taken(pool, [*C[:50], 7])  # the copy takes the place of the one used first
    assert branch is not third and second.kept == [B] and pool.n_kept == 2 and third.tokens == C


def test_who_comes_does_not_wait_until_others_are_stored():
    later = []
    pool = Pool(Timeline, 2, later.append)
    first, second = taken(pool, A), taken(pool, B)
    taken(pool, C)
    assert len(later) == 1 and not first.kept and pool.emptied() is None
    taken(pool, [*C, 1])  # goes on where it was
    taken(pool, [7, 8])
    assert len(later) == 2 and pool.n_kept == 2
    waiting = threading.Thread(target=taken, args=(pool, [9]))  # too many are on their way to the disk
    waiting.start()
    until(lambda: pool.n_waiting == 1)
    later[0]()
    waiting.join()
    assert first.kept == [A] and not second.kept and len(later) == 3
    for work in later[1:]:
        work()
    assert second.kept == [B] and len(pool.emptied()) == 2


def test_who_needs_what_is_being_stored_waits_for_that():
    later = []
    pool = Pool(Timeline, 2, later.append)
    first = taken(pool, A)
    taken(pool, B)
    taken(pool, C)  # which the first made room for
    again = threading.Thread(target=taken, args=(pool, [*A, 1]))
    again.start()
    until(lambda: pool.n_waiting == 1)
    taken_back = pool.n_busy
    later[0]()
    again.join()
    assert taken_back == 0 and first.kept == [A]


def test_without_memory_others_give_way():
    def new():
        if pool.n_kept > 1:
            raise ResourceError("no memory")
        return Timeline()

    pool = Pool(new, 8, at_once)
    first = taken(pool, A)
    taken(pool, B)
    assert first.kept == [A]
    assert (pool.n_busy, pool.n_kept, pool.n_waiting) == (0, 1, 0)


def test_without_memory_who_is_being_stored_is_waited_for():
    made, later = [], []

    def new():
        made.append(Timeline())
        if len(made) == 2:
            raise ResourceError("no memory")
        return made[-1]

    pool = Pool(new, 1, later.append)
    first = taken(pool, A)
    asking = threading.Thread(target=taken, args=(pool, B))
    asking.start()
    until(lambda: len(made) == 2)
    assert not first.kept
    later[0]()
    asking.join()
    assert first.kept == [A] and len(made) == 3 and (pool.n_busy, pool.n_kept) == (0, 1)


def test_without_any_memory_the_request_fails_and_nothing_is_left_taken():
    def none():
        raise ResourceError("no memory")

    pool = Pool(none, 8, at_once)
    with pytest.raises(ResourceError):
        taken(pool, A)
    assert (pool.n_busy, pool.n_kept, pool.n_waiting) == (0, 0, 0)


def test_who_came_first_is_served_first():
    pool, order, threads = Pool(Timeline, 1, at_once), [], []

    def ask(i: int) -> None:
        with pool.session([i], lambda: False):
            order.append(i)

    with pool.session(A, lambda: False):
        for i in range(5):
            threads.append(threading.Thread(target=ask, args=(i,)))
            threads[-1].start()
            until(lambda: pool.n_waiting == len(threads))
        with pytest.raises(Interrupted):
            pool.session(B, lambda: True).__enter__()
    for thread in threads:
        thread.join()
    assert order == list(range(5)) and pool.n_busy == 0


def test_where_a_prompt_does_not_fit_others_give_way(service, served, nano):
    its = service(3)
    http = served(its)
    post(http, chat("a b c " * 20), max_tokens=1)
    usual, refused = nano.engine.account.pledge, []

    def pledge(session, n_tokens):
        if its.pool.n_kept > 1 and n_tokens:
            refused.append(n_tokens)
            raise ResourceError("no memory")
        usual(session, n_tokens)

    nano.engine.account.pledge = pledge
    try:
        whole = post(http, chat("d e f " * 20), max_tokens=1).json()
    finally:
        nano.engine.account.pledge = usual
    assert refused and whole["usage"]["completion_tokens"] == 1 and its.pool.n_kept == 1


def test_memory_is_bounded_and_asks_for_the_same():
    memory = Memory(most=2)
    said = [{"role": "user", "content": "hi"}]
    for i in range(3):
        call = Call(f"call_{i}", "tool", '{"a": 1}')
        memory.remember(said, Turn({"ids": [i], "text": "", "thinking": False}, "", "", (call,)))

    def restored(i: int, arguments: str, name: str = "tool"):
        call = {"id": f"call_{i}", "function": {"name": name, "arguments": arguments}}
        return memory.restored([*said, {"role": "assistant", "content": "", "tool_calls": [call]}])[1].get("sampled")

    assert restored(0, '{"a": 1}') is None
    assert restored(1, '{"a":1}')["ids"] == [1] and restored(2, '{ "a": 1.0 }')["ids"] == [2]
    assert restored(2, '{"a": 2}') is None and restored(2, "{", "tool") is None and restored(2, '{"a": 1}', "x") is None
