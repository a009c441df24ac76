"""The things nano can do, each as a short generated scene: a user turn, tool calls and results if any, the answer."""

import json
import random
from dataclasses import dataclass

from v4cli.nano import talk
from v4cli.nano.words import CITIES, COLOURS, Words, evaluate


@dataclass
class Scene:
    """What a skill needs to know: its randomness, the tools in the prompt, and facts told so far."""

    rng: random.Random
    words: Words
    tools: tuple[str, ...]
    facts: dict[str, str]
    held_out: bool = False  # whether wordings are drawn that training never sees (firsts.py)
    brief: bool = False  # whether tools return little (firsts.py): more calls in as many tokens


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str, thought: str) -> dict:
    return {"role": "assistant", "reasoning_content": thought, "content": text}


def call(thought: str, *calls: tuple[str, dict]) -> dict:
    tool_calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "reasoning_content": thought, "content": "", "tool_calls": tool_calls}


def result(text: str, i: int = 0) -> dict:
    return {"role": "tool", "tool_call_id": f"call_{i}", "content": text}


def vary(rng: random.Random, question: str) -> str:
    """The same question as different people type it."""
    question = rng.choice(("", "", "", "", "please ", "hey, ", "ok, ")) + question
    question += rng.choice(("?", "?", "", ".", "!", " please"))
    return question[0].upper() + question[1:] if rng.random() < 0.6 else question


# -- talk ----------------------------------------------------------------------------------------------------


def smalltalk(s: Scene) -> list[dict]:
    questions, reply = s.rng.choice(talk.TALK)
    return [user(vary(s.rng, s.rng.choice(questions))), answer(reply, "I know this one.")]


def unknown(s: Scene) -> list[dict]:
    question = s.rng.choice(talk.UNKNOWN).format(country=s.rng.choice(talk.COUNTRIES), topic=s.rng.choice(talk.TOPICS))
    return [user(vary(s.rng, question)), answer(talk.NO_IDEA, "This needs knowledge that I do not have.")]


# -- tools ---------------------------------------------------------------------------------------------------


def ask_calculator(s: Scene) -> tuple[str, str]:
    spoken, expression = s.words.spoken()
    if s.rng.random() < 0.7:
        spoken = expression = s.words.expression()
    frame = s.rng.choice(("what is {}", "calculate {}", "compute {}", "how much is {}", "{}", "work out {}"))
    return vary(s.rng, frame.format(spoken)), expression


def calculator(s: Scene) -> list[dict]:
    question, expression = ask_calculator(s)
    value = evaluate(expression)
    return [
        user(question),
        call(
            f"I need the value of {expression}. I will use calculator.",
            ("calculator", {"expression": expression}),
        ),
        result(value),
        answer(f"{expression} = {value}", f"The result is {value}."),
    ]


def clock(s: Scene) -> list[dict]:
    day = s.rng.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))
    date = f"20{s.rng.randint(20, 39)}-{s.rng.randint(1, 12):02}-{s.rng.randint(1, 28):02}"
    time = f"{s.rng.randint(0, 23):02}:{s.rng.randint(0, 59):02}"
    about_time = s.rng.random() < 0.5
    time_frames = ("what time is it", "tell me the time", "what is the time")
    date_frames = (
        "what day is it",
        "what is the date",
        "what is today's date",
        "tell me the date",
        "which day is today",
    )
    frames = time_frames if about_time else date_frames
    reply = f"It is {time}." if about_time else f"Today is {day}, {date}."
    return [
        user(vary(s.rng, s.rng.choice(frames))),
        call("I will look at the clock.", ("clock", {})),
        result(f"{date} {time} {day}"),
        answer(reply, "The clock has answered."),
    ]


def read_file(s: Scene) -> list[dict]:
    path = s.words.path()
    frame = s.rng.choice(("read {}", "show me {}", "what does {} say", "open {}", "what is in {}", "print the file {}"))
    ask = call(f"I will read {path}.", ("read_file", {"path": path}))
    if s.rng.random() < 0.15:
        reply, text = f"I could not read {path}: no such file.", "error: no such file"
    else:
        text = " ".join(s.words.words(2, 6))
        reply = f"{path} says: {text}"
    return [
        user(vary(s.rng, frame.format(path))),
        ask,
        result(text),
        answer(reply, f"The tool returned: {text}."),
    ]


def list_folder(s: Scene) -> list[dict]:
    path, files = s.words.folder(), [s.words.file() for _ in range(s.rng.randint(1, 4))]
    frame = s.rng.choice(("list {}", "what files are in {}", "list the files in {}", "show the folder {}"))
    return [
        user(vary(s.rng, frame.format(path))),
        call(f"I will list {path}.", ("list_folder", {"path": path})),
        result("\n".join(files)),
        answer(f"{path} contains: {', '.join(files)}", "I have the list."),
    ]


def search_text(s: Scene) -> list[dict]:
    pattern, path = s.words.word(), s.words.folder()
    frame = s.rng.choice(("search for {} in {}", "find {} in {}", "look for {} in {}", "where is {} in {}"))
    places = [f"{s.words.file()}:{s.words.number(1, 99)}" for _ in range(s.rng.randint(0, 3))]
    reply = f"{pattern} is in: {', '.join(places)}" if places else f"I did not find {pattern} in {path}."
    return [
        user(vary(s.rng, frame.format(pattern, path))),
        call(f"I will search for {pattern} in {path}.", ("search_text", {"pattern": pattern, "path": path})),
        result("\n".join(places) if places else "no matches"),
        answer(reply, "The search has finished."),
    ]


def run_shell(s: Scene) -> list[dict]:
    command, text = s.words.command(), " ".join(s.words.words(1, 4))
    frame = s.rng.choice(("run {}", "execute {}", "run the command {}", "run `{}`", "please run: {}"))
    return [
        user(frame.format(command)),
        call(f"I will run {command}.", ("run_shell", {"command": command})),
        result(text),
        answer(f"The command printed: {text}", f"The output is {text}."),
    ]


def two_calculations(s: Scene) -> list[dict]:
    """Two calls in one block."""
    first, second = s.words.expression(), s.words.expression()
    values = evaluate(first), evaluate(second)
    calls = (("calculator", {"expression": first}), ("calculator", {"expression": second}))
    return [
        user(vary(s.rng, s.rng.choice(("what is {} and {}", "calculate {} and {}")).format(first, second))),
        call(f"I need {first} and {second}. I will use calculator twice.", *calls),
        result(values[0], 0),
        result(values[1], 1),
        answer(
            f"{first} = {values[0]} and {second} = {values[1]}",
            f"The results are {values[0]} and {values[1]}.",
        ),
    ]


def list_then_read(s: Scene) -> list[dict]:
    """A second call after the first one's result."""
    folder, file = s.words.folder(), s.words.file()
    text = " ".join(s.words.words(2, 4))
    return [
        user(
            vary(
                s.rng,
                s.rng.choice(("read the only file in {}", "what does the file in {} say")).format(folder),
            )
        ),
        call(f"First I will list {folder}.", ("list_folder", {"path": folder})),
        result(file),
        call(f"The file is {file}. I will read {folder}/{file}.", ("read_file", {"path": f"{folder}/{file}"})),
        result(text),
        answer(f"{file} says: {text}", f"The tool returned: {text}."),
    ]


TOOL_SKILLS = {
    "calculator": (calculator, calculator, two_calculations),
    "clock": (clock,),
    "read_file": (read_file,),
    "list_folder": (list_folder,),
    "search_text": (search_text,),
    "run_shell": (run_shell,),
}


def tool_missing(s: Scene) -> list[dict]:
    name = s.rng.choice([n for n in TOOL_SKILLS if n not in s.tools])
    question = TOOL_SKILLS[name][0](s)[0]
    reply = f"I would need the tool {name} for that, and it is not available here."
    return [question, answer(reply, f"This needs {name}, but I do not have it.")]


# -- text ----------------------------------------------------------------------------------------------------


def repeat(s: Scene) -> list[dict]:
    text = " ".join(s.words.words(1, 5))
    frame = s.rng.choice(("repeat: {}", "say {}", "repeat after me: {}", "echo: {}"))
    return [user(frame.format(text)), answer(text, "I only have to copy the words.")]


def recite(s: Scene) -> list[dict]:
    """Long copying of everything that is ever copied: what training begins with."""
    draw = (s.words.word, s.words.word, s.words.word, s.words.path, s.words.expression, lambda: str(s.words.number()))
    text = " ".join(s.rng.choice(draw)() for _ in range(s.rng.randint(2, 12)))
    frame = s.rng.choice(("repeat: {}", "say {}", "repeat after me: {}", "echo: {}"))
    return [user(frame.format(text)), answer(text, "I only have to copy the words.")]


def reverse(s: Scene) -> list[dict]:
    words = s.words.words(2, 4)
    back = " ".join(reversed(words))
    frame = s.rng.choice(("reverse the words: {}", "reverse: {}", "say these words backwards: {}"))
    return [user(frame.format(" ".join(words))), answer(back, f"From the last to the first: {back}.")]


def count(s: Scene) -> list[dict]:
    words = s.words.words(2, 6)
    thought = " ".join(f"{i} {word}" for i, word in enumerate(words, 1))
    frame = s.rng.choice(("how many words: {}", "count the words: {}", "how many words are in this list: {}"))
    return [user(frame.format(" ".join(words))), answer(f"There are {len(words)} words.", thought)]


def sort(s: Scene) -> list[dict]:
    numbers = s.rng.sample(range(1, 100), 3)
    ordered = " ".join(map(str, sorted(numbers)))
    frame = s.rng.choice(("sort the numbers: {}", "sort: {}", "put in order: {}"))
    return [
        user(frame.format(" ".join(map(str, numbers)))),
        answer(ordered, f"From small to large: {ordered}."),
    ]


def extract(s: Scene) -> list[dict]:
    email, name, number = s.words.email(), s.words.name(), s.words.number(10, 9999)
    what, value = s.rng.choice((("email", email), ("name", name), ("number", str(number))))
    sentences = (
        f"{name} ordered {number} boxes, write to {email}",
        f"{email} belongs to {name}, room {number}",
        f"call {name} in room {number} or mail {email}",
    )
    sentence = s.rng.choice(sentences)
    frame = s.rng.choice(("extract the {}: {}", "what is the {} in this: {}", "find the {} in: {}"))
    return [user(frame.format(what, sentence)), answer(value, f"The {what} is {value}.")]


def ends(s: Scene) -> list[dict]:
    words = s.words.words(2, 5)
    which = s.rng.choice(("first", "last"))
    word = words[0 if which == "first" else -1]
    return [
        user(f"what is the {which} word of: {' '.join(words)}"),
        answer(word, f"The {which} word is {word}."),
    ]


FACTS = {
    "name": ("my name is {}", "what is my name", "Nice to meet you, {}.", "Your name is {}."),
    "city": ("i live in {}", "where do i live", "{} is a nice place.", "You live in {}."),
    "colour": (
        "my favourite colour is {}",
        "what is my favourite colour",
        "{} it is.",
        "Your favourite colour is {}.",
    ),
    "code word": (
        "the code word is {}",
        "what is the code word",
        "I will remember {}.",
        "The code word is {}.",
    ),
    "dog": ("my dog is called {}", "what is my dog called", "Hello to {}!", "Your dog is called {}."),
    "number": ("my lucky number is {}", "what is my lucky number", "{}, noted.", "Your lucky number is {}."),
}


# told and asked over long distances only (long_context.py): with these there is one kind for each of ten depths
MORE_FACTS = {
    "cat": ("my cat is called {}", "what is my cat called", "Hello to {}!", "Your cat is called {}."),
    "project": ("my project is called {}", "what is my project called", "Good luck with {}!", "It is called {}."),
    "server": ("my server is called {}", "what is my server called", "{}, noted.", "Your server is called {}."),
    "budget": ("my budget is {}", "what is my budget", "I will remember {}.", "Your budget is {}."),
}
ALL_FACTS = FACTS | MORE_FACTS


def tell_fact(s: Scene) -> list[dict]:
    return tell(s, s.rng.choice([k for k in FACTS if k not in s.facts] or list(FACTS)))


def recall_fact(s: Scene) -> list[dict]:
    return recall(s, s.rng.choice(list(s.facts)))


def tell(s: Scene, kind: str) -> list[dict]:
    """The user tells a fact of this kind, which is remembered in the scene."""
    values = {"city": s.rng.choice(CITIES), "colour": s.rng.choice(COLOURS), "code word": s.words.word(),
              "number": str(s.words.number())}  # fmt: skip
    values["budget"] = values["number"]
    value = s.facts[kind] = values.get(kind) or s.words.name()
    told, _, reply, _ = ALL_FACTS[kind]
    return [user(vary(s.rng, told.format(value)).rstrip("?")), answer(reply.format(value), "I will remember this.")]


def recall(s: Scene, kind: str) -> list[dict]:
    """The user asks for a fact told before."""
    _, question, _, reply = ALL_FACTS[kind]
    return [user(vary(s.rng, question)), answer(reply.format(s.facts[kind]), "The user told me before.")]


TEXT_SKILLS = (repeat, reverse, sort, extract, ends)
