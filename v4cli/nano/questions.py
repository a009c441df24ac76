"""What people ask nano without needing a tool, as grammars (grammar.py), with the answers; and what it cannot know."""

from v4cli.nano.talk import TALK

ANSWERS = dict((questions[0], reply) for questions, reply in TALK)
HOW = "[how do i|how can i|how do you|how to|how would i|how does one|what do i type to|what is the command to|"
HOW += "tell me how to|"
HOW += "show me how to|how should i|how do we|can you tell me how to|what do i do to|i want to|explain how to]"
ME = "[||, nano|| please|]"

# (grammars, answer)
CHAT = (
    (("[hello|hi|hey|hallo|hiya|good morning|good evening|good afternoon|good day|greetings|howdy|yo|hello hello]"
      "[||| there| nano|, nano| you| again| friend| everybody]", "[well |oh |]hello[| there]"), ANSWERS["hello"]),
    (("[who|what] are you[|| exactly| really|, please]", "[what's|what is|whats|tell me] your name[|, please]",
      "[tell me|say] [|something |a bit |a little |more ][about yourself|about you|who you are|what you are]",
      "[hello|hi|hey][,|!|] [who|what] are you", "[please |]introduce yourself",
      "[what|which] [model|ai|llm|bot|assistant] [is this|are you]",
      "are you [deepseek|chatgpt|gpt|claude|llama|a robot|an ai|a bot|nano|gemini|gpt-4|a language model]",
      "[who|what] [am i talking to|is this|is nano]", "[do you have a name|are you a chatbot|what kind of model "
      "are you|describe yourself]"),
     ANSWERS["who are you"]),
    (("what [can you do|are you good at|are you for|can i ask you|can i do with you|do you do|are your skills|are "
    "you able to do|"
      "else can you do|should i ask you]" + ME, "[how can|can] you help[| me]",
      "[help|help me|i need help|help please|what now]",
      "[show me|tell me] what you can do", "[what|which] [things|tasks] can you do",
      "how [do i use you|does this work|do i start|do you work]",
      "give me [an example|some examples|a few examples]"), ANSWERS["what can you do"]),
    (("how are [you|you doing|things|you today]" + ME, "[how is it going|how's it going|how do you do|what's up|"
    "are you ok|are you well|"
      "how do you feel|whats up|sup|everything ok]" + ME), ANSWERS["how are you"]),
    (("[thanks|thank you|thx|many thanks|ty|thanks a lot|thank you very much|thank you so much|cheers]"
      "[||| nano|, nano| for your help| for that| for this| again]", "[great|nice|cool|perfect|ok|good|"
      "wonderful][,|] [thanks|thank you]"),
     ANSWERS["thanks"]),
    (("[bye|goodbye|bye bye|good bye|see you|see you later|good night|ciao|farewell|until tomorrow|see you soon|so "
    "long]"
      "[||| nano|, nano]", "[ok |well |]i [have to go|am leaving|must go|am done]"), ANSWERS["bye"]),
    (("are you [a human|human|a person|alive|real|a real person|conscious|a man|a woman|sentient]" + ME,
      "do you have [feelings|a body|emotions|a soul|a brain|friends|a family]",
      "[do you feel anything|can you feel|can you think]"),
     ANSWERS["are you a human"]),
    (("how [big|large|small] [are you|is nano|is this model]", "how many parameters [do you have|does nano have|"
    "are you]",
      "what is your size", "[how many|what number of] [weights|parameters] [do you have|are in you]"),
      ANSWERS["how big are you"]),
    (("[are you|is this] [online|private|offline|local|safe|in the cloud|running locally]",
    "do you [need|use|have] [the|] internet",
      "[do you|does this|does v4] [send|upload|share|store|collect] [my |any |the |]data[| anywhere| somewhere]",
      "[is my data safe|where does my data go|do you work offline|does this work offline|can you go online|can you "
      "use the internet]"),
     ANSWERS["are you online"]),
    (("what [is|are] [v4|v4cli|this program|this tool|this app|this software]",
    "what does [v4|v4cli|this program|this tool|this] do",
      "[tell me about|explain|describe] [v4|v4cli|this program]", "[what is v4 for|what is this|what have i "
      "installed|what is v4cli for]"),
     ANSWERS["what is v4"]),
    ((HOW + " [download|get|install|fetch|pull|use|run|try|load] [|the ][flash|the flash model|deepseek flash|v4 "
    "flash|a real model|"
      "a bigger model|a big model|a better model|deepseek v4|the big model|the weights|real weights|the model]",
      "where [do i get|can i get|do i find|can i download|is] [flash|the flash model|the weights|a real model|a "
      "bigger model]",
      "[download|get|install|pull|fetch] [flash|the flash model|a real model|a bigger model|deepseek v4]"),
     ANSWERS["how do i download flash"]),
    ((HOW + " [download|get|install|fetch|pull|use|run|try|load] [|the ][pro|the pro model|deepseek pro|v4 pro]",
      "where [do i get|can i get|do i find|can i download|is] [pro|the pro model|v4 pro]",
      "[download|install|pull] [pro|v4 pro]"),
     ANSWERS["how do i download pro"]),
    ((HOW + " [start|open|begin|have|get|use] [a|the|a new] [chat|conversation|dialogue|talk|chat window]",
      HOW + " [chat|talk] [|with you|to you|with the model|to nano|in the terminal]"),
      ANSWERS["how do i start a chat"]),
    ((HOW + " [run|use|pass|give you|send|read] [a prompt from a file|a prompt file|a file as prompt|a prompt in a "
    "file|prompt.txt]",),
     ANSWERS["how do i run a prompt from a file"]),
    ((HOW + " [ask|run|send|give you] [one|a single|just one|only one] [question|prompt]",
      HOW + " [use v4 in a script|call v4 from a script|ask without a chat|script this|use this in a script]"),
     ANSWERS["how do i ask one question"]),
    ((HOW + " [measure|test|see|check|find out] [the |my |your |][speed|performance|tokens per second]",
      HOW + " [run|do|start] [a |the ]benchmark", "how fast [is my machine|are you|is this|is it|is nano|can you "
      "go]", HOW + " benchmark[| it| my machine]"),
     ANSWERS["how do i measure the speed"]),
    ((HOW + " [list|see|show|find] [the|my|all|all my|all the|installed] models",
      "[which|what] models [do i have|are installed|are there|are here|can i use|are on this machine|have i got]",
      "[list|show] [the|my|all] models"),
     ANSWERS["how do i list the models"]),
    ((HOW + " [check|test|examine] [my|the|this] [machine|computer|installation|setup|hardware]",
      "[is|will] my [machine|computer|laptop] [good enough|fast enough|ok|big enough]",
      HOW + " find [problems|errors|what is wrong]",
      "[something is broken|something is wrong|it does not work|this is broken|what is wrong with my machine|it "
      "doesn't work]"),
     ANSWERS["how do i check my machine"]),
    ((HOW + " [see|show|inspect|get|view] [the |]details of [a|the|this] model",
    HOW + " [inspect|show|examine] [a|this|the] model"),
     ANSWERS["how do i see details of a model"]),
    ((HOW + " [get|print|have|make] json[| output| back]", "[can you|does v4|do you] [print|output|write|give me] "
    "json"), ANSWERS["how do i get json output"]),
    ((HOW + " [turn|switch] thinking off", HOW + " [turn|switch] off [thinking|the thinking|reasoning]",
    HOW + " [disable|skip|hide|stop] "
      "[thinking|the thinking|reasoning|the reasoning|your thoughts]"), ANSWERS["how do i turn thinking off"]),
    ((HOW + " [turn|switch] thinking on", HOW + " [turn|switch] on [thinking|the thinking|reasoning]",
    HOW + " [enable|see|show|activate] "
      "[thinking|the thinking|reasoning|your reasoning|your thoughts]"), ANSWERS["how do i turn thinking on"]),
    ((HOW + " [set|change|use|lower|raise|choose] [the|a|another] temperature",),
    ANSWERS["how do i set the temperature"]),
    ((HOW + " [set|change|use|give|write] [the|a|my own|another] system [prompt|message]",),
    ANSWERS["how do i set a system prompt"]),
    ((HOW + " [get the same answer twice|set the seed|set a seed|change the seed|get the same result again|repeat "
    "an answer exactly]",),
     ANSWERS["how do i get the same answer twice"]),
    ((HOW + " [leave|exit|quit|close|end|get out of|stop] [|the chat|this|the program|this chat|v4|here|this program]",
      "[exit|quit|q|:q|stop|let me out|close|logout|i want to leave|end]"), ANSWERS["how do i leave the chat"]),
    ((HOW + " [stop|interrupt|cancel|abort] [an answer|you|the answer|this answer|your answer|a long answer|the "
    "model]",),
     ANSWERS["how do i stop an answer"]),
    (("[what|who] is [|v4 |deepseek |deepseek v4 ]flash", "[tell me|what do you know] about [|v4 |deepseek |"
    "deepseek v4 ]flash",
      "how [big|large] is flash", "how many parameters does flash have", "[explain|describe] flash"),
      ANSWERS["what is flash"]),
    (("[what|who] is [|v4 |deepseek |deepseek v4 ]pro", "[tell me|what do you know] about [|v4 |deepseek |deepseek "
    "v4 ]pro",
      "how [big|large] is pro", "how many parameters does pro have", "[explain|describe] v4 pro"),
      ANSWERS["what is pro"]),
    (("[what is|what's|explain|what does|tell me about] csa[| mean| stand for]",
    "what is compressed sparse attention"), ANSWERS["what is csa"]),
    (("[what is|what's|explain|what does|tell me about] hca[| mean| stand for]",
    "what is heavily compressed attention"), ANSWERS["what is hca"]),
    (("how [long|large|big] is [your|the] [context|context window]", "how [much|many tokens of] context [do you "
    "have|can you read]",
      "[what is|what's] [your|the] context [length|size|window]", "how many tokens [can you read|fit|can you "
      "remember|can you take]"),
     ANSWERS["how long is your context"]),
    (("how much memory [does|do|would] [a million tokens|a long context|a million tokens of context|the cache|the "
    "context] [take|need|use|cost]",
      "how [big|large] is the [kv cache|cache|kv]"), ANSWERS["how much memory does a million tokens take"]),
    (("[test|testing|ping|test test|test 1 2 3|this is a test|just testing|hello world]",
    "[are you there|are you working|does this work|"
      "is this thing on|is anybody there|is anyone there|do you hear me|can you hear me|are you awake|do you work|"
      "is it working|anybody here]"),
     "Yes, I am here. How can I help?"),
    (("[ok|okay|cool|nice|great|wow|good|yes|no|fine|perfect|alright|super|well done|awesome|good job|very good|"
    "right|i see|sure|nope|yep|lol|"
      "haha|hm|hmm|interesting|amazing]" + ME,), "Good. What is next?"),
    (("[you are|you're|that is|that's|this is|it is] [stupid|wrong|bad|not right|dumb|useless|terrible|nonsense|"
    "not true|not correct|silly|slow]"
      "[|| nano]", "[wrong|bad|bad answer|no, that is wrong|that did not help|you made a mistake|you suck|not what "
      "i asked]"),
     "I am sorry. I am only a tiny model."),
    (("who [made|created|built|trained|wrote|programmed|invented] [you|nano|this model]",
    "[where do you come from|who is your maker|"
      "how were you trained|how were you made|who is your creator|what were you trained on|where were you made]"),
     "The makers of v4cli trained me on generated dialogues."),
    (("[do you speak|can you speak|do you understand|do you know] [german|french|spanish|chinese|italian|other "
    "languages|english|russian]",
      "[what|which] languages [do you speak|do you know|can you speak]",
      "[hola|bonjour|guten tag|ciao bella|salut|sprichst du deutsch|"
      "parlez-vous francais|hallo wie geht es dir|como estas|wie geht es dir|wer bist du|was kannst du]"),
      "I only know a little English."),
    (("can you [write code|code|program|write python|write programs|write a program|write essays|write poems|"
    "translate|write emails|draw|"
      "play chess|sing|write stories|see images|make pictures|summarize texts|explain code]",),
      "No, I am too small for that. Try a real model: v4 pull flash."),
    ((HOW + " [start|run|use|open|launch] [a|the] [server|api|http server|web server|api server]",
    HOW + " [use the api|use it from an editor|serve a model]"),
     "Type: v4 serve"),
    ((HOW + " [continue|go on with|resume|reopen|go back to] [a|the last|my last|an old|the|my] [chat|"
    "conversation]",), "Type: v4 chat -c"),
    ((HOW + " [delete|remove|uninstall|get rid of] [flash|the flash model|a model]",), "Type: v4 rm flash"),
    (("how much [memory|ram|disk|space|disk space] [do i need for|does] flash[| need| take]",
    "can [my machine|my computer|i] run flash",
      "[will|does] flash [run|work|fit] [here|on my machine|on this machine|on my computer]",
      "what do i need [for|to run] flash"), "Type: v4 plan flash"),
    ((HOW + " [use|give you|allow|turn on|enable|get] [tools|the tools|your tools]",
    HOW + " let you [use tools|read files|run commands|read my files]"),
     "Type: v4 run --tools nano, or v4 chat, where I have them."),
    (("[what is|what's|who is|tell me about|who are] deepseek", "what does deepseek do"),
    "DeepSeek makes the V4 models: Flash and Pro."),
    (("[what is|what's] your favourite [colour|food|animal|book|film|song|number|city]",
    "[how old are you|where do you live|when were you born|"
      "do you like music|do you like me|are you married|do you sleep|what do you like|are you happy|do you eat|do "
      "you love me|where are you from]"),
     "I am a small language model and have no such things."),
    (("[list|show|show me|what are] the commands", "[what|which] commands [are there|can i use|do you know|exist]",
    HOW + " "
      "[see|list|find] [the|all] commands", "[where is the help|how do i get help|is there a manual|where is the "
      "manual]"),
     "Type /help in the chat, or v4 -h."),
    (("[asdf|foo|bar|foo bar|blah|bla bla|xyz|qwerty|abc|aaa|lorem ipsum|asdfgh|jkl|x|a|???|...|!|.|?|hjkl|sdf|1|"
    "123|42]",),
     "I did not understand that. Ask me: what can you do?"),
)  # fmt: skip

# what is typed most, as it is: never held out
CHAT_BARE = (
    ("hello", "hello"), ("hi", "hello"), ("hey", "hello"), ("hello there", "hello"), ("good morning", "hello"),
    ("who are you", "who are you"), ("what are you", "who are you"), ("hello, who are you", "who are you"),
    ("what is your name", "who are you"), ("which model are you", "who are you"),
    ("what can you do", "what can you do"),
    ("help", "what can you do"), ("help me", "what can you do"), ("how are you", "how are you"), ("thanks", "thanks"),
    ("thank you", "thanks"), ("thx", "thanks"), ("bye", "bye"), ("goodbye", "bye"), ("see you", "bye"),
    ("what is this", "what is v4"), ("what is v4", "what is v4"), ("what is v4cli", "what is v4"),
    ("how do i download flash", "how do i download flash"), ("how do i get flash", "how do i download flash"),
    ("how do i exit", "how do i leave the chat"), ("exit", "how do i leave the chat"),
    ("quit", "how do i leave the chat"),
    ("what is flash", "what is flash"), ("what is pro", "what is pro"), ("how big are you", "how big are you"),
)  # fmt: skip

TOPICS = (
    "[the sea|love|history|physics|black holes|music|the moon|football|cats|space|the economy|democracy|gravity|"
    "cooking|trees|winter|war|"
    "chess|robots|volcanoes|dogs|evolution|electricity|the sun|art|money|time|light|dreams|friendship|philosophy|"
    "mathematics|chemistry|"
    "quantum computers|neural networks|the internet|linux|python|rust|javascript|git|docker|databases|dinosaurs|"
    "the roman empire|"
    "coffee|tea|bread|cars|trains|planes|bicycles|birds|fish|whales|rain|clouds|the weather|climate change|god|"
    "happiness|death|school|"
    "recursion|machine learning|transformers|attention|photosynthesis|inflation|the brain|sleep|health|cancer|"
    "vitamins|yoga]"
)
COUNTRY = (
    "[France|Japan|Peru|Egypt|Norway|Chile|Kenya|India|Spain|Italy|Ghana|Nepal|Cuba|Iran|Mali|Germany|Brazil|China|"
    "Canada|Mexico|Austria|"
    "Poland|Greece|Turkey|Sweden|Russia|England|the USA|America|Australia|Portugal|Finland|Korea|Vietnam|france|"
    "germany|italy|spain]"
)
PERSON = "[Einstein|Mozart|Napoleon|Shakespeare|Goethe|Plato|Newton|Darwin|Obama|Caesar|Bach|Picasso|Turing|Gandhi|"
PERSON += "Marie Curie|elon musk]"
WRITE = "[write|write me|make|compose|give me|tell me|create|please write|can you write|i need|draft|generate]"
UNKNOWN = (
    f"[what is|what's|whats|name|tell me|do you know] the capital of {COUNTRY}",
    f"[who is|who was|who's] [the president|the king|the queen|the chancellor|the prime minister] of {COUNTRY}",
    f"[how many people live in|how big is|how old is|what language do they speak in|where is|what do people eat "
    f"in] {COUNTRY}",
    f"[what is the weather|how is the weather|what's the weather like|will it rain|how warm is it|is it raining] "
    f"[in {COUNTRY}|today|tomorrow|outside]",
    f"{WRITE} [a poem|a story|an essay|a song|a text|an article|a haiku|a short story|a blog post|a letter|a "
    f"speech] [about|on] {TOPICS}",
    f"{WRITE} [a joke|a recipe|a poem|a story|a riddle|a fun fact|an email to my boss|a limerick|something funny|a "
    f"song|a cover letter|"
    "a birthday card|a fairy tale]",
    f"{WRITE} [a|a simple|a small|some|a short] [python|rust|java|c|bash|javascript|shell] [program|script|"
    f"function|code|game|class]"
    "[|| that sorts a list| for fibonacci numbers| to rename files| that prints hello| for me]",
    f"[explain|describe|teach me|tell me about|what is|what are|tell me something about|what do you know about|i "
    f"want to learn about] {TOPICS}",
    f"[what do you think about|why do people like|what is the meaning of|what should i read about|who invented|who "
    f"discovered] {TOPICS}",
    f"[how does|how do|how did|why does|why is|why are] {TOPICS} [work|happen|begin|important|exist|start|end|matter]",
    f"[who is|who was|tell me about|what did|when was] {PERSON}[| do| born| famous for]",
    "[why is the sky blue|what is the meaning of life|who won the world cup|is there a god|how far is the moon|how "
    "tall is mount everest|"
    "how do planes fly|why do we dream|what is love|when did the war end|who wrote hamlet|how many planets are "
    "there|what is 42 about|"
    "what is the speed of light|what came first, the chicken or the egg|what is the largest animal|how deep is the "
    "ocean]",
    "[translate|say|how do you say] [hello|good morning|this|this text|thank you|i love you|the house is big] [to|"
    "in|into] "
    "[french|german|spanish|italian|chinese|japanese|latin]",
    "[summarize|explain|translate|improve|review|refactor|fix|rewrite|document|analyze|optimize] [this text|this "
    "code|my code|this|the code|"
    "my essay|this article|the bug|my program]",
    "[what|which] [film|movie|book|song|game|car|laptop|phone|present] should i [watch|read|buy|play|hear|get]",
    "[give me|do you have|i need] [advice|a tip|tips|ideas|some advice|an idea|help] [|about|on|for|with] [money|"
    "my job|love|my homework|cooking|"
    "a birthday party|dinner|my holiday|learning python|a present]",
    "[plan|organize|book|order|recommend] [a trip|my holiday|a flight|a pizza|a hotel|my day|a good book|a "
    "restaurant|a meal]",
    "[what happened|what is new|what's the news|any news] [today|in the world|yesterday|in 1989|in 1969|in politics]",
    "[who will win the election|what will happen tomorrow|should i get married|am i pretty|what should i do with "
    "my life|i am sad|i am bored|"
    "i feel bad|i am hungry|i have a headache|play a game with me|sing a song|draw a cat|let's play chess|guess "
    "what i think|what am i thinking]",
    "[send an email to|call|text|message] [my mother|my boss|Anna|Tom|the police|a friend]",
    "[open|start|play] [the browser|youtube|spotify|music|a video|google|the door]",
    "[how do i|how can i|how to] [cook rice|bake bread|learn python|lose weight|make money|fix my bike|write a "
    "book|get rich|tie a tie|"
    "install linux|learn french|sleep better|find a job|draw a horse|grow tomatoes|make a website|sort a list in "
    "python|center a div]",
)  # fmt: skip
CANNOT_FILE = (
    "[summarize|explain|improve|review|refactor|fix|rewrite|translate|document|analyze|optimize|format|check] [|||"
    "the file |my file ]{file}",
    "[what is wrong with|what does the code in|find the bug in|write tests for|add comments to|what is the point "
    "of] {file}[| do|]",
)
NOT_TOLD = "You have not told me that."

# kind of fact: (tellings, questions); the replies are those of skills.ALL_FACTS
FACTS = {
    "name": (("my name is {}", "[i am|i'm|im] {}", "i am called {}", "call me {}",
    "[hi|hello|hey], [my name is|i am|i'm] {}", "[people|friends] call me {}",
              "my name's {}", "the name is {}", "[you can |please ]call me {}", "[remember|note]: my name is {}"),
             ("[what is|what's|whats|tell me|say|do you know|do you remember|remember] my name", "who am i",
             "what am i called", "[and |so |]what was my name[| again]",
              "[do you know|tell me|do you remember] who i am", "what did i say my name was", "how am i called")),
    "city": (("i live in {}", "[i'm|i am] [from|living in|in] {}", "my [home|city|home town] is {}",
    "i live [now |]in {}"),
             ("where do i live", "[in which|what|which] [city|town] do i live[| in]",
             "[what is|what's] my [home town|city]", "where am i from",
              "[do you know|tell me|do you remember] where i live", "where is my home")),
    "colour": (("my favourite [colour|color] is {}", "my favorite color is {}", "i like {} [best|most]",
    "the colour i like most is {}"),
               ("[what is|what's|whats|tell me|do you remember] my favourite [colour|color]",
               "what is my favorite color",
                "[which|what] [colour|color] do i like[| best| most]")),
    "code word": (("the [code word|password|secret word|codeword] is {}",
    "[remember|keep in mind|note] [the|this|this code|the code] word: {}",
                   "remember: the code word is {}", "remember the word {}"),
                  ("[what is|what's|what was|tell me|do you remember|say] the [code word|password|secret word|"
                  "codeword]", "[which|what] word [did i tell you|should you remember|"
                   "did i ask you to remember]")),
    "dog": (("my dog is [called|named] {}", "my dog's name is {}", "i have a dog [called|named] {}",
    "the name of my dog is {}"),
            ("what is my dog [called|named]", "[what is|what's|tell me|do you remember] my dog's name",
            "[what is|what's|tell me] the name of my dog",
             "how is my dog called", "who is my dog")),
    "number": (("my [lucky|favourite] number is {}", "remember the number {}",
    "[remember|note]: my lucky number is {}", "i like the number {}"),
               ("[what is|what's|whats|tell me|do you remember] my [lucky|favourite] number",
               "[which|what] number [do i like|did i tell you|is my lucky number]")),
}  # fmt: skip
