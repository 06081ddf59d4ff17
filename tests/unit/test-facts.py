#!/usr/bin/env python3
"""What steamd-tiny is taught: that it can be read, is whole, and is of this tree."""
import os
import pathlib
import re
import sys

top = pathlib.Path(os.environ.get("srcdir", pathlib.Path(__file__).parent / "../.."))
sys.path.insert(0, str(top / "models/train"))
sys.dont_write_bytecode = True

import facts  # noqa: E402

FACTS = facts.read_facts()
TITLES = [f.title for f in FACTS]


def every_setting_command_option_and_code_is_known():
    t = facts.Tables()
    named = {(f.kind, f.name) for f in FACTS}
    for kind in facts.KINDS:
        missing = [name for name in getattr(t, kind) if (kind, name) not in named]
        assert not missing, f"{kind}: {missing}"


def titles_and_answers_tell_facts_apart():
    assert len(set(TITLES)) == len(TITLES), [t for t in TITLES if TITLES.count(t) > 1]
    by_hand = [a for f in FACTS if f.kind != "of setting" for a in set(f.answers)]
    assert len(set(by_hand)) == len(by_hand), [a for a in set(by_hand) if by_hand.count(a) > 1]


def every_answer_is_filled_from_the_tables():
    for f in FACTS:
        assert f.answers and f.asks, f.title
        for answer in [*f.answers, *(a for _, a in f.then)]:
            assert answer and not re.search(r"\{(default|exit|help|answer) ", answer), (f.title, answer)


def a_question_has_one_answer():
    """The same words after the same fact, too."""
    for f in FACTS:
        said = {}
        for questions, answer in f.then:
            for q in questions:
                assert said.setdefault(q.lower(), answer) == answer, (f.title, q, said[q.lower()], answer)


def answers_that_say_nearly_the_same_are_one():
    told, said = "The broker runs as the user steamd.", "It runs as the user steamd."
    apart = "The broker runs as the user steamd-2."
    made = [facts.Fact("user", [told]), facts.Fact("broker", ["It has the socket."], then=[
        (["as whom?"], said), (["and another?"], apart), (["who?", "as whom?"], "Not as root.")])]
    facts.agree(made + [facts.Fact(str(i), [f"This is the fact number{i}."]) for i in range(20)])
    assert [a for _, a in made[1].then] == [told, apart, told], made[1].then


def main():
    failed = 0
    for name, test in [(k, v) for k, v in globals().items() if callable(v)
                       and getattr(v, "__module__", "") == "__main__" and k != "main"]:
        try:
            test()
            print(f"ok {name}")
        except AssertionError as e:
            print(f"not ok {name}: {e}")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
