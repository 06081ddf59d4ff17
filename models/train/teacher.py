"""A linear classifier over n-grams: it says which fact a question is about.

Trained on the very questions that the network is trained on, it generalises better than the
network does, for each word speaks for facts by itself. It labels the questions that
mixed.py makes up; the network learns from those what weighs how much.
"""
import random

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

import vary

OUTSIDE, SMALLTALK = -1, -2
READY = 0.25  # what a question is held to be about steamd sooner than not: far more outside ones were seen
WORDS = r"[A-Za-z0-9_\-]+|[?]"


def lessons(corpus, seed, outside=6000, smalltalk=400):
    """Questions and what they are about: indices of facts, OUTSIDE and SMALLTALK."""
    rng = random.Random(f"teacher/{seed}")
    asked = [(vary.ask(rng, kind, text), i) for i, fact in enumerate(corpus.facts)
             for kind, text in fact.asks for _ in range(1 if kind == "q" else 3)]
    asked += [(q, OUTSIDE) for q in corpus.outside.whole]
    asked += [(corpus.outside.question(rng), OUTSIDE) for _ in range(outside)]
    asked += [(corpus.smalltalk.turn(rng, corpus.words)[0], SMALLTALK) for _ in range(smalltalk)]
    asked += [(q, SMALLTALK) for q, _ in corpus.smalltalk.pairs]
    asked = [(q, y) for q, y in asked if corpus.allowed(q)]
    return [q for q, _ in asked], np.array([y for _, y in asked])


class Teacher:
    def __init__(self, corpus, seed=1, strictness=0.3):
        questions, about = lessons(corpus, seed)
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS)
        self.letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True,
                                       min_df=2)
        features = hstack([self.words.fit_transform(questions),
                           self.letters.fit_transform(questions)]).tocsr().astype(np.float32)
        machine = LinearSVC(C=strictness, tol=0.01, random_state=seed).fit(features, about)
        self.classes = machine.classes_
        self.weights = np.ascontiguousarray(machine.coef_.T.astype(np.float32))
        self.bias = machine.intercept_.astype(np.float32)
        self.bias[self.classes < 0] -= READY
        self.near = self.neighbours(features, about, 8)

    @staticmethod
    def neighbours(features, about, n):
        """By index of a fact those @n whose questions have most in common with its."""
        mine = np.flatnonzero(about >= 0)
        sums = csr_matrix((np.ones(len(mine), np.float32), (about[mine], mine)),
                          (about.max() + 1, len(about))) @ features
        norms = np.sqrt(sums.multiply(sums).sum(1)).A1
        alike = (sums @ sums.T).toarray() / np.outer(norms, norms)
        np.fill_diagonal(alike, 0)
        return np.argpartition(alike, -n, axis=1)[:, -n:].tolist()

    def scores(self, questions):
        features = hstack([self.words.transform(questions),
                           self.letters.transform(questions)]).tocsr().astype(np.float32)
        return features @ self.weights + self.bias

    def judge(self, questions):
        """What each question is about, and by how much before the next."""
        scores = self.scores(questions)
        order = np.argpartition(scores, -2, axis=1)[:, -2:]
        rows = np.arange(len(scores))[:, None]
        top = np.take_along_axis(order, scores[rows, order].argsort(1), 1)
        return self.classes[top[:, 1]], scores[rows[:, 0], top[:, 1]] - scores[rows[:, 0], top[:, 0]]
