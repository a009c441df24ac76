"""More of them, by detours: files under a second name, links that lead to links, what variables and settings name
relative to somewhere, settings that hold on a condition only."""

import os

from git_traps import CHECK, EMPTY, PLAIN, USER_HOOKS, Trap

WHO = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
SCRIPT = f"mkdir -p tools; {EMPTY.format('tools/x')}"
BEFORE = f"@/bin:{os.environ['PATH']}"
HERE = f"./bin:{os.environ['PATH']}"
AT_HOME = f"@/../home/bin:{os.environ['PATH']}"
GIT = "printf '#!/bin/sh\\nexec '{0}' \"$@\"\\n' > tools/{1}; chmod +x tools/{1}"
WRAPPER = f"mkdir -p ~/bin tools; {GIT.format('$(command -v git)', 'git')}"
COMMIT = ("git commit -q --allow-empty -m z",)
DIFF = "; echo 1 >> file"

TRAPS = {
    # hard links
    "a hook that is a hard link": Trap("cat evil > scripts/check", CHECK.replace("ln -s ../../", "ln ")),
    "settings that are a hard link": Trap(f"{PLAIN} >> dot/config", "mkdir dot; ln .git/config dot/config"),
    "settings of the home that are a hard link": Trap(
        f"{PLAIN} >> dot/gitconfig", "mkdir dot; ln ~/.gitconfig dot/gitconfig"
    ),
    "an included file that is a hard link": Trap(
        f"{PLAIN} > twin", "echo > shared.inc; ln shared.inc twin; git config include.path ../shared.inc"
    ),
    "a hook of the project that is a hard link": Trap(
        "cat evil > twin", f"{USER_HOOKS}; ln tools/hooks/pre-commit twin"
    ),
    "a program on the PATH that is a hard link": Trap(
        "cat evil > tools/git", f"{WRAPPER}; ln tools/git ~/bin/git", variables={"PATH": AT_HOME}
    ),
    # links that lead to links
    "a link on the way to a hook": Trap(
        "rm b/l; ln -s ../evil b/l",
        f"{SCRIPT}; mkdir -p .git/hooks b; ln -s ../tools/x b/l; ln -s ../../b/l .git/hooks/post-commit",
    ),
    "a folder on the way to a hook": Trap(
        "rm b; mkdir b; cp evil b/x",
        f"{SCRIPT}; mkdir -p .git/hooks; ln -s tools b; ln -s ../../b/x .git/hooks/post-commit",
    ),
    "a folder on the way to settings": Trap(
        f"rm dot; mkdir dot; {PLAIN} > dot/gitconfig",
        "mkdir d; ln -s d dot; mv ~/.gitconfig d/gitconfig; ln -s $PWD/dot/gitconfig ~/.gitconfig",
        variables=WHO,
    ),
    "a link in a folder of hooks": Trap(
        "cp evil tools/x",
        f"{SCRIPT}; mkdir .husky; ln -s ../tools/x .husky/pre-commit; git config core.hooksPath .husky",
    ),
    # variables
    "a PATH that counts from here": Trap("mkdir bin; cp evil bin/git", variables={"PATH": HERE}),
    "a link in a folder of the PATH": Trap(
        "cp evil tools/git", f"{WRAPPER}; mkdir bin; ln -s ../tools/git bin/git", variables={"PATH": BEFORE}
    ),
    "a link in another folder of the PATH": Trap(
        "cp evil tools/git", f"{WRAPPER}; ln -s $PWD/tools/git ~/bin/git", variables={"PATH": AT_HOME}
    ),
    "a command of git that is a link": Trap(
        "cp evil tools/git-st",
        f"mkdir -p ~/bin tools; {GIT.format('true', 'git-st')}; ln -s $PWD/tools/git-st ~/bin",
        does=("git st",),
        variables={"PATH": AT_HOME},
    ),
    "a program for differences": Trap(
        f"mkdir tools; cp evil tools/x{DIFF}", variables={"GIT_EXTERNAL_DIFF": "tools/x"}
    ),
    "one whose folder is moved": Trap(
        f"mv tools t; mkdir tools; cp evil tools/x{DIFF}", SCRIPT, variables={"GIT_EXTERNAL_DIFF": "tools/x"}
    ),
    "an editor named by a variable": Trap(
        "cp evil tools/x", SCRIPT, variables={"GIT_EDITOR": "sh tools/x"}, does=("git commit --allow-empty",)
    ),
    "a pager named by a variable": Trap(
        "cp evil tools/x", SCRIPT, variables={"PAGER": "tools/x"}, does=("script -qc 'git log' /dev/null",)
    ),
    "settings that count from here": Trap(f"{PLAIN} > gc", variables={"GIT_CONFIG_GLOBAL": "gc"} | WHO),
    "hooks named by a variable": Trap(
        "mkdir -p tools/h; cp evil tools/h/pre-commit",
        variables={"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": "tools/h"},
    ),
    # settings
    "an alias that changes the folder": Trap(
        "cp evil tools/x", f"{SCRIPT}; git config --global alias.st '!cd . && cd tools; ./x'", does=("git st",)
    ),
    "an alias of env -C": Trap(
        "cp evil tools/x", f"{SCRIPT}; git config --global alias.st '!env -C tools ./x'", does=("git st",)
    ),
    "hooks for other branches": Trap(
        "cp evil tools/pre-commit",
        "mkdir tools; git config -f ~/b.inc core.hooksPath tools; "
        "git config --global 'includeIf.onbranch:new-*.path' b.inc",
        does=COMMIT,
    ),
    "settings for other branches, by a file in between": Trap(
        f"{PLAIN} > c.inc",
        "git config include.path ../a.inc; git config -f a.inc include.path b.inc; "
        "git config -f b.inc 'includeIf.onbranch:new-*.path' c.inc; echo > c.inc",
        does=COMMIT,
    ),
}
