"""`v4 rollout`: many tasks, each tried several times in a sandbox, with rewards."""

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event

from v4cli import paths, streams
from v4cli.agent import rollout, sandbox
from v4cli.agent.rollout import Result
from v4cli.agent.tasks import read_tasks
from v4cli.chat.turn import Chat
from v4cli.cli import found, output, sessions
from v4cli.cli.progress import LINE_EVERY, waiting
from v4cli.errors import Interrupted, UsageError
from v4cli.interrupts import interrupts
from v4cli.options import RolloutOptions
from v4cli.store import library

ENDS = {  # of rollouts that did not end with an answer of the model's own
    "length": "cut off at the limit of tokens", "rounds": "stopped at the limit of turns", "timeout": "out of time",
    "runaway": "stopped in a block of calls without end", "loop": "stopped in a loop", "error": "ended by an error",
}  # fmt: skip


def run_rollouts(told: RolloutOptions) -> None:
    """Do what is missing, and say how it went. Interrupted: what is finished stays."""
    tasks, out, conditions = read_tasks(told.tasks), told.out, told.conditions
    trouble = sandbox.trouble(out) if rollout.needs_sandbox(tasks, conditions.tool_use.tools) else ""
    if trouble:
        hint = "v4 doctor says more" if sandbox.missing() else "choose another --out"
        raise UsageError(f"rollouts need a sandbox: {trouble}", hint)
    conditions = replace(conditions, model=sessions.model_of(conditions.model, told.loading))
    folder, ram = library.model_folder(conditions.model), output.ram_budget(told.loading.ram)
    stop = Event()
    with interrupts(stop), rollout.output_folder(out, conditions):
        before, todo = rollout.done_before(out, tasks, told.n)
        tally = Tally(len(before) + len(todo), before)
        if todo:
            loading = found.nearest(conditions.model, told.loading, _said, "rollout")
            with waiting(f"loading {conditions.model}"):
                if loading.engine:
                    chat = sessions.open_chat(conditions.model, loading)
                else:
                    chat = Chat.open(folder, ram=ram, learned=paths.use_dir(), drafts=told.loading.drafts)
            chat.note = output.note
            rollout.run_all(chat, todo, out, conditions, told.jobs, tally.add, stop.is_set)
            sessions.keep(chat.session)
    tally.end(out, told.as_json)


def _said(text: str) -> None:
    output.note(f"v4: {text}", dim=True)


class Tally:
    """Counts trajectories, shows how far they are, sums them up."""

    def __init__(self, wanted: int, before: list[Result]):
        self.wanted, self.results = wanted, before
        self.new_tokens = 0
        self.start = self.told = time.monotonic()
        if before:
            output.note(f"{len(before)} of {wanted} rollouts are there already", dim=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.new_tokens += result.n_tokens
        styled, now = streams.live(sys.stderr), time.monotonic()
        if now - self.told > (0.1 if styled else LINE_EVERY):
            self.told = now
            line = f"{len(self.results)} of {self.wanted} rollouts, {self.rewards()}"
            (output.changing if styled else output.note)(line)

    def rewards(self) -> str:
        about = self.summary()
        if about["pass_rate"] is None:
            return "no rewards"
        return f"{about['passed']} pass ({about['pass_rate']:.0%}), mean reward {about['mean_reward']:.3f}"

    def summary(self) -> dict:
        rewards = [result.reward for result in self.results if result.reward is not None]
        passed = sum(reward >= 1.0 for reward in rewards)
        return {
            "rollouts": len(self.results), "wanted": self.wanted, "passed": passed,
            "pass_rate": passed / len(rewards) if rewards else None,
            "mean_reward": sum(rewards) / len(rewards) if rewards else None,
            "finish": dict(Counter(result.finish for result in self.results)),
            "without_answer": sum(result.empty for result in self.results),
            "tokens": sum(result.n_tokens for result in self.results),
            "seconds": self.seconds, "tokens_per_s": self.new_tokens / max(self.seconds, 1e-9),
        }  # fmt: skip

    def end(self, out: Path, as_json: bool) -> None:
        """Print the summary; Interrupted if some are missing."""
        about = self.summary()
        if streams.live(sys.stderr):
            output.changing("")
        ends = "".join(f", {n} {ENDS[finish]}" for finish, n in about["finish"].items() if finish in ENDS)
        if about["without_answer"]:
            ends += f", {about['without_answer']} without an answer"
        output.note(
            f"{out}: {about['rollouts']} rollouts, {self.rewards()}{ends}, {about['tokens']:,} tokens, "
            f"{about['tokens_per_s']:.0f} tokens/s"
        )
        if as_json:
            output.json_page(about)
        if about["rollouts"] < self.wanted:
            raise Interrupted(
                f"interrupted: {about['rollouts']} of {self.wanted} rollouts are done",
                "run the same command again to go on",
            )
