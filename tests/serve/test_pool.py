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


A, B, C = (list(range(i * 1000, i * 1000 + 100)) for i in range(3))


def test_a_conversation_gets_its_own_session_again():
    pool = Pool(Timeline, 3)
    first, second = taken(pool, A), taken(pool, B)
    assert first is not second
    assert taken(pool, [*A, 1, 2]) is first and taken(pool, [*B, 1, 2]) is second and pool.n_kept == 2
    assert not first.kept and not second.kept


def test_a_branch_is_a_copy_and_the_other_stays():
    pool = Pool(Timeline, 2)
    first = taken(pool, A)
    second = taken(pool, [*A[:50], 7, 7])
    assert second is not first and first.tokens == A and not first.kept


def test_who_was_used_first_gives_way_and_is_stored():
    pool = Pool(Timeline, 2)
    first, second = taken(pool, A), taken(pool, B)
    third = taken(pool, C)
    assert third is first and first.kept == [A] and not second.kept
    branch = taken(pool, [*C[:50], 7])  # the copy takes the place of the one used first
    assert branch is not third and second.kept == [B] and pool.n_kept == 2 and third.tokens == C


def test_without_memory_others_give_way():
    def new():
        if pool.n_kept > 1:
            raise ResourceError("no memory")
        return Timeline()

    pool = Pool(new, 8)
    first = taken(pool, A)
    taken(pool, B)
    assert first.kept == [A]
    assert (pool.n_busy, pool.n_kept, pool.n_waiting) == (0, 1, 0)


def test_without_any_memory_the_request_fails_and_nothing_is_left_taken():
    def none():
        raise ResourceError("no memory")

    pool = Pool(none, 8)
    with pytest.raises(ResourceError):
        taken(pool, A)
    assert (pool.n_busy, pool.n_kept, pool.n_waiting) == (0, 0, 0)


def test_who_came_first_is_served_first():
    pool, order, threads = Pool(Timeline, 1), [], []

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
