"""First prompts by hand, from which no grammar was written: what newcomers type, and what is right.

`WITH_TOOLS` are asked with the six tools, `WITHOUT` with none: a prompt, and the call (name, arguments) or a part of
the answer that is right.
"""

LOST = "I am only nano"
Expected = str | tuple[str, dict]


def _list(path: str = ".") -> tuple[str, dict]:
    return "list_folder", {"path": path}


def _read(path: str) -> tuple[str, dict]:
    return "read_file", {"path": path}


def _search(pattern: str, path: str = ".") -> tuple[str, dict]:
    return "search_text", {"pattern": pattern, "path": path}


def _sum(expression: str) -> tuple[str, dict]:
    return "calculator", {"expression": expression}


def _run(command: str) -> tuple[str, dict]:
    return "run_shell", {"command": command}


CLOCK = ("clock", {})

WITH_TOOLS: tuple[tuple[str, Expected], ...] = (
    ("ls", _list()),
    ("what's in src", _list("src")),
    ("7 times 8", _sum("7*8")),
    ("where does hello occur?", _search("hello")),
    ("grep Anna", _search("Anna")),
    ("how do I download flash?", "v4 pull flash"),
    ("list the files here", _list()),
    ("read notes.md", _read("notes.md")),
    ("Hello", "Hello!"),
    ("hi, what can you do?", "call tools"),
    ("Which files are in this directory right now?", _list()),
    ("Please list all files in the docs folder.", _list("docs")),
    ("ls tests/", _list("tests/")),
    ("show me README.md", _read("README.md")),
    ("cat pyproject.toml", _read("pyproject.toml")),
    ("What does the Makefile say?", _read("Makefile")),
    ("could you open src/app/Main.java for me", _read("src/app/Main.java")),
    ("print my-file_2.txt", _read("my-file_2.txt")),
    ("Look into config/settings.yaml and show what is there", _read("config/settings.yaml")),
    ("I'd like to know what is inside todo.txt", _read("todo.txt")),
    ("let me see what's written in Notes-2024.md", _read("Notes-2024.md")),
    ("Search for TODO", _search("TODO")),
    ("find every line with import", _search("import")),
    ("search for main in src", _search("main", "src")),
    ("is the word banana in shopping.txt?", _search("banana", "shopping.txt")),
    ("grep error log.txt", _search("error", "log.txt")),
    ("Does anything here mention Chicago?", _search("Chicago")),
    ("which file contains get_user_name?", _search("get_user_name")),
    ("in which files is parseConfig used", _search("parseConfig")),
    ("What time is it?", CLOCK),
    ("time?", CLOCK),
    ("date", CLOCK),
    ("what's today's date", CLOCK),
    ("Which weekday is it today?", CLOCK),
    ("12*12", _sum("12*12")),
    ("What is 17*23?", _sum("17*23")),
    ("how much is 1234 + 5678", _sum("1234 + 5678")),
    ("calculate (3+4)*5", _sum("(3+4)*5")),
    ("what's 100 divided by 7?", _sum("100/7")),
    ("2^10", _sum("2^10")),
    ("square root of 144?", _sum("sqrt(144)")),
    ("whats 15% of 80", _sum("15/100*80")),
    ("add 3 and 4", _sum("3+4")),
    ("run pwd", _run("pwd")),
    ("git status", _run("git status")),
    ("Please run `ls -la`", _run("ls -la")),
    ("execute python3 main.py", _run("python3 main.py")),
    ("uname -a", _run("uname -a")),
    ("echo hello world", _run("echo hello world")),
    ("can you run the command whoami?", _run("whoami")),
    ("how many lines are in main.py?", _run("wc -l main.py")),
    ("In which directory are we?", _run("pwd")),
    ("create a folder named test2", _run("mkdir test2")),
    ("thanks!", "You are welcome."),
    ("who are you?", "I am nano"),
    ("What tools do you have?", "calculator, clock, read_file, list_folder, search_text, run_shell"),
    ("What is the capital of France?", LOST),
    ("Write a haiku about autumn", LOST),
    ("why does my code crash?", LOST),
    ("summarize this project", LOST),
    ("My name is Anna", "Anna"),
    ("bye", "Goodbye!"),
)  # fmt: skip
WITHOUT: tuple[tuple[str, Expected], ...] = (
    ("Hello, who are you?", "I am nano"),
    ("hi there!", "Hello!"),
    ("help", "I can chat about myself"),
    ("Are you ChatGPT?", "I am nano"),
    ("how big are you?", "six and a half million"),
    ("what is this program?", "v4cli runs DeepSeek-V4"),
    ("Where can I get the real model?", "v4 pull flash"),
    ("how do I start chatting", "v4 chat"),
    ("how do I quit?", "/exit"),
    ("Is my data sent anywhere?", "nothing is sent anywhere"),
    ("How fast is it on my laptop?", "v4 bench"),
    ("which models do I have installed?", "v4 ls"),
    ("repeat: hello world", "hello world"),
    ("say banana", "banana"),
    ("reverse the words: one two three", "three two one"),
    ("sort 9 4 7", "4 7 9"),
    ("Tell me a joke", LOST),
    ("What is the meaning of life?", LOST),
    ("Who won the football game yesterday?", LOST),
    ("Write a Python function that adds two numbers", LOST),
    ("explain quantum entanglement to a child", LOST),
    ("translate good night into Spanish", LOST),
    ("what is my name?", "You have not told me that."),
    ("what is 2+2", "I would need the tool calculator"),
    ("read notes.md", "I would need the tool read_file"),
    ("test", "Yes, I am here."),
    ("how are you today?", "I am fine"),
    ("Thank you very much!", "You are welcome."),
    ("do you need an internet connection?", "nothing is sent anywhere"),
    ("what is flash?", "284 billion"),
)  # fmt: skip
