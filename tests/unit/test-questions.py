#!/usr/bin/env python3
"""The questions that a trained model is scored by: their form, their keys, and that the manual says so still."""
import os
import pathlib
import re
import sys

top = pathlib.Path(os.environ.get("srcdir", pathlib.Path(__file__).parent / "../.."))
sys.path.insert(0, str(top / "models/train"))
sys.dont_write_bytecode = True

import keywords  # noqa: E402

FORMS = {
    "inside": (200, {"id": str, "question": str, "keywords": list, "reference": str, "source": list}),
    "outside": (100, {"id": str, "question": str, "keywords": list, "reference": str}),
    "followups": (40, {"id": str, "questions": list, "keywords": list, "references": list, "source": list}),
}
SETS = {name: keywords.read(top / f"models/train/questions/{name}.jsonl") for name in FORMS}


def asked(entry):
    return entry.get("questions") or [entry["question"]]


def reference(entry):
    return entry["reference"] if "reference" in entry else entry["references"][-1]


def one_line(text):
    """Without the line breaks of prose and of C comments."""
    return re.sub(r"\s+", " ", re.sub(r"\n[ \t]*\*?[ \t]*", " ", text))


def each_set_has_its_size_and_form():
    for name, (n, fields) in FORMS.items():
        assert len(SETS[name]) == n, f"{name} has {len(SETS[name])} entries; {n} are wanted"
        for e in SETS[name]:
            assert {k: type(v) for k, v in e.items()} == fields, e
            assert all(q == q.strip() and q for q in asked(e)), e
            assert e["keywords"] and all(e["keywords"]), e
            assert all(isinstance(a, str) and a == a.strip() and a for g in e["keywords"] for a in g), e
    assert all(len(e["questions"]) == len(e["references"]) == 2 for e in SETS["followups"])


def nothing_is_there_twice():
    ids = [e["id"] for entries in SETS.values() for e in entries]
    assert len(set(ids)) == len(ids), "an id is given twice"
    seen = set()
    for e in (e for entries in SETS.values() for e in entries):
        for q in asked(e):
            words = " ".join(re.findall(r"\w+", q.lower()))
            assert words not in seen, f"{e['id']}: '{q}' is asked twice"
            seen.add(words)


def a_reference_answer_has_its_own_key_and_no_other():
    for name, entries in SETS.items():
        for e in entries:
            assert keywords.has_key(reference(e), e["keywords"]), f"{e['id']}: its reference has not its key"
            others = [o["id"] for o in entries
                      if o["keywords"] != e["keywords"] and keywords.has_key(reference(e), o["keywords"])]
            assert not others, f"{e['id']}: its reference has the key of {others}"
            assert keywords.right(reference(e), e, entries), e["id"]


def keys_of_questions_about_steamd_differ():
    for name in ("inside", "followups"):
        keys = [str(e["keywords"]) for e in SETS[name]]
        assert len(set(keys)) == len(keys), f"{name} has a key twice"


def what_a_followup_asks_is_not_in_its_first_answer():
    for e in SETS["followups"]:
        assert not keywords.has_key(e["references"][0], e["keywords"]), e["id"]


def a_question_is_no_answer():
    for entries in SETS.values():
        for e in entries:
            assert not keywords.has_key(asked(e)[-1], e["keywords"]), f"{e['id']}: the question alone has its key"


def not_to_know_is_right_outside_alone():
    admission = SETS["outside"][0]
    assert all(e["keywords"] == admission["keywords"] for e in SETS["outside"])
    for name in ("inside", "followups"):
        for e in SETS[name]:
            assert not keywords.has_key(reference(admission), e["keywords"]), e["id"]
            assert not keywords.has_key(reference(e), admission["keywords"]), e["id"]


def the_manual_says_what_the_keys_want():
    texts = {}
    for name in ("inside", "followups"):
        for e in SETS[name]:
            path, excerpt = e["source"]
            if path not in texts:
                texts[path] = one_line((top / path).read_text(encoding="utf-8"))
            assert one_line(excerpt) in texts[path], f"{e['id']}: {path} has no '{excerpt}' any more"


def an_alternative_stands_as_a_whole_token():
    cases = [
        ("session", "the session's turns", True), ("session", "sessions", False), ("session", "--session", False),
        ("--top", "--top-p 0.9", False), ("--top", "Give `--top` 5.", True), ("8", "8,192 or 0.8", False),
        ("8", "8.", True), ("state.db", "state.db.damaged-1", False), ("STATE.DB", "in state.db.", True),
        ("steamd-exec-cpu", "steamd-exec-cpu@.service", False), ("/kv", "StateDirectory/kv", False),
        ("not\nknow", "Not  know", True), ("don't", "don\u2019t", True), ("Model=", "Model=/a", True),
    ]
    for alternative, text, wanted in cases:
        assert keywords.has_key(text, [[alternative]]) == wanted, (alternative, text)
    assert not keywords.has_key("a", [["a"], ["b", "c"]]) and keywords.has_key("c a", [["a"], ["b", "c"]])
    entries = [{"keywords": [["a"]]}, {"keywords": [["b"]]}]
    assert keywords.right("a", entries[0], entries) and not keywords.right("a b", entries[0], entries)


def main():
    failed = 0
    for name, test in [(k, v) for k, v in globals().items() if callable(v) and v.__doc__ is None
                       and getattr(v, "__module__", "") == "__main__"
                       and k not in ("asked", "reference", "main")]:
        try:
            test()
            print(f"ok {name}")
        except AssertionError as e:
            print(f"not ok {name}: {e}")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
