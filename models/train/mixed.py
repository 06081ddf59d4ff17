"""Questions that nobody wrote, to learn from: pieces of written ones, labelled by the teacher.

The network knows every written question, and still takes a new one for what a word or two
of it stood in before. Here questions are put together out of others, words are left out,
exchanged and added, foreign ones too; the teacher says what each is about then, and what it
cannot tell is dropped. An example ends where the fact is determined: the texts are learnt
elsewhere.
"""
import re
from collections import Counter

import numpy as np

import facts
import teacher as teaching
import vary
from corpus import SYSTEMS

CLEAR = 0.15  # by how much a fact must stand before the next
SOFT = 0.15  # what softens the teacher's scores
STARTS = ["and ", "and ", "", "", "then ", "ok, ", "now, ", "but ", "so ", "also: "]
STOP = set("a an and are as at be been but by can could did do does for from get had has have how i "
           "if in is it its me my no not of on or our so some than that the their them then there "
           "they this to too was what when where which who whom whose why will with would you your".split())


def shortest(texts):
    """How many of its tokens tell each of @texts (lists of ids) from the others."""
    order = sorted(set(map(tuple, texts)))
    need = {}
    for i, ids in enumerate(order):
        alike = 0
        for other in order[max(0, i - 1):i] + order[i + 1:i + 2]:
            n = next((k for k, (a, b) in enumerate(zip(ids, other)) if a != b),
                     min(len(ids), len(other)))
            alike = max(alike, n)
        need[ids] = min(len(ids), alike + 1)
    return need


class Mixed:
    def __init__(self, corpus, teacher, coder):
        self.corpus, self.teacher, self.coder = corpus, teacher, coder
        self.facts = corpus.facts
        self.weights = [f.weight ** 0.5 for f in self.facts]
        self.column = {int(c): i for i, c in enumerate(teacher.classes)}
        self.following = [i for i, f in enumerate(self.facts) if f.then]
        thoughts = [f"About {f.title}." for f in self.facts] + ["Not about steamd."]
        texts = [a for f in self.facts for a in f.answers] + [facts.UNKNOWN]
        texts += [a for f in self.facts for _, a in f.then]
        self.thought = shortest([coder.encode(t) for t in thoughts])
        self.text = shortest([coder.encode("\n" + t) for t in texts])
        asked = [(q, i) for i, f in enumerate(self.facts) for _, q in f.asks]
        texts = [*corpus.outside.whole, *(x for words in corpus.outside.lists.values() for x in words)]
        self.foreign = sorted({w for text in texts for w in text.split()})
        self.with_noun = self.nouns(asked)
        self.named = sorted(self.with_noun)
        self.noun_weights = [len({i for _, i in self.with_noun[n]}) ** 0.5 for n in self.named]

    @staticmethod
    def nouns(asked):
        """What is spoken of in questions about several facts: (question, fact) by word."""
        often = Counter(noun for q, _ in asked
                        for noun in set(re.findall(r"\b(?:the|a|an|my|this) ([a-z]{4,})\b", q)))
        found = {}
        for q, i in asked:
            for word in set(re.findall(r"[a-z]{4,}", q)):
                if often[word] >= 8:
                    found.setdefault(word, []).append((q, i))
        return {n: rows for n, rows in found.items() if len({i for _, i in rows}) >= 3}

    def asked(self, rng, i):
        if i < 0:
            return self.corpus.outside.question(rng)
        return vary.ask(rng, *rng.choice(self.facts[i].asks))

    def other(self, rng, i):
        """A question to take words from, mostly one that is near."""
        kind = rng.random()
        if i < 0 or kind > 0.88:
            return self.asked(rng, teaching.OUTSIDE if rng.random() < 0.5 else
                              rng.randrange(len(self.facts)))
        return self.asked(rng, i if kind < 0.5 else rng.choice(self.teacher.near[i]))

    def mix(self, rng, i):
        words = self.asked(rng, i).split()
        for _ in range(rng.choice([1, 1, 2, 2, 3])):
            kind = rng.random()
            more = self.other(rng, i).split()
            if kind < 0.3:
                words = words[:rng.randint(1, len(words))] + more[rng.randint(0, len(more) - 1):]
            elif kind < 0.45:
                share = rng.uniform(0.1, 0.4)
                words = [w for w in words if rng.random() > share] or words
            elif kind < 0.6:
                words[rng.randrange(len(words))] = rng.choice(more)
            elif kind < 0.72:
                words.insert(rng.randint(0, len(words)), rng.choice(more))
            elif kind < 0.84:  # words that say nothing
                at = rng.randrange(len(words))
                words[at:at + rng.randint(0, 1)] = [rng.choice(self.foreign)]
            elif kind < 0.93:  # as people type into a search box
                said = [w for w in words if w.strip("?.,!").lower() not in STOP]
                if len(said) >= 2:
                    words = [w.strip("?.,!") for w in said][:rng.randint(2, 5)]
                    if rng.random() < 0.4:
                        rng.shuffle(words)
            else:  # asked in another's way
                n = rng.randint(1, min(4, len(more)))
                words = more[:n] + words[min(rng.randint(1, 4), len(words) - 1):]
        words = words[:26]
        return vary.vary(rng, " ".join(words))

    def judged(self, questions):
        """(question, what it is about, soft shares of classes) of those that are clear."""
        scores = self.teacher.scores(questions)
        found = []
        for question, row in zip(questions, scores):
            top = np.argpartition(row, -5)[-5:]
            top = top[row[top].argsort()[::-1]]
            about = int(self.teacher.classes[top[0]])
            if row[top[0]] - row[top[1]] < CLEAR or about == teaching.SMALLTALK:
                continue
            shares = np.exp((row[top] - row[top[0]]) / SOFT)
            shares /= shares.sum()
            found.append((question, about, list(zip(top.tolist(), shares.tolist()))))
        return found

    def any(self, rng):
        if rng.random() < 0.2:
            return teaching.OUTSIDE
        return rng.choices(range(len(self.facts)), self.weights)[0]

    def questions(self, rng, n):
        made = [self.mix(rng, self.any(rng)) for _ in range(n)]
        return self.judged([q for q in made if self.corpus.allowed(q)])

    def turn(self, rng, question, about):
        if about == teaching.OUTSIDE:
            return question, "Not about steamd.", facts.UNKNOWN
        fact = self.facts[about]
        return question, f"About {fact.title}.", rng.choice(fact.answers)

    def loosely(self, rng, questions):
        """One of @questions, or a mixture of two, with words left out or added."""
        words = rng.choice(questions).split()
        more = rng.choice(questions).split()
        for _ in range(rng.choice([0, 1, 1, 2])):
            kind = rng.random()
            if kind < 0.3:
                words = words[:rng.randint(1, len(words))] + more[rng.randint(0, len(more) - 1):]
            elif kind < 0.5:
                words = [w for w in words if w.lower() not in STOP or rng.random() > 0.5] or words
            elif kind < 0.7:
                words = [w for w in words if rng.random() > 0.2] or words
            elif kind < 0.85:
                words.insert(rng.randint(0, len(words)), rng.choice(self.foreign))
            elif len(words) > 3:
                words[rng.randrange(len(words))] = rng.choice(self.foreign)
        question = " ".join(words)
        if rng.random() < 0.3:
            question = rng.choice(STARTS) + question
        return vary.vary(rng, question)

    def followed(self, rng):
        """A question that only means something after another, out of those written."""
        i = rng.choice(self.following)
        fact = self.facts[i]
        questions, answer = rng.choice(fact.then)
        first = self.asked(rng, i) if rng.random() < 0.5 else self.loosely(
            rng, [q for _, q in rng.sample(fact.asks, min(4, len(fact.asks)))
                  if " " in q] or [self.asked(rng, i)])
        first = vary.vary(rng, first) if rng.random() < 0.5 else first
        return [self.turn(rng, first, i),
                (self.loosely(rng, questions), self.corpus.further(fact, answer), answer)], None

    def instead(self, rng):
        """A question that says "it" of what the question before named."""
        noun = rng.choices(self.named, self.noun_weights)[0]
        rows = self.with_noun[noun]
        q, about = rng.choice(rows)
        near = [r for r in rng.sample(rows, min(30, len(rows))) if r[1] != about]
        if not near:
            return None
        first, before = rng.choice(near)
        word = "them" if noun.endswith("s") and not noun.endswith("ss") else \
            rng.choice(["it", "it", "that", "this", "one"])
        said, n = re.subn(r"\b(?:(?:the|a|an|my|this|that|your|one) )?%s\b" % noun, word, q, count=1)
        if not n or len(said.split()) < 3:
            return None
        if rng.random() < 0.3:
            said = rng.choice(STARTS) + said
        return [self.turn(rng, vary.vary(rng, first), before),
                self.turn(rng, vary.vary(rng, said), about)], [(self.column[about], 1.0)]

    def cut(self, turns, system, think):
        """Ids and kinds of a conversation up to where its last answer is determined."""
        coder = self.coder
        ids, kinds = coder.conversation(turns, system, think)
        kinds = [0 if k == 1 else k for k in kinds]
        begin = len(ids) - 1 - ids[::-1].index(coder.marker["<think>"])
        end = len(ids) - 1 - ids[::-1].index(coder.marker["</think>"])
        thought, text = coder.encode(turns[-1][1]), coder.encode("\n" + turns[-1][2])
        if think and tuple(thought) in self.thought:
            n = begin + 1 + self.thought[tuple(thought)] + 2
        else:
            n = end + 1 + self.text[tuple(text)] + 2
        return ids[:n], kinds[:n]

    def example(self, rng, pool, follow):
        """Turns, and the soft shares of what the last is about, or None; @pool has judged questions."""
        kind = rng.random()
        if kind < follow * 0.5:
            return self.followed(rng)
        if kind < follow * 0.85:
            return self.instead(rng)
        if kind < follow:  # another matter
            question, about, shares = pool.pop()
            i = rng.choice(self.teacher.near[about]) if about >= 0 and rng.random() < 0.5 else \
                rng.randrange(len(self.facts))
            return [self.turn(rng, vary.vary(rng, self.asked(rng, i)), i),
                    self.turn(rng, question, about)], shares
        if kind < follow + 0.12:  # as it was written
            i = self.any(rng)
            question = vary.vary(rng, self.asked(rng, i), vary.AFTER if i >= 0 else vary.AFTER_ELSEWHERE)
            return [self.turn(rng, question, i)], [(self.column[i], 1.0)]
        question, about, shares = pool.pop()
        return [self.turn(rng, question, about)], shares

    def examples(self, rng, n, follow):
        """
        Up to @n conversations: ids, kinds, where the network knows what is asked last, and the
        shares of what that is; @follow of them ask after another question.
        """
        out = []
        pool = self.questions(rng, int(2 * n * (1.06 - follow)) + 4)
        while len(out) < n and pool:
            made = self.example(rng, pool, follow)
            if not made or not all(self.corpus.allowed(q) for q, _, _ in made[0]):
                continue
            turns, shares = made
            system = rng.choice(SYSTEMS) if rng.random() < 0.05 else None
            ids, kinds = self.cut(turns, system, rng.random() < 0.7)
            at = len(ids) - 1 - ids[::-1].index(self.coder.marker["<|assistant|>"])
            out.append((ids, kinds, at, shares))
        return out
