"""What steamd-tiny is to know: the hand-written files in data/, filled from the tables.

A file has sections. "== title" begins one, or goes on with one of that title; "== setting KEY", "command NAME", "verb NAME",
"option NAME", "daemon NAME", "code NAME" and "exit NUMBER" take their answer from the
project's tables unless the section has its own, and so do "the default of KEY=", "the values of
KEY=" and "how KEY= is applied". Lines:

	a: answer			several: one of them is taken
	q: question | question…		as they stand
	do: to do something | …		"how do I …", "which command lets me …"
	is: a thing | …			"what is …", "explain …"
	set: what it decides | …	"which setting decides …"
	then: question | … => answer	asked after it, and meaningless without it
	w: 2				asked so much more often than others

{default KEY}, {help …} and {exit CODE} in answers come from the tables; behind => also
{answer TITLE}, the fact of that title, as the tables' functions below name it.
"""
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import tables

DATA = Path(__file__).resolve().parent / "data"
ALIKE = 0.65  # share of their words, rare ones above all
UNKNOWN = "I don't know that; I only know steamd."


@dataclass
class Fact:
    title: str
    answers: list = field(default_factory=list)
    asks: list = field(default_factory=list)  # (kind, text)
    then: list = field(default_factory=list)  # (questions, answer)
    weight: float = 1.0
    kind: str = ""  # of a table: "setting", "verb", …
    name: str = ""


def sentence(text):
    text = text.strip()
    return text if text[-1:] in ".!?" else text + "."


def upper(text):
    return text[:1].upper() + text[1:]


class Tables:
    def __init__(self):
        self.setting = tables.settings()
        self.command = tables.commands()
        self.verb = tables.verbs()
        self.option = tables.options()
        self.daemon = tables.daemon_options()
        self.code = tables.codes()
        self.exit = {}
        for number, meaning in tables.own_exits().items():
            self.exit.setdefault(number, []).append(meaning)
        for c in self.code.values():
            self.exit.setdefault(c.arguments, []).append(f"{c.name}: {c.help}")

    def default_of(self, key):
        s = self.setting[key]
        if s.default.startswith("UNSET") or s.default == "":
            return ""
        if s.kind == "BOOL":
            return "yes" if s.default == "1" else "no"
        if s.kind == "SIZE" and s.default != "0":
            n = int(s.default)
            for unit in "TGMK":
                size = 1024 ** ("KMGT".index(unit) + 1)
                if n % size == 0:
                    return f"{n // size}{unit}"
        return s.default

    def fill(self, text):
        def value(m):
            kind, name = m.group(1), m.group(2)
            if kind == "default":
                return self.default_of(name)
            if kind == "exit":
                return self.code[name].arguments
            table = next(t for t in (self.setting, self.command, self.option, self.daemon,
                                     self.verb, self.code) if name in t)
            return table[name].help
        return re.sub(r"\{(default|exit|help) ([^}]+)\}", value, text)


APPLIED = {
    "RELOAD": "It is applied on reload: systemctl reload steamd, without a restart.",
    "RESTART": "It needs a restart: systemctl restart steamd.",
    "MODEL": "It is applied when the model is loaded: at a restart, or on reload if the model "
             "had been refused.",
}


# Asked after what a setting does, its default, its values or how it is applied.
AFTER_SETTING = {
    "default": ["what is its default?", "and the default?", "what's the default value?",
                "what is it by default?", "what if I don't set it?", "what is it set to normally?",
                "which value does it have out of the box?", "and by default?", "and if nobody sets it?",
                "which value is it if I do nothing?", "how much is it out of the box?",
                "and without configuring it?", "what does it start with?", "and if I delete the line?",
                "what would it be otherwise?", "and untouched?", "how is it set in a fresh installation?",
                "what if I leave it alone?", "what if I say nothing?", "which value is standard?"],
    "values": ["which values may it have?", "what can I set it to?", "what is its range?",
               "what is the maximum?", "which values are allowed?", "how large may it be?",
               "what does it accept?", "and at most?", "up to what can I raise it?",
               "and the smallest?", "is there an upper limit?", "how far can I go?",
               "between which values?", "the largest value?", "and at least?", "which range?",
               "what can it be?", "what are its possible values?", "is there a maximum?"],
    "applied": ["does it need a restart?", "is a reload enough?", "when is a change applied?",
                "how do I apply a change of it?", "do I have to restart after changing it?",
                "can I change it while steamd runs?", "I changed it, what now?",
                "how does a new value take effect?", "will a reload do?", "is a restart necessary?",
                "must the service be restarted for that?", "does it count at once?",
                "when does it take effect?", "how do I put it into force?", "reload or restart?",
                "and after changing it?", "how is it applied?", "do users notice when I change it?",
                "does it work at once or after a restart?"],
    "purpose": ["and what does it do?", "what is it for again?", "what does it decide?",
                "and its purpose?", "what exactly does it limit or set?"],
}


def share(fact, asks):
    """@asks, so often that they are a sixth of all ways to ask for the fact."""
    return asks * max(1, round(len(fact.asks) / 5 / len(asks)))


def unit_of(s):
    """What a number of the setting @s counts, where its name does not say so."""
    return " seconds" if s.kind == "SECS" else " ms" if re.search(r"\bms\b", s.help) else \
        " percent" if s.help.startswith("percent") else ""


def of_setting(t, key, fact):
    s = t.setting[key]
    default = t.default_of(key)
    if not fact.answers:
        fact.answers = [f"{key}=: {sentence(s.help.split('; ')[0])}"]
    fact.asks += share(fact, [("key", key)] * 2)
    fact.title = f"the setting {key}="
    fact.weight = 2.0
    facts = [fact]
    things = [text for kind, text in fact.asks if kind == "set"]
    zero = re.search(r"\b0: ([^;]+)", s.help)
    empty = re.search(r"\bempty: ([^;]+)", s.help)
    facts.append(Fact(f"the default of {key}=", [
        f"It is 0 by default: {sentence(zero.group(1))}" if zero and default == "0" else
        f"It is {default}{unit_of(s)} by default." if default else
        f"It is empty by default: {sentence(empty.group(1))}" if empty else
        "It is not set by default." if s.kind in ("REAL", "UINT") else "It is empty by default."],
        [("default", key)] * 3 + [("set default", x) for x in things], weight=0.5))
    facts.append(Fact(f"how {key}= is applied", [APPLIED[s.reload]],
                      [("applied", key)] * 3 + [("set applied", x) for x in things], weight=0.4))
    after = [(AFTER_SETTING["default"], facts[1].answers[0]),
             (AFTER_SETTING["applied"], facts[2].answers[0])]
    if s.kind == "ENUM":
        allowed = f"It is one of {', '.join(s.high.split('|'))}."
    elif s.kind in ("UINT", "REAL", "SECS"):
        allowed = f"It takes {s.low} to {s.high}"
        allowed += f"; 0: {sentence(zero.group(1))}" if zero and default != "0" else "."
    elif s.kind == "BOOL":
        allowed = "It takes yes or no."
    else:
        allowed = ""
    if allowed:
        facts.append(Fact(f"the values of {key}=", [allowed],
                          [("range", key)] * 3 + [("set range", x) for x in things], weight=0.3))
        after.append((AFTER_SETTING["values"], allowed))
    fact.then += after
    for f in facts[1:]:  # "and what does it do?" after its default
        f.kind, f.name = "of setting", key
        f.then = [x for x in after if x[1] != f.answers[0]]
        f.then.append((AFTER_SETTING["purpose"], fact.answers[0]))
    return facts


def of_command(t, name, fact):
    c = t.command[name]
    if not fact.answers:
        fact.answers = [sentence(f"steamctl {name} {c.arguments}".strip() + f": {c.help}")]
    fact.asks += share(fact, [("does", f"steamctl {name}")] * 2 + [("does", f"the {name} command")])
    fact.title = f"steamctl {name}"
    fact.weight = 2.0
    return [fact]


def of_verb(t, name, fact):
    v = t.verb[name]
    if not fact.answers:
        fact.answers = [sentence(f"steamctl session {name} {v.arguments}".strip() +
                                 f": {v.help}")]
    fact.asks += share(fact, [("does", f"steamctl session {name}"), ("does", f"session {name}")])
    fact.title = f"steamctl session {name}"
    fact.weight = 1.5
    return [fact]


def of_option(t, name, fact):
    o = t.option[name]
    if not fact.answers:
        fact.answers = [sentence(f"steamctl's {name} {o.arguments}".strip() + f": {o.help}")]
    fact.asks += share(fact, [("does", name), ("does", f"the {name} option"),
                              ("does", f"steamctl {name}")])
    if o.extra["alias"]:
        fact.asks.append(("does", f"steamctl {o.extra['alias']}"))
    fact.title = f"the option {name}"
    return [fact]


def of_daemon(t, name, fact):
    o = t.daemon[name]
    if not fact.answers:
        fact.answers = [sentence(f"steamd {name} {o.arguments}".strip() + f": {o.help}")]
    fact.asks += share(fact, [("does", f"steamd {name}")] * 2)
    fact.title = f"steamd {name}"
    return [fact]


def of_code(t, name, fact):
    c = t.code[name]
    if not fact.answers:
        fact.answers = [sentence(f"{name}: {c.help}") + f" steamctl exits with {c.arguments}."]
    fact.asks += share(fact, [("does", f"the error {name}"), ("is", f"the error code {name}"),
                              ("error", name), ("error", name)])
    fact.title = f"the error {name}"
    return [fact]


def of_exit(t, number, fact):
    if not fact.answers:
        fact.answers = [sentence(f"Exit code {number}: " + "; ".join(t.exit[number]))]
    fact.asks += share(fact, [("exit", number)] * 3)
    fact.title = f"exit code {number}"
    fact.weight = 1.5
    return [fact]


KINDS = {"setting": of_setting, "command": of_command, "verb": of_verb, "option": of_option,
         "daemon": of_daemon, "code": of_code, "exit": of_exit}


def apart(text):
    """Bars between spaces separate; <|user|> has others."""
    return [x.strip() for x in text.split(" | ") if x.strip()]


def read_sections(path):
    fact = None
    for n, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("== "):
            if fact:
                yield fact
            fact = Fact(line[3:].strip())
            continue
        kind, colon, rest = line.partition(":")
        if not fact or not colon or kind not in ("a", "q", "do", "is", "does", "set", "then", "w"):
            raise SystemExit(f"{path.name}:{n}: '{line}': a section or a:, q:, do:, is:, does:, "
                             "set:, then: or w: is wanted")
        rest = rest.strip()
        if kind == "a":
            fact.answers.append(rest)
        elif kind == "w":
            fact.weight = float(rest)
        elif kind == "then":
            questions, arrow, answer = rest.partition("=>")
            if not arrow:
                raise SystemExit(f"{path.name}:{n}: then: wants question | … => answer")
            fact.then.append((apart(questions), answer.strip()))
        else:
            fact.asks += [(kind, x) for x in apart(rest)]
    if fact:
        yield fact


def agree(facts):
    """
    Of answers after one fact that say nearly the same, or answer the same question, all
    become one: that of a fact, if one is.
    """
    words = {}
    for f in facts:
        for a in [*f.answers, *(a for _, a in f.then)]:
            words[a] = frozenset(re.findall(r"[\w=/.-]*\w=?", a.lower()))
    often = Counter(w for found in words.values() for w in found)
    worth = {w: math.log(len(words) / n) ** 2 for w, n in often.items()}
    size = {a: sum(worth[w] for w in found) for a, found in words.items()}
    exact = {a: {w for w in found if re.search(r"[\d=/-]", w)} for a, found in words.items()}

    def alike(a, b):
        common = sum(worth[w] for w in words[a] & words[b])
        return common / math.sqrt(size[a] * size[b]) if exact[a] == exact[b] else 0

    def nearest(a, others):
        return max((other for other in others if alike(a, other) > ALIKE),
                   key=lambda other: alike(a, other), default=None)

    rare = {}
    told = dict.fromkeys(a for f in facts for a in f.answers)
    for a in told:
        for w in sorted(words[a], key=often.get)[:3]:
            rare.setdefault(w, set()).add(a)
    for f in facts:
        kept, asked = [], {}
        f.then.sort(key=lambda x: x[1] not in told)
        for i, (questions, answer) in enumerate(f.then):
            same = next((asked[q.lower()] for q in questions if q.lower() in asked), None)
            known = same or nearest(answer, kept)
            if known is None:
                near = sorted(set().union(*(rare.get(w, ()) for w in words[answer])))
                known = nearest(answer, near) or answer
            kept.append(known)
            questions = [q for q in questions if asked.setdefault(q.lower(), known) == known]
            f.then[i] = questions, known
        f.then = [x for x in f.then if x[0]]


def read_facts():
    """All facts; those of tables exist whether or not a hand-written section names them."""
    t = Tables()
    facts, by_hand, seen, sections = [], [], set(), {}
    files = [p for p in sorted(DATA.glob("*.txt")) if not p.name.startswith(
             ("outside", "elsewhere", "around", "words", "smalltalk"))]
    for path in files:
        for fact in read_sections(path):
            if fact.title in sections:
                first = sections[fact.title]
                first.answers += fact.answers
                first.asks += fact.asks
                first.then += fact.then
                first.weight = max(first.weight, fact.weight)
            else:
                sections[fact.title] = fact
    for fact in sections.values():
        kind, _, name = fact.title.partition(" ")
        weight = fact.weight
        if kind in KINDS and name in getattr(t, kind):
            seen.add((kind, name))
            made = KINDS[kind](t, name, fact)
            made[0].kind, made[0].name = kind, name
            if weight != 1.0:
                made[0].weight = weight
        elif kind in KINDS and name and " " not in name:
            raise SystemExit(f"data: there is no {kind} '{name}' in the tables")
        else:
            by_hand.append(fact)
            continue
        facts += made
    for kind, make in KINDS.items():
        for name in getattr(t, kind):
            if (kind, name) not in seen:
                facts += make(t, name, Fact(f"{kind} {name}", kind=kind, name=name))
    of_tables = {f.title: f for f in facts}
    for fact in by_hand:
        made = of_tables.get(fact.title)
        if made:
            made.asks += fact.asks
            made.then += fact.then
        else:
            facts.append(fact)
    for f in facts:
        if not f.answers or not f.asks:
            raise SystemExit(f"'{f.title}' wants an answer and questions")
        f.answers = [t.fill(a) for a in f.answers]
        f.then = [(q, t.fill(a)) for q, a in f.then]
    told = {f.title: f.answers[0] for f in facts}
    for f in facts:
        f.then = [(q, told[a[8:-1]] if a.startswith("{answer ") else a) for q, a in f.then]
    agree(facts)
    return facts
