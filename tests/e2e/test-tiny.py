#!/usr/bin/env python3
"""The model that comes with steamd, through the real daemon: words that make sense."""
from steamd_e2e import *

TINY = SRC / "models" / "steamd-tiny"
sys.path.insert(0, str(TINY.parent / "train"))

import keywords

ASKED = [
    ("What is steamd?", [["large language model"], ["resident"]]),
    ("How do I start a chat?", [["steamctl chat"]]),
    ("What does exit code 75 mean?", [["75"], ["busy"], ["later"]]),
    ("How do I give the memory back?", [["steamctl sleep"]]),
    ("What is the capital of France?", [["don't know"], ["only know steamd"]]),
]


def five_questions_are_answered_rightly():
    with Daemon(TINY) as d:
        for question, key in ASKED:
            answer = d.ctl("ask", "--temperature", "0", question).decode()
            assert keywords.has_key(answer, key), (question, answer)


def think_and_no_think_turns_of_one_conversation_make_sense():
    with Daemon(TINY) as d:
        said = d.ctl("ask", "-t", "0", "--session", "s", "What does MaxBatch do?").decode()
        assert "MaxBatch" in said, said
        said = d.ctl("ask", "-t", "0", "--no-think", "--session", "s", "How do I start a chat?").decode()
        assert "steamctl chat" in said, said


if __name__ == "__main__":
    run([v for v in list(globals().values())
         if callable(v) and getattr(v, "__module__", "") == "__main__"])
