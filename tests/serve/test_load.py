"""Many conversations, few places in memory: little is computed twice, nothing stored is lost (load.py)."""

from contextlib import contextmanager

import pytest
from load import converse, hang_up, killed_and_restarted, least, serving
from test_fairness import until

SPARE = 1.05  # of the tokens that have to be computed


@pytest.fixture
def counted(service, served, nano, tmp_path, monkeypatch):
    """`counted(sessions)`: a client of a server, and what was computed there and where it has been."""
    computed: list[int] = []
    been: list[list[int]] = []
    compute = nano.engine.scheduler._compute

    def counting(jobs):
        compute(jobs)
        computed.extend(len(job.ids) for job in jobs)

    monkeypatch.setattr(nano.engine.scheduler, "_compute", counting)
    monkeypatch.setattr(nano.engine, "drafts", "off")  # guesses are computed in vain, and how many depends on the time

    def made(sessions: int):
        its = service(sessions, nano.engine.prefixes(tmp_path, 1 << 30, 1 << 30))
        usual = its.pool.session

        @contextmanager
        def watched(*args):
            with usual(*args) as session:
                yield session
                been.append(list(session.tokens))

        its.pool.session = watched
        return its, served(its), computed, been

    return made


def ratio_of(counted, sessions: int, n: int, turns: int, clients: int) -> float:
    _, http, computed, been = counted(sessions)
    converse(http, n, turns, clients)
    print(
        f"{n} conversations of {turns} turns, {clients} clients: {sum(computed):,} computed, {least(been):,} at least"
    )
    return sum(computed) / least(been)


def test_the_least_is_every_common_beginning_once():
    assert least([[1, 2, 3], [1, 2, 4, 5], [1, 2], [9]]) == 6


@pytest.mark.parametrize("clients", [1, 4])
def test_little_is_computed_twice(counted, clients):
    assert ratio_of(counted, 3, 6, 3, clients) <= SPARE


def test_after_hang_ups_all_are_free(service, served):
    its = service(2)
    hang_up(served(its), 24, 6)
    until(lambda: not its.pool.n_busy and not its.pool.n_waiting and not its.metrics.n_running)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [1, 8])
def test_32_conversations_compute_little_twice(counted, clients):
    assert ratio_of(counted, 8, 32, 5, clients) <= SPARE


@pytest.mark.slow
def test_1000_requests_whose_clients_hang_up(tmp_path):
    with serving(tmp_path, "--ram", "700M") as its:
        answered = hang_up(its.http, 1000, 16)
        until(lambda: its.http.get("/health").json()["busy"] == 0)
        assert answered > 50 and its.peak < 700 << 20 and its.end() == 0


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_stored(tmp_path):
    found = killed_and_restarted(tmp_path, ("--sessions", "4", "--ram", "700M"), 12, 2, 4)
    assert found["stored"] and not found["lost"] and found["exit_status"] == 0
    assert found["taken_up"] == 12
