"""Strings as people have them: names of files and folders, words of all shapes, commands, lines of text.

Like words.py, but with capitals, digits, dashes, underscores, dots and slashes, 2 to 30 characters long.
"""

import string

from v4cli.nano.words import LETTERS, SYLLABLES, Words

FILES = (
    "README.md notes.md notes.txt main.py setup.cfg setup.py Makefile LICENSE CHANGELOG.md TODO TODO.md todo.txt "
    ".gitignore "
    ".env .bashrc Dockerfile package.json tsconfig.json index.html style.css app.js app.py server.go main.go main.rs "
    "Cargo.toml pyproject.toml requirements.txt config.yaml config.yml config.json docker-compose.yml data.csv "
    "data.json "
    "test.py test.txt hello.py hello.txt hello.c main.c utils.py run.sh build.sh install.sh report.txt letter.txt "
    "log.txt error.log index.js App.tsx Main.java pom.xml CMakeLists.txt shopping-list.txt my_file.txt file1.txt "
    "a.txt b.md"
).split()
NO_SUFFIX = "Makefile LICENSE TODO .gitignore .env .bashrc Dockerfile README CHANGELOG .editorconfig .profile".split()
SUFFIXES = (
    "txt md py json csv log toml yaml yml cfg ini sh js ts html css c h cpp rs go java rb xml sql tex bak conf lock"
).split()
FOLDERS = (
    "src docs tests test lib bin build dist data images scripts app assets public config include examples tools notes "
    "tmp logs home photos music Documents Downloads Desktop src/app src/utils docs/api tests/unit app/models "
    "node_modules "
    ".git .github .config .venv backup projects work"
).split()
NAMES = (
    "Anna Tom Maria Peter Lena Max Julia Paul Sara Ben Emma David Lisa Jan Nina Felix Clara Hugo Mia Leo Eva Omar "
    "Ivan Olga "
    "Kim Ada Alan Grace Linus Bob Alice Carol Dave Eve Frank John Jane Smith Miller Berlin London Paris Tokyo "
    "Vienna Zurich "
    "Müller José Zoë François Björn Łukasz Åsa Köln Málaga"
).split()
WORDS = (
    "the a of to and in is it for on with as at by this that from or be an not are was we you one all can has but "
    "new more "
    "time year day world life hand part child eye woman man place work week case point company number group "
    "problem fact "
    "water room mother area money month lot right study book job word business issue side kind head house service "
    "friend "
    "father power hour game line end member law car city name president team minute idea kid body back parent face "
    "level "
    "office door health person art war history party result change morning reason research girl guy moment air teacher "
    "force education apple banana orange lemon bread milk butter coffee tea sugar salt pepper cheese egg fish meat "
    "rice "
    "red green blue black white big small old young long short high low hot cold fast slow good bad happy sad dog "
    "cat bird "
    "horse cow tree flower river mountain sea sun moon star rain snow wind fire table chair window wall street garden "
    "class function return import print error value key list string index count total user password email address "
    "token model layer file folder path line test bug fix build release version update install server client request "
    "response header body config option default debug info warning failed passed done start stop open close read write "
    "monday tuesday friday january march june buy call meet send pay clean cook walk sleep learn play hello hi thanks"
).split()
PUNCTUATION = "-_.+/:@#=*&%~,"
SHELL_WORDS = (
    "pwd", "whoami", "ls -la", "ls -l", "ls -a", "ls -lh", "df -h", "free -h", "uname -a", "uptime", "hostname",
    "id", "env",
    "nproc", "ps aux", "ps", "tree", "git status", "git log", "git diff", "git log --oneline", "git branch", "make",
    "make test",
    "make clean", "npm test", "npm install", "pip list", "python --version", "python3 --version", "python3 -V",
    "du -sh .",
    "cargo build", "cargo test", "pytest", "top -b -n 1", "cat /etc/os-release", "lscpu", "history", "ip addr",
    "printenv",
    "git add .", "git pull", "go build", "node --version", "gcc --version", "ls *.py", "ls ..", "date -u", "true",
    "false",
)  # fmt: skip


class Strings(Words):
    """Draws values of one split in every shape that people type."""

    def word(self) -> str:
        roll = self.rng.random()
        if roll < 0.3:
            return super().word()
        if roll < 0.55:
            return self.rng.choice(WORDS)
        if roll < 0.7:
            return self.name()
        return self._draw(self._shaped)

    def plain_word(self) -> str:
        """A lower-case word, mostly a real one."""
        return self.rng.choice(WORDS) if self.rng.random() < 0.7 else super().word()

    def name(self) -> str:
        if self.rng.random() < 0.4:
            return self.rng.choice(NAMES)
        return self._draw(lambda: self._syllables(self.rng.choice((1, 2, 2, 3))).capitalize())

    def _syllables(self, n: int) -> str:
        return "".join(self.rng.choices(SYLLABLES, k=n)) + self.rng.choice(("", "", "n", "s", "l", "r"))

    def _stem(self) -> str:
        """A part of a name: a real word, a made-up one, letters, digits."""
        roll = self.rng.random()
        if roll < 0.35:
            return self.rng.choice(WORDS)
        if roll < 0.75:
            return self._syllables(self.rng.choice((1, 2, 2, 3)))
        if roll < 0.88:
            return "".join(self.rng.choices(LETTERS, k=self.rng.randint(1, 6)))
        return str(self.rng.randint(0, 10 ** self.rng.randint(1, 4)))

    def _shaped(self) -> str:
        """snake_case, camelCase, CONSTANTS, dashes, numbers, versions, or anything printable."""
        parts = [self._stem() for _ in range(self.rng.choice((1, 2, 2, 3)))]
        shape = self.rng.randrange(9)
        if shape == 0:
            return "_".join(parts)
        if shape == 1:
            return "-".join(parts)
        if shape == 2:
            return parts[0] + "".join(part.capitalize() for part in parts[1:])
        if shape == 3:
            return "_".join(parts).upper()
        if shape == 4:
            return "".join(part.capitalize() for part in parts)
        if shape == 5:
            return f"{parts[0]}{self.rng.randint(0, 9999)}"
        if shape == 6:
            return f"{self.rng.choice(('v', '', parts[0] + '-'))}{self.rng.randint(0, 20)}.{self.rng.randint(0, 20)}"
        if shape == 7:
            return "".join(self.rng.choices(string.ascii_letters + string.digits, k=self.rng.randint(2, 12)))
        ends = string.ascii_letters + string.digits
        inner = "".join(self.rng.choices(ends + PUNCTUATION, k=self.rng.randint(1, 14)))
        return self.rng.choice(string.ascii_letters) + inner + self.rng.choice(ends)

    def file(self) -> str:
        return self.rng.choice(FILES) if self.rng.random() < 0.25 else self._draw(self._file)

    def _file(self) -> str:
        roll = self.rng.random()
        if roll < 0.05:
            return "." + self._stem()
        stem = self._stem() if roll < 0.45 else self._shaped()[:20].strip(PUNCTUATION) or "x"
        stem = "".join(c for c in stem if c.isalnum() or c in "-_.")
        return f"{stem or 'x'}.{self.rng.choice(SUFFIXES)}"

    def folder(self) -> str:
        roll = self.rng.random()
        if roll < 0.3:
            return self.rng.choice(FOLDERS) + self.rng.choice(("", "", "/"))
        if roll < 0.45:
            return super().folder()
        before = self.rng.choice(("", "", "", "./", "../", "~/", "/", "/home/", "/tmp/", "src/", "docs/", "tests/"))
        return before + self._draw(self._folder) + self.rng.choice(("", "", "", "/"))

    def _folder(self) -> str:
        stems = [self._stem() for _ in range(self.rng.choice((1, 1, 1, 2)))]
        name = self.rng.choice("-_/").join(stems)
        return name.capitalize() if self.rng.random() < 0.15 else name

    def path(self) -> str:
        return self.file() if self.rng.random() < 0.7 else f"{self.folder().rstrip('/')}/{self.file()}"

    def anything(self) -> str:
        """Whatever is copied."""
        draws = (self.word, self.word, self.file, self.path, self.folder, self.expression, self.email, self.name)
        draws += (lambda: str(self.number(0, 99999)),)
        return self.rng.choice(draws)()

    def _expression(self) -> str:
        roll, rng = self.rng.random(), self.rng
        if roll < 0.6:
            return super()._expression()
        big = rng.choice((99, 999, 9999, 99999))
        a, b = rng.randint(1, big), rng.randint(1, big)
        if roll < 0.7:
            return f"{a}{rng.choice(('+', '-', '*', '/', ' + ', ' - ', ' * ', ' / '))}{b}"
        if roll < 0.8:
            return f"{a / 10:.1f}{rng.choice('+-*/')}{b / 100:.2f}"
        if roll < 0.9:
            return f"{rng.randint(2, 12)}{rng.choice(('**', '^'))}{rng.randint(2, 6)}"
        return f"sqrt({a})" if roll < 0.95 else f"{a % 100}%{b % 30 + 2}"

    def text(self) -> str:
        """A line of text as files hold it."""
        rng = self.rng
        words = " ".join(self.plain_word() if rng.random() < 0.8 else self.word() for _ in range(rng.randint(1, 6)))
        shape = rng.randrange(12)
        frames = ("# {}", "- {}", "{}.", "{}:", "    {}", "[{}]", "* {}")
        if shape < len(frames):
            return frames[shape].format(words[0].upper() + words[1:] if shape == 0 else words)
        if shape == 7:
            return f"{self.plain_word()} = {self.anything()}"
        if shape == 8:
            return f"def {self.plain_word()}({self.plain_word()}):"
        if shape == 9:
            return f'print("{words}")'
        return words

    def lines(self, low: int, high: int) -> list[str]:
        return [self.text() for _ in range(self.rng.randint(low, high))]

    def command(self) -> str:
        rng = self.rng
        if rng.random() < 0.25:
            return rng.choice(SHELL_WORDS)
        return self._draw(lambda: rng.choice(self._commands()))

    def _commands(self) -> tuple[str, ...]:
        rng, path, file, folder, word = self.rng, self.path(), self.file(), self.folder(), self.word()
        n = rng.randint(1, 50)
        return (
            f"ls -l {folder}", f"ls -la {folder}", f"wc -l {path}", f"wc -w {file}", f"echo {word}",
            f"echo {word} {self.word()}", f"head -n {n} {path}", f"tail -n {n} {path}", f"grep -rn {word} .",
            f"grep -i {word} {path}", f"mkdir {folder}", f"mkdir -p {folder}", f"touch {file}", f"rm {file}",
            f"rm -r {folder}",
            f"cp {file} {path}", f"mv {file} {folder}", f"chmod +x {file}", f"python3 {file}", f"python {file}",
            f"python -m {self.plain_word()}", f"bash {file}", f"sh {file}", f"./{file}", f"find . -name {file}",
            f"du -sh {folder}",
            f"cd {folder} && ls", f"sort {file}", f"cat {file} | wc -l", f'python3 -c "print({self.expression()})"',
            f"git commit -m {word}", f"git checkout {word}", f"pip install {word}", f"curl {self.plain_word()}.com",
            f"diff {file} {path}",
            f"make {self.plain_word()}", f"sed -n {n}p {file}", f"file {path}", f"stat {file}",
            f'echo "{word}" > {file}',
        )  # fmt: skip
