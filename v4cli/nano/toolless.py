"""What a newcomer says that needs no tool, as scenes: about nano and v4, facts, copying and other tasks on text."""

import re

from v4cli.agent.attached import File
from v4cli.nano import questions, skills
from v4cli.nano.grammar import one_of, wording
from v4cli.nano.keyboard import filled, typed
from v4cli.nano.skills import Scene, answer, user
from v4cli.nano.talk import NO_IDEA

FEW_LINES = 3  # of an attached text, which are repeated


def chat_bare(s: Scene) -> list[dict]:
    """What is typed most."""
    question, about = s.rng.choice(questions.CHAT_BARE)
    return [user(typed(s.rng, question)), answer(questions.ANSWERS[about], "I know this one.")]


def chat(s: Scene) -> list[dict]:
    found, reply = one_of(s.rng, questions.CHAT, s.held_out)
    return [user(typed(s.rng, found)), answer(reply, "I know this one.")]


def unknown(s: Scene) -> list[dict]:
    question = typed(s.rng, wording(s.rng, questions.UNKNOWN, s.held_out))
    return [user(question), answer(NO_IDEA, "This needs knowledge that I do not have.")]


TOOLS_ASKED = (
    "[what|which] tools [do you have|can you use|are there|do you know|have you got]",
    "[list|show|show me|name] [your|the|all] tools",
    "[do you have|have you got|can you use] tools", "tools", "tools?", "what are your tools",
)  # fmt: skip


def tools_asked(s: Scene) -> list[dict]:
    question = typed(s.rng, wording(s.rng, TOOLS_ASKED, False))
    reply = (
        f"I have these tools: {', '.join(s.tools)}." if s.tools else "I have no tools here. Type: v4 run --tools nano"
    )
    return [
        user(question),
        answer(reply, "I look at the tools that I was given." if s.tools else "I was given no tools."),
    ]


def tell(s: Scene) -> list[dict]:
    kind = s.rng.choice(list(questions.FACTS))
    told = wording(s.rng, questions.FACTS[kind][0], False)
    turn = skills.tell(s, kind)
    text = typed(s.rng, told.replace("{}", "{value}")).rstrip("?")
    return [user(filled(s.rng, text, True, value=s.facts[kind])), *turn[1:]]


def recall(s: Scene) -> list[dict]:
    """A fact, told before or not."""
    told = [kind for kind in questions.FACTS if kind in s.facts]
    kind = s.rng.choice(told) if told and s.rng.random() < 0.8 else s.rng.choice(list(questions.FACTS))
    try:
        asked = wording(s.rng, questions.FACTS[kind][1], s.held_out)
    except ValueError:
        asked = wording(s.rng, questions.FACTS[kind][1], False)
    question = typed(s.rng, asked)
    if kind in s.facts:
        return [user(question), skills.recall(s, kind)[1]]
    return [user(question), answer(questions.NOT_TOLD, "The user has not told me.")]


COPY = (
    "[repeat|say|repeat after me|echo|copy|write|type|spell out|print]: {text}",
    "[repeat|say|write] {text}",
    "[please |can you |now ][repeat|say|write|copy|type] [this|the following|exactly this|this text|these "
    "words]: {text}",
    "[repeat|say|copy] [the words|the text|after me|this] {text}",
)


def copy(s: Scene) -> list[dict]:
    """Strings of every shape, copied."""
    draw = s.words.anything if s.rng.random() < 0.7 else s.words.plain_word
    text = " ".join(draw() for _ in range(s.rng.choice((1, 1, 2, 2, 3, 4, 6))))
    if s.rng.random() < 0.2:
        text = s.words.text().strip()
    said = wording(s.rng, COPY, False)
    said = said[0].upper() + said[1:] if s.rng.random() < 0.4 else said
    return [user(said.replace("{text}", text)), answer(text, "I only have to copy the words.")]


REVERSE = (
    "[reverse|turn around|flip|say backwards|write backwards] [|the words|these words|the order of|this]: {text}",
    "[reverse|turn around] [the words|the order of the words|the order of] {text}",
    "[say|write] [these words|this] backwards: {text}",
)
SORT = (
    "[sort|order|put in order|arrange] [|the numbers|these numbers|these|from small to large]: {text}",
    "[sort|order|arrange] {text}",
    "[can you |please |]sort [these numbers|the numbers] {text}",
)
ENDS = (
    "[what is|what's|tell me|give me|say|which is] the {which} word [of|in|in this]: {text}",
    "the {which} word of {text}",
    "[what is|tell me] the {which} [word in|word of] {text}",
)
EXTRACT = (
    "[extract|find|give me|get|what is|what's|tell me|copy] the {what} [in|from|of|in this|in this text|from this "
    "text]: {text}",
)
TEXT_TASKS = ((REVERSE, "reverse"), (SORT, "sort"), (ENDS, "ends"), (EXTRACT, "extract"))


def text_task(s: Scene) -> list[dict]:
    rng = s.rng
    found, task = one_of(rng, TEXT_TASKS, s.held_out)
    said = typed(rng, found).rstrip("?.! ")
    if task == "extract":
        (asked, reply) = skills.extract(s)
        what, text = re.search(r"the (email|name|number)\b.*?: (.*)", asked["content"]).groups()
        return [user(filled(rng, said, True, what=what, text=text)), reply]
    if task == "sort":
        numbers = rng.sample(range(1, 100), rng.choice((2, 3, 3, 4)))
        text = rng.choice((" ", ", ")).join(map(str, numbers))
        ordered = " ".join(map(str, sorted(numbers)))
        return [user(filled(rng, said, True, text=text)), answer(ordered, f"From small to large: {ordered}.")]
    words = s.words.words(2, 4)
    text = " ".join(words)
    if task == "reverse":
        back = " ".join(reversed(words))
        return [user(filled(rng, said, True, text=text)), answer(back, f"From the last to the first: {back}.")]
    which = rng.choice(("first", "last"))
    word = words[0 if which == "first" else -1]
    return [user(filled(rng, said, True, text=text, which=which)), answer(word, f"The {which} word is {word}.")]


SHOWN_FILE = (
    "[what is|what's|whats] [this|in it|in this file|in this|in the file|that|written here|there]",
    "[what does|tell me what] [it|this|this file|the file|the text] [say|says]",
    "[read|show|print|repeat] [it|this|this file|the file|the text][| to me|, please]",
)
FILE_TASKS = (
    "[please |can you ||][summarize|summarise|explain|review|improve|translate|check|describe|fix|rewrite|analyze] "
    "[this|it|this file|the file|this text|the text|that|what is in it]",
    "[what is|what's] [this|it|the file|this text] about",
    "[write|give me|make] [a summary|a short summary|notes]",
    "[what is wrong|what does this code do|where is the bug|who wrote this|is this right|what do you think|any ideas]"
    "[| here| in it]",
)
ATTACHED = ((SHOWN_FILE, "show"), (FILE_TASKS, "task"))


def attached(s: Scene) -> list[dict]:
    """A text that comes with the question: a file as `v4 run -f` or a chat shows it, or what came through a pipe."""
    rng = s.rng
    found, task = one_of(rng, ATTACHED, s.held_out)
    lines = [line.strip() for line in s.words.lines(1, rng.choice((1, 1, 2, 3, 10, 30)))]
    name, text, asked = s.words.path(), "\n".join(lines), typed(rng, found)
    shown = File(name, len(text) + 1, text).labelled()
    kind = rng.choice(("file", "file", "chat", "pipe"))
    if kind == "pipe":
        name, shown = "The text", text
    question = f"{asked} @{name}\n\n{shown}" if kind == "chat" else f"{shown}\n\n{asked}"
    if task == "task":
        return [user(question), answer(NO_IDEA, "This needs knowledge that I do not have.")]
    if len(lines) > FEW_LINES:
        return [user(question), answer("I have read it. It is too long for me to repeat.", "This is a long text.")]
    said = f"{name} says:{chr(10) if len(lines) > 1 else ' '}{text}"
    return [user(question), answer(said, "The text is there.")]


PLAIN = ((chat, 10), (unknown, 6), (tell, 4), (recall, 3), (copy, 4), (text_task, 3), (attached, 2), (tools_asked, 1))
PRACTICE = (*PLAIN, (chat, 6), (chat_bare, 4))
