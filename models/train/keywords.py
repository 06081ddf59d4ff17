"""Scores an answer by keywords: what models/train/questions and its README mean by "right".

A key is a list of groups, a group a list of alternatives; an answer has the key when it has
at least one alternative of every group. Case and the width of white space do not count.

An alternative stands as a whole token: "session" is in "the session's turns", and neither in
"sessions", "--session" nor "steamd-session"; "state.db" is not in "state.db.damaged-1", "8"
not in "8,192" or "0.8", "steamd-exec-cpu" not in "steamd-exec-cpu@.service".
"""
import functools
import json
import re


def plain(text):
    """Without what prose is dressed in: case, white space, back-quotes, stars in pairs, curly apostrophes."""
    text = text.replace("\u2019", "'").replace("`", "").replace("**", "")
    return re.sub(r"\s+", " ", text).strip().lower()


@functools.lru_cache(maxsize=None)
def pattern(alternative):
    word = plain(alternative)
    if re.match(r"\w", word):
        before = r"(?<![\w-])(?<!\w\.)(?<!\d,)"
    elif word.startswith("-"):
        before = r"(?<![\w-])"
    elif word.startswith("/"):
        before = r"(?<!\w)"
    else:
        before = ""
    after = r"(?![\w@])(?![-.]\w)(?!,\d)" if re.search(r"\w$", word) else ""
    return re.compile(before + re.escape(word) + after)


def has_key(answer, key):
    text = plain(answer)
    return all(any(pattern(alternative).search(text) for alternative in group) for group in key)


def right(answer, entry, entries):
    """Whether @answer has the key of @entry, and that of no other entry in @entries."""
    return has_key(answer, entry["keywords"]) and not any(
        has_key(answer, other["keywords"])
        for other in entries
        if other is not entry and other["keywords"] != entry["keywords"]
    )


def read(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]
