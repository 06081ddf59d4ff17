"""Conversations to train on: endless, and the same for the same seed.

What shares six words in a row with a question of questions/ or dev/ is left out: those
are never trained on.
"""
import hashlib
import json
import random
import re
from pathlib import Path

import facts
import vary

HERE = Path(__file__).resolve().parent
SHARED_WORDS = 6

SYSTEMS = ["You are a helpful assistant.", "Be brief.", "You are the help desk of steamd.",
           "Answer in one sentence.", "You answer questions about steamd.", "Be friendly.",
           "You are an assistant on a Linux machine.", "Answer shortly and exactly.",
           "If you do not know, say so.", "You help users of this computer."]


def words_of(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def runs_of(text):
    words = words_of(text)
    return {tuple(words[i:i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def evaluation_questions():
    """Every turn of every question, with the file and id it comes from."""
    for path in sorted([*(HERE / "questions").glob("*.jsonl"), *(HERE / "dev").glob("*.jsonl")]):
        for line in path.read_text().splitlines():
            if not line.strip():
                continue
            row = json.loads(line)
            for question in row.get("questions") or [row["question"]]:
                yield path.name, row["id"], question


def lists(path):
    """name: word | word… of all lines; those of one name go together."""
    found = {}
    for line in path.read_text().splitlines():
        name, colon, rest = line.partition(":")
        if colon and not line.startswith("#"):
            found.setdefault(name.strip(), []).extend(x.strip() for x in rest.split("|") if x.strip())
    return found


def alternatives(path):
    """What stands between the bars of all lines but comments."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            yield from (x.strip() for x in line.split("|") if x.strip())


class Outside:
    """
    Questions about the rest of the world: whole ones, templates over lists of words, and
    what is asked in the forms of questions about steamd.
    """

    def __init__(self):
        self.lists = lists(facts.DATA / "words.txt")
        elsewhere = lists(facts.DATA / "elsewhere.txt")
        self.asked = [(kind, text) for kind, texts in elsewhere.items() for text in texts]
        self.asked += [(kind, text) for kind in ("default", "range", "applied")
                       for k, text in self.asked if k == "key"]
        self.named = {**self.lists, **elsewhere}
        self.templates, self.whole = [], []
        for path in sorted(facts.DATA.glob("outside*.txt")):
            for text in alternatives(path):
                (self.templates if "{" in text else self.whole).append(text)
        self.around = list(alternatives(facts.DATA / "around.txt"))

    def invented(self, rng):
        """A word or name that nobody has heard of: what is unknown is unknown."""
        parts = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "vu", "za", "bren", "dor", "fal",
                 "gri", "hul", "jas", "kam", "lin", "mor", "nex", "pil", "quo", "ros", "sten", "tar",
                 "und", "vel", "wex", "yor", "zim", "chi", "sha", "thra", "plo", "cru", "ast", "eon"]
        word = "".join(rng.choice(parts) for _ in range(rng.randint(2, 4)))
        return word.capitalize() if rng.random() < 0.6 else word

    def fill(self, rng, text):
        def word(m):
            name = m.group(1)
            if name == "n":
                return str(rng.choice([rng.randint(1, 20), rng.randint(1, 999), rng.randint(1, 9999)]))
            if name == "any":
                name = rng.choice(sorted(self.lists))
            if name in self.lists and rng.random() < 0.12:
                return self.invented(rng)
            return rng.choice(self.named[name])
        return re.sub(r"\{(\w+)\}", word, text)

    def wrapped(self, rng, question):
        """@question with foreign words around it, which do not change whose question it is."""
        around = self.fill(rng, rng.choice(self.around))
        if not around.endswith("~") and question[-1] not in "?.!":
            question += rng.choice(["?", "."])
        return around.replace("~", question)

    def question(self, rng):
        form = rng.random()
        if form < 0.4:
            return rng.choice(self.whole)
        if form < 0.75:
            return self.fill(rng, rng.choice(self.templates))
        kind, text = rng.choice(self.asked)
        return rng.choice(vary.ELSEWHERE[kind]).format(text)


class Smalltalk:
    def __init__(self):
        self.pairs = []
        for line in (facts.DATA / "smalltalk.txt").read_text().splitlines():
            if "=>" in line and not line.startswith("#"):
                questions, answer = line.split("=>")
                self.pairs += [(q.strip(), answer.strip()) for q in questions.split("|")]

    def turn(self, rng, words):
        if rng.random() < 0.7:
            question, answer = rng.choice(self.pairs)
            return question, "Small talk.", answer
        return chore(rng, words)


def chore(rng, words):
    """Simple things to do with text."""
    some = [rng.choice(words) for _ in range(rng.randint(1, 3))]
    text = " ".join(some)
    kind = rng.randrange(4)
    if kind == 0:
        ask = rng.choice(["repeat after me: {}", "say: {}", "please repeat: {}", "write exactly this: {}",
                          "echo {}", "say the words {}"])
        return ask.format(text), "To repeat.", text
    if kind == 1:
        ask = rng.choice(["write {} in capitals", "uppercase: {}", "put {} in upper case",
                          "{} in capital letters, please", "capitalise {}"])
        return ask.format(some[0]), "To write in capitals.", some[0].upper()
    if kind == 2:
        n = rng.randint(2, 10)
        ask = rng.choice(["count to {}", "count from 1 to {}", "please count up to {}",
                          "list the numbers from 1 to {}"])
        return ask.format(n), "To count.", ", ".join(str(i) for i in range(1, n + 1))
    ask = rng.choice(["spell {}", "spell the word {}", "how do you spell {}?", "{}, letter by letter"])
    return ask.format(some[0]), "To spell.", "-".join(some[0])


class Corpus:
    def __init__(self, forbidden=None):
        self.facts = facts.read_facts()
        self.weights = [f.weight for f in self.facts]
        setting = ("setting", "of setting")
        self.of_settings = [f for f in self.facts if f.kind in setting]
        self.hand_following = [f for f in self.facts if f.then and f.kind not in setting]
        self.of_kind = {}
        for f in self.facts:
            self.of_kind.setdefault(f.kind, []).append(f)
        self.told = {}
        for f in self.facts:
            for a in f.answers:
                self.told.setdefault(a, []).append(f)
        self.outside = Outside()
        self.smalltalk = Smalltalk()
        self.words = sorted({w for f in self.facts for a in f.answers
                             for w in re.findall(r"[a-z]{3,10}", a)})
        if forbidden is None:
            forbidden = set()
            for _, _, question in evaluation_questions():
                forbidden |= runs_of(question)
        self.forbidden = forbidden

    def left_out(self):
        """What says which questions were kept away from the training."""
        return hashlib.sha256(repr(sorted(self.forbidden)).encode()).hexdigest()[:16]

    def allowed(self, question):
        return not self.forbidden or not (runs_of(question) & self.forbidden)

    def of_fact(self, rng, fact):
        kind, text = rng.choice(fact.asks)
        question = vary.vary(rng, vary.ask(rng, kind, text))
        if rng.random() < 0.1:
            question = self.outside.wrapped(rng, question)
        return question, f"About {fact.title}.", rng.choice(fact.answers)

    def of_outside(self, rng):
        question = vary.vary(rng, self.outside.question(rng), vary.AFTER_ELSEWHERE)
        if rng.random() < 0.05:
            question = self.outside.wrapped(rng, question)
        return question, "Not about steamd.", facts.UNKNOWN

    def turn(self, rng):
        kind = rng.random()
        if kind < 0.28:
            return self.of_outside(rng)
        if kind < 0.32:
            return self.smalltalk.turn(rng, self.words)
        return self.of_fact(rng, rng.choices(self.facts, self.weights)[0])

    def further(self, fact, answer):
        """What is thought of a question after one about @fact that has this answer."""
        others = self.told.get(answer, [])
        same = [f for f in others if f.name and f.name == fact.name]
        other = same or others
        return f"About {other[0].title}." if len(other) == 1 else f"More about {fact.title}."

    def followed(self, rng):
        """A fact and one or two questions that only mean something after it."""
        form = rng.random()
        if form < 0.25:
            return self.and_another(rng)
        fact = rng.choice(self.of_settings if form < 0.45 else self.hand_following)
        turns = [self.of_fact(rng, fact)]
        for questions, answer in rng.sample(fact.then, min(len(fact.then), rng.randint(1, 2))):
            turns.append((vary.vary(rng, rng.choice(questions)), self.further(fact, answer), answer))
        return turns

    def and_another(self, rng):
        """One thing of a table, then "and …?" of the same table."""
        kind = rng.choice(["setting", "command", "verb", "exit", "exit", "code", "option"])
        one, other = rng.sample(self.of_kind[kind], 2)
        shown = {"setting": "{}", "command": "steamctl {}", "verb": "session {}", "exit": "{}",
                 "code": "{}", "option": "{}"}[kind].format(other.name)
        question = rng.choice(["and {}?", "what about {}?", "and what is {}?", "now {}?", "{}?",
                               "and what does {} mean?", "ok, and {}?", "how about {}?"])
        return [self.of_fact(rng, one),
                (vary.vary(rng, question.format(shown)), f"About {other.title}.",
                 rng.choice(other.answers))]

    def alone(self, rng):
        """One question about any fact, as likely about a rare one, to learn all word for word."""
        while True:
            turn = self.of_fact(rng, rng.choice(self.facts))
            if self.allowed(turn[0]):
                return [turn], None, rng.random() < 0.5

    def sample(self, rng, longer=1.0):
        """(turns, system, think) of one conversation; @longer: how many may have several turns."""
        while True:
            kind = rng.random()
            if rng.random() >= longer:
                turns = [self.turn(rng)]
            elif kind < 0.25:
                turns = self.followed(rng)
                if rng.random() < 0.15:
                    turns.insert(0, self.turn(rng))
                if rng.random() < 0.1:
                    turns.append(self.of_outside(rng))
            else:
                turns = [self.turn(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3]))]
            if all(self.allowed(question) for question, _, _ in turns):
                break
        system = rng.choice(SYSTEMS) if rng.random() < 0.08 else None
        return turns, system, rng.random() < 0.6

    def batch(self, seed, number, coder, n_tokens, longer=1.0):
        """
        Conversations of about @n_tokens tokens in all, lengths alike: lists of ids and
        kinds. The same for the same seed and number.
        """
        rng = random.Random(f"{seed}/{number}")
        pool, total = [], 0
        while total < n_tokens:
            turns, system, think = self.sample(rng, longer)
            ids, kinds = coder.conversation(turns, system, think)
            pool.append((ids, kinds))
            total += len(ids)
        return pool


if __name__ == "__main__":
    corpus = Corpus()
    rng = random.Random(0)
    print(f"{len(corpus.facts)} facts, {sum(len(f.asks) for f in corpus.facts)} ways to ask, "
          f"{len(corpus.outside.whole)} outside questions, {len(corpus.outside.templates)} templates, "
          f"{sum(len(f.then) for f in corpus.facts)} follow-ups")
    for _ in range(40):
        turns, system, think = corpus.sample(rng)
        print(system, think, *turns, sep="\n    ")
