"""Generated dialogues: nano's whole world. A seed in, messages out, ready for the prompt encoder."""

import random
from dataclasses import dataclass

from v4cli.nano import firsts, skills, toolless
from v4cli.nano.skills import Scene
from v4cli.nano.strings import Strings
from v4cli.nano.tools import BY_NAME
from v4cli.nano.words import Words

SYSTEM = ("", "", "You are a helpful assistant.", "You are nano, a small model.", "Be brief.")


@dataclass(frozen=True)
class Dialogue:
    """Messages for the encoder, its thinking mode, and per assistant message (by index) the skill it shows."""

    messages: list[dict]
    thinking_mode: str
    skills: dict[int, str]


def generate(rng: random.Random, split: str = "train", tools_share: float = 0.5, drill_share: float = 0.0) -> Dialogue:
    """One dialogue of a few turns. `split` is "train" or "heldout": their made-up values never overlap.

    `tools_share`: probability that the prompt offers tools; `drill_share`: of turns that drill what is slow to learn.
    """
    with_tools = rng.random() < tools_share
    thinking = rng.random() < 0.5
    names = tuple(rng.sample(list(BY_NAME), rng.choice((1, 2, 3, 4, 6, 6)))) if with_tools else ()
    scene = Scene(rng, Words(rng, split), names, {})
    messages = _system(rng, names)
    labels = {}
    # Without tools only the last turn keeps its reasoning (spec 5.3), so long thinking dialogues teach little.
    n_turns = rng.randint(5, 11) if with_tools else rng.randint(1, 3) if thinking else rng.randint(1, 6)
    for _ in range(n_turns):
        skill = rng.choice(_drills(scene)) if rng.random() < drill_share else _choose(scene, thinking)
        for message in skill(scene):
            if message["role"] == "assistant":
                labels[len(messages)] = skill.__name__
            messages.append(message)
    return Dialogue(messages, "thinking" if thinking else "chat", labels)


def meeting(rng: random.Random, split: str = "train", held_out: bool = False) -> Dialogue:
    """One dialogue as newcomers have it, mostly with all tools in the program's order. `held_out`: with wordings that
    training never sees."""
    with_tools, thinking = rng.random() < 0.6, rng.random() < 0.5
    some = tuple(rng.sample(list(BY_NAME), rng.choice((1, 2, 3, 4, 5))))
    names = () if not with_tools else tuple(BY_NAME) if rng.random() < 0.8 else some
    messages = _system(rng, names)
    n_turns = rng.randint(5, 11) if with_tools else rng.randint(1, 2) if thinking else rng.randint(2, 9)
    scene = Scene(rng, Strings(rng, split), names, {}, held_out)
    return _met(scene, messages, thinking, n_turns, 0.15, toolless.PLAIN)


def practice(rng: random.Random, with_tools: bool) -> Dialogue:
    """The same at length, so that the tools' schemas are read once for many turns; more of what needs no tool."""
    thinking = rng.random() < 0.5
    names = () if not with_tools else tuple(BY_NAME)
    if rng.random() < 0.15 and with_tools:
        names = tuple(rng.sample(list(BY_NAME), rng.choice((2, 3, 4, 5))))
    messages = _system(rng, names)
    n_turns = rng.randint(4, 14) if with_tools else 1 if thinking else rng.randint(2, 12)
    return _met(Scene(rng, Strings(rng, "train"), names, {}), messages, thinking, n_turns, 0.1, toolless.PRACTICE)


def drill(rng: random.Random) -> Dialogue:
    """Calls in close succession, of all tools, which return little: most of what is learned from a turn is its call."""
    thinking = rng.random() < 0.5
    scene = Scene(rng, Strings(rng, "train"), tuple(BY_NAME), {}, brief=True)
    n_turns = rng.choice((1, 8, 16, 24))
    return _met(scene, _system(rng, scene.tools), thinking, n_turns, 0.1, toolless.PRACTICE, firsts.DRILLED)


def _met(
    scene: Scene,
    messages: list[dict],
    thinking: bool,
    n_turns: int,
    missing_share: float,
    plain: firsts.Weighted,
    tooled: firsts.Weighted = firsts.TOOLED,
) -> Dialogue:
    """`missing_share`: of turns that need a tool where there are none; `plain`, `tooled`: skills, with weights."""
    rng, labels = scene.rng, {}
    for _ in range(n_turns):
        kinds, weights = zip(*(tooled if rng.random() < (0.7 if scene.tools else missing_share) else plain))
        skill = rng.choices(kinds, weights)[0]
        for message in skill(scene):
            if message["role"] == "assistant":
                labels[len(messages)] = skill.__name__
            messages.append(message)
    return Dialogue(messages, "thinking" if thinking else "chat", labels)


def copying(rng: random.Random, words: type[Words] = Words) -> Dialogue:
    """One dialogue of copying only, for the start of training."""
    scene, messages = Scene(rng, words(rng, "train"), (), {}), []
    for _ in range(rng.randint(1, 3)):
        messages += skills.recite(scene)
    return Dialogue(messages, "chat", {})


def _system(rng: random.Random, names: tuple[str, ...]) -> list[dict]:
    text = rng.choice(SYSTEM)
    if names:
        return [{"role": "system", "content": text, "tools": [BY_NAME[name] for name in names]}]
    return [{"role": "system", "content": text}] if text else []


def _drills(scene: Scene) -> list:
    """Skills in which mistakes last longest: order, and copying over a distance."""
    found = [skills.reverse, skills.sort, skills.recall_fact if scene.facts else skills.tell_fact]
    if {"list_folder", "read_file"} <= set(scene.tools):
        found += [skills.list_then_read, skills.list_folder, skills.read_file]
    if "search_text" in scene.tools:
        found.append(skills.search_text)
    return found


def _choose(scene: Scene, thinking: bool):
    """Draw a skill that fits the tools at hand and the facts told so far."""
    rng, roll = scene.rng, scene.rng.random()
    if scene.facts and roll < 0.15:
        return skills.recall_fact
    if scene.tools and roll < 0.75:
        if {"list_folder", "read_file"} <= set(scene.tools) and rng.random() < 0.15:
            return skills.list_then_read
        return rng.choice(skills.TOOL_SKILLS[rng.choice(scene.tools)])
    text_skills = skills.TEXT_SKILLS + ((skills.count,) if thinking else ())
    kinds = (skills.smalltalk, skills.smalltalk, skills.unknown, skills.tell_fact)
    kinds += (rng.choice(text_skills), rng.choice(text_skills))
    if not scene.tools:
        kinds += (rng.choice(text_skills), skills.tool_missing)
    return rng.choice(kinds)
