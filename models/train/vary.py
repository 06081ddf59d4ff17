"""One question in many forms: templates, synonyms, small talk around it, typing mistakes."""
import re

DO = ["how do I {}?", "how do I {}?", "how can I {}?", "how to {}?", "how would I {}?",
      "how does one {}?", "how do you {}?", "what do I type to {}?", "what do I have to do to {}?",
      "which command lets me {}?", "what is the command to {}?", "what's the right way to {}?",
      "what is the way to {}?", "is there a way to {}?", "is it possible to {}?", "can I {}?",
      "can you tell me how to {}?", "tell me how to {}", "show me how to {}",
      "I want to {}", "I want to {}, how?", "I need to {}", "I'd like to {}", "help me {}",
      "please explain how to {}", "how might I {}?", "what should I run to {}?", "to {}, what do I do?",
      "any way to {}?", "{}", "{}, how?", "how could a user {}?", "where do I start if I want to {}?",
      "what must I do to {}?", "we want to {}", "how is it done: {}?", "I'm trying to {}",
      "what's needed to {}?", "I have to {}, what's the command?", "my boss wants me to {}",
      "could I {}, and how?", "what would you type to {}?", "which tool helps me to {}?",
      "the quickest way to {}?", "isn't it possible to {}?", "is there something to {}?",
      "how am I supposed to {}?", "I don't know how to {}", "we need to {}, what do we do?"]
IS = ["what is {}?", "what is {}?", "what's {}?", "explain {}", "tell me about {}", "what does {} mean?",
      "what do you mean by {}?", "define {}", "describe {}", "{}?", "can you explain {}?",
      "what exactly is {}?", "I don't understand {}", "what is meant by {}?", "meaning of {}?",
      "could you tell me what {} is?", "say something about {}", "what can you tell me about {}?",
      "give me a short explanation of {}", "I keep reading about {}, what is it?", "{}: what is that?",
      "what am I to understand by {}?", "give a definition of {}", "the docs mention {}, what's that?",
      "what's the idea of {}?", "{}, in short?", "what do people mean when they say {}?",
      "I've never heard of {}", "what should I know about {}?", "introduce {} to me",
      "what kind of thing is {}?"]
DOES = ["what does {} do?", "what does {} do?", "what is {} for?", "what is {}?", "what's {}?",
        "explain {}", "what is the purpose of {}?", "when do I use {}?", "when would I need {}?",
        "why would I use {}?", "{}?", "what happens with {}?", "tell me about {}", "how does {} work?",
        "describe {}", "what can I do with {}?", "what do I get from {}?", "what is {} good for?",
        "what effect does {} have?", "how do I use {}?",
        "in what situation is {} useful?", "what's the use of {}?", "I saw {} in a script, what does it do?",
        "when is {} the right thing?", "{} in one sentence", "what happens if I give {}?", "purpose of {}?",
        "what will {} do for me?", "should I use {}, and for what?", "{}: meaning?", "document {}",
        "my colleague uses {}, what is it?"]
SET = ["which setting decides {}?", "which setting controls {}?", "what setting is it for {}?",
       "how do I change {}?", "how do I set {}?", "where do I configure {}?", "how is {} configured?",
       "which key in steamd.conf is for {}?", "what do I put into steamd.conf for {}?",
       "what decides {}?", "how can I control {}?", "can {} be configured?", "can I change {}?",
       "{}: which setting?", "name the setting for {}", "I want to change {}", "which option sets {}?",
       "how can an administrator adjust {}?", "where is {} set?",
       "which line of steamd.conf is about {}?", "whereby is {} determined?",
       "with which key do I influence {}?", "an admin wants to change {}, how?",
       "what's the name of the key for {}?", "where can {} be adjusted?", "{}: is there a knob for that?",
       "is there a setting for {}?", "tune {}", "what must I edit to change {}?",
       "who or what determines {}?", "which configuration key governs {}?"]
KEY = ["what does {} do?", "what does {}= mean?", "what is {}?", "what is {} for?", "explain {}",
       "explain the setting {}", "the {} setting?", "what is the {} setting for?", "{}?", "{}=?",
       "what does the key {} in steamd.conf do?", "tell me about {}=", "what happens if I set {}?",
       "what do I use {}= for?", "describe {}", "when should I change {}?", "how does {} work?",
       "meaning of {}", "what is the purpose of {}=",
       "I found {} in steamd.conf, what is it?", "{}= in one sentence", "what is decided by {}?",
       "which effect has {}=?", "somebody set {} here, what for?", "what would I change {} for?",
       "is {} important, and for what?", "please document {}=", "what do I control with {}?",
       "{}, the key: purpose?", "I don't understand the line {}=…"]
DEFAULT = ["what is the default of {}?", "what's {}'s default?", "default value of {}?",
           "what does {} default to?", "what is {} set to by default?", "what is the default for {}=?",
           "which value does {} have if I don't set it?", "how large is {} by default?",
           "{} default?", "what value does {} have out of the box?",
           "with nothing configured, what is {}?", "I have not touched {}, what is it then?",
           "{} without a line in steamd.conf?", "what does steamd assume for {}?", "factory value of {}?",
           "initial value of {}=?", "{} if I leave it out?", "when {} is absent, what holds?",
           "is there a default for {}?", "a fresh installation has which {}?", "to what is {} preset?",
           "what number stands behind {} if nobody sets it?", "what do I get for {} if I say nothing?",
           "unset {}: which value counts?", "I deleted the line with {}, what applies now?"]
RANGE = ["which values may {} have?", "what is the maximum of {}?", "what is the smallest {}?",
         "what range does {} accept?", "what can {} be set to?", "allowed values of {}?",
         "how big can {} be?", "which values does {}= take?", "limits of {}?", "what are valid values for {}?",
         "how far may I raise {}?", "how low may {} go?", "what is the ceiling of {}?", "bounds of {}=?",
         "is there an upper limit for {}?", "between what and what must {} lie?",
         "which words or numbers are legal for {}?", "my value of {} is refused, what is legal?",
         "what would be too much for {}?", "permitted values for {}=", "smallest and largest {}?",
         "what may stand behind {}=?", "valid range of {}", "can {} be as large as I like?"]
APPLIED = ["does {} need a restart?", "is {} applied on reload?", "can I change {} without a restart?",
           "when does a change of {} take effect?", "do I have to restart after changing {}?",
           "how do I apply a new {}?", "is a reload enough for {}?", "I changed {}, what now?",
           "does reload apply {}=?",
           "{} was edited, which systemctl verb do I need?", "will systemctl reload steamd take a new {}?",
           "must the daemon go down to change {}?", "can {} change while answers run?",
           "restart or reload for {}?", "how do I make my new {} count?",
           "when does steamd notice another {}?", "{}: hot or cold change?",
           "do I interrupt anyone if I change {}?", "after editing {}= what do I type?",
           "is {} read again at reload?", "what activates a change of {}?",
           "I want another {} right now, how do I put it into effect?"]
# The same three of what a setting decides, without its name.
SET_DEFAULT = ["what is {} by default?", "{} if nothing is set?", "{} unless configured?",
               "{} in a fresh installation?", "{} out of the box?", "the default for {}?",
               "I configured nothing: {}?", "what is normal for {}?",
               "which value holds for {} unless I say otherwise?", "{}: what does steamd assume?"]
SET_RANGE = ["up to what may I set {}?", "what is the most one can configure for {}?", "limits for {}?",
             "{}: at most?", "which values are legal for {}?", "how far can {} be raised or lowered?"]
SET_APPLIED = ["I changed {}: restart or reload?", "when does a change of {} take effect?",
               "must steamd be restarted to change {}?", "is a reload enough for {}?",
               "can I change {} without interrupting anyone?", "{}: changed at run time?"]
ERROR = ["I get {}", "why do I get {}?", "steamctl says {}", "what does '{}' mean?", "error: {}",
         "my request failed with {}", "the daemon answered {}, why?", "got the error {}, what now?",
         "what is the cause of {}?", "a program of mine gets {}", "what does the error {} tell me?",
         "my log has {} in it", "the reply was an error: {}", "code {}: cause?",
         "what went wrong if the code is {}?", "how should my program treat {}?",
         "{} came back instead of an answer", "which exit code goes with {}?",
         "the library's error code is {}", "under which circumstances do I see {}?",
         "{}: my fault or the daemon's?", "error code {} and its exit status?"]
EXIT = ["what does exit code {} mean?", "steamctl exited with {}", "exit status {}?",
        "what is exit code {}?", "why did steamctl return {}?", "my script got exit code {}",
        "exit code {}", "steamctl ended with code {}, why?", "meaning of exit status {}",
        "what does it mean when steamctl exits with {}?", "$? is {}, what happened?",
        "the return code was {}", "steamctl returned {}, what does that mean?",
        "rc={}", "the shell shows {} after steamctl", "status {} from steamctl: reason?",
        "a job failed with {}", "what is wrong if steamctl gives {}?",
        "how do I read the number {} from steamctl?", "in the cron mail: exit status {}",
        "how should a script treat exit code {}?", "{} as exit status: what does it stand for?",
        "steamctl ask failed with code {}", "process exited with {}", "non-zero exit {}?",
        "{}: which problem is that?"]
TEMPLATES = {"do": DO, "is": IS, "does": DOES, "set": SET, "key": KEY, "default": DEFAULT,
             "range": RANGE, "applied": APPLIED, "set default": SET_DEFAULT,
             "set range": SET_RANGE, "set applied": SET_APPLIED, "error": ERROR, "exit": EXIT, "q": ["{}"]}

BEFORE = ["hello, ", "hi, ", "hi! ", "hey, ", "good morning, ", "please: ", "quick question: ", "ok, ",
          "so, ", "and ", "now, ", "tell me, ", "I'm new here. ", "sorry, ", "one question: ", "well, ",
          "as an administrator, ", "as a user, ", "I wonder: ", "say, ", "excuse me, ", "just asking: "]
AFTER = [" please", " thanks", " in steamd", " with steamd", " on my machine", " on this machine",
         " thank you", " here", " exactly", " on Linux", ", please", " on our server"]

# The forms of questions that do not speak of steamd by name.
ELSEWHERE = {kind: [t for t in forms if "steam" not in t and "daemon" not in t]
             for kind, forms in TEMPLATES.items()}
AFTER_ELSEWHERE = [end for end in AFTER if "steamd" not in end]

# Words that may stand for one another in questions; each list is one meaning.
SAME = [
    ["show", "see", "list", "display", "print", "view", "look at"],
    ["remove", "delete", "get rid of", "erase", "throw away"],
    ["stop", "end", "abort", "interrupt"],
    ["start", "launch", "bring up", "run"],
    ["change", "modify", "alter", "adjust"],
    ["find out", "learn", "check", "know"],
    ["make", "create"],
    ["keep", "preserve", "retain"],
    ["give back", "free", "release", "return"],
    ["get", "obtain", "fetch", "have"],
    ["limit", "restrict", "cap"],
    ["memory", "RAM"],
    ["program", "application", "app", "process"],
    ["programs", "applications", "apps", "processes"],
    ["computer", "machine", "server", "host", "box"],
    ["question", "prompt", "request"],
    ["answer", "reply", "response", "output"],
    ["answers", "replies", "responses"],
    ["conversation", "chat", "dialogue"],
    ["conversations", "chats", "dialogues"],
    ["directory", "folder"],
    ["folder", "directory"],
    ["setting", "option", "parameter", "configuration key"],
    ["settings", "configuration", "config"],
    ["error", "failure", "problem"],
    ["fast", "quick", "speedy"],
    ["quickly", "fast"],
    ["speed", "performance", "throughput"],
    ["user", "person", "account"],
    ["users", "people", "accounts"],
    ["administrator", "admin", "sysadmin"],
    ["administrators", "admins"],
    ["maximum", "most", "upper limit of"],
    ["largest", "biggest", "maximum"],
    ["longest", "maximum"],
    ["several", "many", "multiple"],
    ["use", "employ", "work with"],
    ["explain", "describe", "clarify"],
    ["happens", "goes on", "takes place"],
    ["wait", "hang on"],
    ["script", "shell script", "bash script"],
    ["terminal", "shell", "console", "command line"],
    ["immediately", "at once", "right away", "now"],
    ["reboot", "restart of the machine"],
    ["load", "read in"],
    ["copy", "duplicate"],
    ["move", "transfer"],
    ["store", "save", "keep"],
    ["stored", "saved", "kept"],
    ["installed", "set up"],
    ["install", "set up", "deploy"],
    ["need", "require"],
    ["why", "for what reason", "how come"],
    ["disk", "hard drive", "SSD", "drive"],
    ["room", "space"],
    ["allowed", "permitted", "able"],
    ["private", "secret", "confidential"],
    ["fails", "breaks", "does not work"],
    ["broken", "damaged", "corrupted"],
    ["forget", "drop"],
    ["everything", "all of it"],
    ["currently", "right now", "at the moment"],
    ["number", "count"],
    ["the model", "the language model", "the LLM"],
    ["model", "checkpoint"],
    ["processor", "CPU"],
    ["text", "string"],
    ["choose", "select", "pick"],
    ["compile", "build"],
    ["file", "document"],
    ["finish", "complete"],
    ["protect", "guard", "secure"],
    ["test", "try", "check"],
    ["cancel", "abort", "call off"],
    ["disable", "switch off", "turn off"],
    ["switch off", "disable", "turn off"],
    ["enable", "switch on", "turn on"],
    ["necessary", "needed", "required"],
    ["graphics card", "GPU", "video card"],
    ["how many", "what number of"],
    ["how large", "how big", "what size"],
    ["by default", "normally", "out of the box", "if nothing is set"],
    ["licence", "license"],
    ["colleague", "coworker", "friend"],
    ["large", "big", "huge"],
    ["which setting", "which knob", "which key", "what setting", "which parameter"],
    ["which command", "what command", "which subcommand", "which tool"],
    ["which option", "which flag", "which switch", "what option"],
    ["others", "other people", "other users", "somebody else"],
    ["another user", "somebody else", "a colleague", "another person"],
    ["written", "programmed", "coded"],
    ["because of", "due to"],
    ["old", "stale", "ancient"],
    ["hidden", "invisible"],
    ["crash", "breakdown"],
    ["one user", "a single user", "one person"],
    ["sleeps", "is asleep", "is sleeping"],
    ["reasoning", "thinking"],
    ["the thinking", "the reasoning", "thoughts"],
    ["supported", "possible", "accepted"],
    ["works", "functions"],
    ["is used", "gets used"],
    ["daemon", "service"],
]
MEANING = {}
for group in SAME:
    for word in group:
        MEANING.setdefault(word, [w for w in group if w != word])
PHRASES = re.compile(r"\b(" + "|".join(sorted(map(re.escape, MEANING), key=len, reverse=True)) +
                     r")\b")
DROPPABLE = {"the", "a", "an", "do", "does", "please", "exactly", "really", "to", "is", "of", "it"}
NEAR = {"a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj",
        "i": "uo", "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o",
        "q": "w", "r": "et", "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc",
        "y": "tu", "z": "x"}


# Names are names: of commands, verbs, options, settings, files, states and errors.
NAMES = re.compile(r"(steamctl (?:session )?[a-z]+|session [a-z]+|make [a-z]+(?:-[a-z]+)?|systemctl (?:--user )?"
                   r"[a-z]+|the [a-z]+ command|command [a-z]+|state [a-z-]+|error [a-z-]+|class [a-z]+|"
                   r"\S*[-/=_<>$]\S*|[A-Za-z]*[a-z][A-Z]\w*|steamd\.\w+)")


def synonyms(rng, text, chance):
    pieces = NAMES.split(text)
    pieces[::2] = [PHRASES.sub(lambda m: rng.choice(MEANING[m.group(1)])
                               if rng.random() < chance else m.group(1), p) for p in pieces[::2]]
    return "".join(pieces)


def typo(rng, text):
    places = [i for i, c in enumerate(text) if c.isascii() and c.isalpha()]
    if len(places) < 8:
        return text
    i = rng.choice(places[1:])
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1:]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    if kind == 2 and i + 1 < len(text):
        return text[:i] + text[i + 1] + text[i] + text[i + 2:]
    return text[:i] + rng.choice(NEAR.get(text[i].lower(), "e")) + text[i + 1:]


def drop_words(rng, text):
    words = text.split(" ")
    kept = [w for w in words if w.lower() not in DROPPABLE or rng.random() < 0.5]
    return " ".join(kept) if len(kept) >= 2 else text


def ask(rng, kind, text):
    """A question of this kind about @text, before it is varied."""
    return rng.choice(TEMPLATES[kind]).format(text)


def vary(rng, question, after=AFTER):
    """The same question, as somebody else might type it; @after: what may stand behind it."""
    q = question
    if rng.random() < 0.6:
        q = synonyms(rng, q, 0.4)
    if rng.random() < 0.12:
        q = drop_words(rng, q)
    if rng.random() < 0.12:
        q = rng.choice(BEFORE) + q
    if rng.random() < 0.12:
        end = q[-1] if q[-1] in "?!." else ""
        q = q[:len(q) - len(end)] + rng.choice(after) + end
    form = rng.random()
    if form < 0.25 and "-S" not in q:  # -s is another option
        q = q.lower()
    elif form < 0.85:
        q = q[:1].upper() + q[1:]
    if rng.random() < 0.3 and q[-1] in "?.":
        q = q[:-1]
    elif q[-1] not in "?.!" and rng.random() < 0.2:
        q += rng.choice([".", "?", "!"])
    while rng.random() < 0.1:
        q = typo(rng, q)
    return q
