"""How people ask for what nano's tools do, as grammars (grammar.py). Bare forms, like commands, are never held out."""

HERE = "[here|in here|in this folder|in this directory|in the current folder|in the current directory|in my folder]"
THIS = "[this folder|this directory|the current folder|the current directory|the folder|the directory|my folder]"
SHOW = "[list|show|show me|display|print|give me|tell me|get|print out|write down]"
OPENERS = (
    "[|||||||please |can you |could you |could you please |can you please |would you |now |ok, |hey, |hi, |nano, |and |"
)
OPENERS += (
    "then |i want you to |i would like you to |i need you to |go and |just |quickly |first |next, |so |let's |try to ]"
)
CLOSERS = "[||||||| please| now| for me|, please|, thanks| again| pls|, nano| if you can]"
ASK = "[|||||do you know |can you tell me |tell me |please tell me |i want to know |say, |hey, |and |so |ok, |hi, |"
ASK += "nano, ]"


def imperative(verbs: str) -> str:
    """An order, with what people put before and after it."""
    return OPENERS + verbs + CLOSERS


def question(text: str) -> str:
    """A question, with what people put before it."""
    return ASK + text + "[|||||| please| now| then]"


LIST_HERE = (
    imperative(
        f"{SHOW} [the|all|all the|me the|my|all my|] [files|files and folders|file names|files that are there] {HERE}"
    ),
    imperative(
        f"{SHOW} [the|all the|all|my|] [files|file list|folder contents|directory contents|contents|directory listing]"
    ),
    imperative(
        f"{SHOW} [the contents of|what is in|everything in|all in|all files in|the files in|whatever is in] {THIS}"
    ),
    imperative(f"[list|look at|look into|look around in|show|show me|open|check|see|explore|inspect|browse] {THIS}"),
    imperative("[look around|list files|list everything|list all|list the folder|do a listing|do an ls|run ls|use ls]"),
    question(
        f"[what|which] files [are|are there|do we have|do i have|can you see|exist|can you find|do you see] {HERE}"
    ),
    question(
        f"[what is|what's|whats|what do we have|what do i have|what do you see|what can you see|what's there] {HERE}"
    ),
    question(
        f"[what is|what's|whats|what files are|which files are|what do you see|what lies|what can be found] in {THIS}"
    ),
    question(
        f"[what does {THIS} contain|what are the files {HERE}|what are my files|which files are there|what files "
        f"are there]"
    ),
    question(
        "[what files do i have|which files do you see|what files can you see|what files exist|which files do we have]"
    ),
    question(
        f"[is there anything|are there any files|are there files|what else is|what all is|how does it look] {HERE}"
    ),
    "[i want to see|i'd like to see|let me see|can i see|show me] [the files|all files|what is here|my files] "
    "[|here|now|please]",
)
LIST_HERE_BARE = (
    "ls",
    "ls",
    "ls",
    "ls .",
    "dir",
    "files",
    "list",
    "ls ./",
    "list .",
    "ls please",
    "LS",
    "list files",
    "files?",
)
LIST = (
    imperative(f"{SHOW} [the files in|all files in|the contents of|what is in|everything in|files in|the files of|me] "
               "[|||the folder |the directory |folder |my ]{folder}"),
    imperative("[list|look at|look into|show|show me|check|see|explore|inspect|list out] "
               "[|||the folder |the directory |folder |directory ]{folder}"),
    imperative("[list|show|show me|open] [the|my] {folder} [folder|directory]"),
    question("[what is|what's|whats|which files are|what files are|what do you see|are there files] [in|inside] "
             "[|||the folder |the directory |folder |my ]{folder}"),
    question("[what is|what's|whats|which files are|what files are] [in|inside|in] the {folder} [folder|directory]"),
    question("what [does|files does] [|the folder |the directory ]{folder} [contain|have|hold]"),
    imperative("[look into|go to|look in|open|go into] [|the folder |my folder ]{folder} and [list|show|tell|show me|"
               "tell me|see] [what is there|what is in it|what's there|the files|its files|what you find]"),
    "[i want to see|let me see|can i see] [the files in|what is in|the contents of|inside] {folder} [|please|now]",
)  # fmt: skip
LIST_BARE = ("ls {folder}", "ls {folder}", "ls {folder}", "dir {folder}", "list {folder}", "ls in {folder}")
READ = (
    imperative("[read|open|show|show me|print|cat|display|view|look at|output|load|read out|read me|print out|see|"
    "dump] "
               "[||||||the file |file |my |this file: |the text of |the text in ]{file}"),
    imperative("[show|show me|give me|print|display|tell me|read|output] [the contents of|the content of|what is in|"
               "what's in|everything in|what is inside|the text in|what stands in] [||the file |file |my ]{file}"),
    imperative("[open|read|show me|print] the [|whole |entire |full ][{file} file|file named {file}|file called "
    "{file}]"),
    question("[what is|what's|whats|what do you find|what stands|what is written|what's written] [in|inside] "
             "[|||the file |file |my |this file: ]{file}"),
    question("what does [|||the file |file |my ]{file} [say|contain|have in it|hold|look like|tell us]"),
    question("[what are|what is] the [contents|content|text] of [|the file |my ]{file}"),
    imperative("[look into|look in|open|check|go to|take] [|the file |my file ]{file} and [show|tell|show me|tell me|"
               "say|give me|print] [what is there|what is in it|what it says|what's there|its text|its contents]"),
    "[i want to|i'd like to|can i|may i|let me|i need to] [see|read|look at] [|the file |what is in |the contents "
    "of ]{file} [||now]",
)  # fmt: skip
READ_BARE = (
    "cat {file}",
    "cat {file}",
    "{file}",
    "read {file}",
    "less {file}",
    "more {file}",
    "type {file}",
    "open {file}",
)
OCCUR = "[occur|appear|stand|come up|turn up|show up]"
SEARCH_HERE = (
    imperative("[search for|look for|find|grep|grep for|search|locate|seek] "
               "[|||||the word |the text |the string |the name |all |every ]{word}"),
    imperative("[search|look through|scan|grep|go through] [the files|all files|everything|this folder|my files|"
               "the current folder|the project|the code] for [|||the word |the text |the string |the name ]{word}"),
    imperative("[find|show me|list|show|give me] [all|every|the|each] [place|places|line|lines|file|files|occurrences] "
               "[with|of|containing|that contain|where it says|that mention|mentioning] {word}"),
    imperative(f"[search for|look for|find|grep] [|||the word |the text ]{{word}} {HERE}"),
    imperative("[search for|look for|find|grep for] {word} in [the files|all files|my files|all the files|every "
    "file|.]"),
    question(f"where does [|||the word |the text |the name ]{{word}} {OCCUR}[||| here| in the files| in this folder]"),
    question("where [is|do you see|can i find|do i find] [|||the word |the text |the name ]{word} "
             "[used|mentioned|written|defined|in the files|in my files|in the code|in this folder|here]"),
    question("[which|what] [files|file|lines] [contain|contains|mention|has|have|include|use|uses|talk about] {word}"),
    question("[which|what] [file|files|one of my files|of the files] [contains|contain|has|mentions|defines|uses] "
             "[||the word |the text |the name |the function |the string ]{word}"),
    imperative("find [the|all|every|each] [file|files|line|lines|place|places] [where|in which] {word} [is|occurs|"
               "stands|is used|is defined|is mentioned|appears|is written]"),
    question("[in which|in what] [file|files|line|place] [is|does] {word} [|written|occur|mentioned|stand]"),
    question("[is|does] [|the word ]{word} [anywhere|somewhere|occur anywhere|in any file|mentioned in any file|"
             "mentioned anywhere] [|here|in the files|in this folder]"),
)  # fmt: skip
SEARCH_BARE = (
    "grep {word}",
    "grep {word}",
    "grep {word} .",
    "search {word}",
    "find {word}",
    "grep -r {word}",
    "search for {word}",
)
SEARCH = (
    imperative("[search for|look for|find|grep|grep for|search|locate] "
               "[||||the word |the text |the string |the name ]{word} [in|inside|within|in] [|||the file |the "
               "folder ]{place}"),
    imperative("[search|look through|scan|grep|go through] [||the file |the folder ]{place} for "
               "[||||the word |the text |the string ]{word}"),
    imperative("[find|show me|list] [all|every|the] [place|places|line|lines|occurrences] "
               "[with|of|containing|that contain] {word} in {place}"),
    question(f"where in [|the file |the folder ]{{place}} does [||the word ]{{word}} {OCCUR}"),
    question(f"where does [||the word |the name ]{{word}} {OCCUR} in [|the file |the folder ]{{place}}"),
    question("[is|where is|is there] [||the word |the text ]{word} in [|the file |the folder ]{place}"),
    question("is [the word |the word |the text |the name ||]{word} [in|inside|mentioned in|used in|part of|somewhere "
             "in|anywhere in] [||the file |my file |the folder ]{place}"),
    question("does {place} [contain|mention|include|have] [|the word |the text ]{word}"),
    question("[which|what] [lines|line|files] [in|of] {place} [contain|mention|have|has] {word}"),
)  # fmt: skip
SEARCH_IN_BARE = ("grep {word} {place}", "grep {word} {place}", "search {word} in {place}", "grep {word} in {place}")
TIME = (
    question("[what is the time|what time is it|what's the time|whats the time|what time do we have|how late is it]"
             "[||| now| right now| here| at the moment]"),
    imperative("[tell me|show me|give me|say|check|look up|get|print] [the time|the current time|what time it is]"),
    "[do you know|can you tell me|can you say|could you tell me|i need to know|i want to know] [what time it is|"
    "the time] [||now]",
    "[the |the current |current |local |what ]time[| now| please| is it]",
)  # fmt: skip
TIME_BARE = ("time", "time?", "time", "current time", "the time", "clock", "now?", "time please")
DATE = (
    question("[what is the date|what's the date|whats the date|what is today's date|what date is it|what day is it|"
             "what day is today|which day is it|what day of the week is it|which day is today|what date do we have]"
             "[||| now| today| right now]"),
    imperative("[tell me|show me|give me|say|check|look up|get|print] [the date|today's date|the current date|what "
    "day it is|the day]"),
    "[do you know|can you tell me|could you tell me|i want to know] [what day it is|the date|today's date|the date "
    "of today] [||now]",
    "[is it monday|is it sunday|is it friday|is today monday|is today a sunday|what is today|what's today|current "
    "date]",
)  # fmt: skip
DATE_BARE = ("date", "date", "date?", "today", "today?", "the date", "today's date", "date please")
YEAR = (
    question("[what|which] year [is it|is this|do we have|are we in|is it now]"),
    "[the |current |this ]year[| please]",
)
SUM = (
    question("[what is|what's|whats|how much is|what does|what do you get for|what makes|what are] {sum}"),
    imperative("[calculate|compute|work out|evaluate|solve|figure out|determine|find|add up|do] [|||the value of "
    "]{sum}"),
    "[|||]{sum}[| =| = ?|=| is|?| equals]",
    "[the result of|the value of|value of|result of|calc|calculate:|compute:|math:|calculator:|use the "
    "calculator:] {sum}",
    question("[can you|could you|would you] [calculate|compute|work out|solve|tell me|do] {sum}"),
    "[i need|i want|give me|tell me|get me] [|the result of |the value of ]{sum}",
)  # fmt: skip
SUM_BARE = ("{sum}",)
SUM_ORDERS = (
    (imperative("[add|add up|sum|sum up] {a} and {b}"), "{a}+{b}"),
    (imperative("[add {b} to {a}|take {a} and add {b}|increase {a} by {b}]"), "{a}+{b}"),
    (imperative("[subtract {b} from {a}|take {b} away from {a}|take {a} minus {b}|decrease {a} by {b}]"), "{a}-{b}"),
    (imperative("[multiply {a} by {b}|multiply {a} with {b}|multiply {a} and {b}|take {a} times {b}]"), "{a}*{b}"),
    (imperative("[divide {a} by {b}|split {a} by {b}]"), "{a}/{b}"),
)
RUN = (
    imperative(
        "[run|execute|run the command|execute the command|run this:|execute this:|run this command:|call|launch] "
        "{command}"
    ),
    "[run|execute|please run|please execute|can you run|could you run|shell|cmd|command|run in the shell|exec]: "
    "{command}",
    "[use the shell to run|use the shell:|in the shell:|in a terminal, run|run in a shell:|start|do|try|launch] "
    "{command}",
    "[i want to run|i'd like to run|let's run|now run|go and run|please try|please start] {command}",
)
RUN_BARE = ("{command}", "{command}", "$ {command}", "run {command}", "`{command}`")
# what is asked for, and the command that does it
SHELL = (
    (("[what is the|which is the|show me the|tell me the|print the|what's the|what is my|show the] [current |"
    "working |current working ]"
      "[folder|directory|path]", "[where am i|where are we|in which folder am i|which folder am i in|what folder "
      "is this|"
      "which directory is this|what directory are we in|where are we now|in which directory are we]"), "pwd"),
    (("[how much|is there] [disk space|space on the disk|free space|space] [is left|is free|do i have|do we have|"
    "left|is available]",
      "[show|check|show me|tell me] [the |my |free |the free ]disk [space|usage]"), "df -h"),
    (("how much [memory|ram|free memory|free ram] [is free|is left|do i have|do we have|is available|does this "
    "machine have]",
      "[show|check|show me|tell me] [the |my |free |the free ][memory|ram][| usage]"), "free -h"),
    (("[which|what] [version of python|python version|python] [is installed|is this|do i have|do we have|is there]",
      "[show|check|show me] [the |my ]python version"), "python3 --version"),
    (("how many [cores|cpus|processors] [are there|do i have|does this machine have|are here|does my machine "
    "have]",), "nproc"),
    (("[which|what] [user am i|user is this|is my user name|user is logged in]",
    "[who am i logged in as|show my user name]"), "whoami"),
    (("[which|what] [system|operating system|os|kernel|linux] [is this|am i on|do i have|is running|runs here]",),
    "uname -a"),
    (("[show|show me|check|tell me|get|what is] the [git status|status of git|git state|state of the repository]",
      "[what has changed|what changed] in [git|the repository]", "[git status|the git status] please"), "git status"),
    (("[show|show me|list|print] the [last commits|git log|commits|git history|history of git]",), "git log --oneline"),
    ((imperative("[make|create|add|set up] [a|a new|the|one] [folder|directory] [|called |named |with the name "
    "]{name}"),
      imperative("[make|create] [the|a] {name} [folder|directory]")), "mkdir {name}"),
    ((imperative("[make|create|add] [an empty file|a file|a new file|the file|an empty file] [|called |named "
    "]{file}"),), "touch {file}"),
    ((imperative("[delete|remove|erase|get rid of|throw away] [||the file |file ]{file}"),), "rm {file}"),
    ((imperative("[copy|duplicate] [||the file ]{file} [to|as|into] {file2}"),), "cp {file} {file2}"),
    ((imperative("[rename|move] [||the file ]{file} [to|into] {file2}"),), "mv {file} {file2}"),
    (("how many lines [does|are in|has] [|the file ]{file}[| have]", imperative("[count the lines in|count the "
    "lines of] {file}"),
      "[what is the number of|number of|the number of] lines in {file}"), "wc -l {file}"),
    (("how many words [does|are in|has] [|the file ]{file}[| have]", imperative("[count the words in|count the "
    "words of] {file}")),
     "wc -w {file}"),
    ((imperative("[show|show me|print|read|give me] the first {n} lines [of|in|from] [|the file ]{file}"),),
    "head -n {n} {file}"),
    ((imperative("[show|show me|print|read|give me] the last {n} lines [of|in|from] [|the file ]{file}"),),
    "tail -n {n} {file}"),
    ((imperative("[run|execute|start|launch] [||the script |the program |my script ]{python}"),), "python3 {python}"),
    ((imperative("[write|put|save] {name} [to|into|in] [|the file |a file called ]{file}"),), 'echo "{name}" > {file}'),
    ((imperative("[print|say|echo|output] {name} [in|with|using] the shell"),), "echo {name}"),
)  # fmt: skip
