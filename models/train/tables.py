"""Facts out of the project's own tables: settings, commands, options, verbs, exit codes, errors.

Everything is read from the sources beside this tree, so that a model trained after a
change knows the change. Nothing here knows how questions are asked: corpus.py does.
"""
import re
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


@dataclass
class Setting:
    key: str
    kind: str
    default: str
    low: str
    high: str
    reload: str
    help: str


@dataclass
class Row:
    """A command, verb, option or code: its name, what follows it, what it is."""
    name: str
    arguments: str
    help: str
    extra: dict = field(default_factory=dict)


def strings_of(text):
    """The C string literals in @text, those that stand side by side made one."""
    out, at = [], 0
    pattern = re.compile(r'"((?:[^"\\]|\\.)*)"')
    for m in pattern.finditer(text):
        value = m.group(1).replace('\\"', '"').replace("\\\\", "\\").replace("\\n", "\n")
        if out and re.fullmatch(r"[\s\\]*", text[at:m.start()]):
            out[-1] += value
        else:
            out.append(value)
        at = m.end()
    return out


def calls_of(text, name):
    """The argument lists of all calls of the macro @name."""
    for m in re.finditer(r"\b%s\(" % name, text):
        depth, quoted, at = 1, False, m.end()
        while depth:
            c = text[at]
            if c == '"' and text[at - 1] != "\\":
                quoted = not quoted
            depth += (not quoted) * ((c == "(") - (c == ")"))
            at += 1
        yield text[m.end():at - 1]


def split_arguments(text):
    parts, depth, quoted, last = [], 0, False, 0
    for i, c in enumerate(text):
        if c == '"' and (i == 0 or text[i - 1] != "\\"):
            quoted = not quoted
        if quoted:
            continue
        depth += (c in "({") - (c in ")}")
        if c == "," and depth == 0:
            parts.append(text[last:i])
            last = i + 1
    parts.append(text[last:])
    return [p.strip(" \t\n\\") for p in parts]


def number_of(text):
    """4u << 20 and the like, as the number that it is; a name stays one."""
    plain = re.sub(r"(?<=[0-9a-fA-F])(u|U|l|L)+\b", "", text)
    if re.fullmatch(r"[0-9xa-fA-F<+* ]+", plain):
        if re.fullmatch(r"0[0-7]+", plain):
            return plain
        return str(eval(plain, {"__builtins__": {}}))  # digits and shifts alone
    return text


def settings():
    text = (TOP / "daemon/base/settings.def").read_text()
    text = text[text.index("#define SETTINGS"):]
    out = {}
    for call in calls_of(text, "SETTING"):
        a = split_arguments(call)
        if len(a) != 8:
            continue
        key = strings_of(a[2])[0]
        high = strings_of(a[5])[0] if a[5].startswith('"') else number_of(a[5])
        default = strings_of(a[3])[0] if a[3].startswith('"') else number_of(a[3])
        out[key] = Setting(key, a[0], default, number_of(a[4]), high, a[6],
                           strings_of(a[7])[0])
    return out


def braces_of(text, begin):
    """The rows {…} of the table that begins after the line @begin."""
    at = text.index(begin)
    at = text.index("{", at) + 1
    depth, quoted, start = 0, False, None
    while True:
        c = text[at]
        if c == '"' and text[at - 1] != "\\":
            quoted = not quoted
        if not quoted and c == "{":
            if depth == 0:
                start = at + 1
            depth += 1
        elif not quoted and c == "}":
            if depth == 0:
                return
            depth -= 1
            if depth == 0:
                yield text[start:at]
        at += 1


def commands():
    text = (TOP / "client/steamctl/options.c").read_text()
    out = {}
    for row in braces_of(text, "const struct command commands[] ="):
        a = split_arguments(row)
        name, arguments, what = (strings_of(x)[0] if strings_of(x) else "" for x in a[:3])
        out[name] = Row(name, arguments, what)
    return out


def options():
    """steamctl's options by their long names."""
    text = (TOP / "client/steamctl/options.c").read_text()
    table = text[text.index("static const struct option {"):]
    table = table[table.index("} options[] ="):]
    out = {}
    for row in braces_of(table, "} options[] ="):
        a = split_arguments(row)
        if len(a) < 9 or not strings_of(a[8]):
            continue
        alias = strings_of(a[1])[0] if strings_of(a[1]) else ""
        value = strings_of(a[2])[0] if strings_of(a[2]) else ""
        name = strings_of(a[0])[0]
        out[name] = Row(name, value, strings_of(a[8])[0], {"alias": alias, "of": a[3]})
    return out


def verbs():
    text = (TOP / "client/steamctl/session.c").read_text()
    out = {}
    for row in braces_of(text, "verbs[] ="):
        a = split_arguments(row)
        name = strings_of(a[0])[0]
        out[name] = Row(name, strings_of(a[4])[0] if strings_of(a[4]) else "",
                        strings_of(a[5])[0])
    return out


def codes():
    """The daemon's error codes: exit code and meaning by name."""
    text = (TOP / "client/wire/codes.h").read_text()
    text = text[text.index("#define CODES(CODE)"):]
    out = {}
    for call in calls_of(text, "CODE"):
        a = split_arguments(call)
        if len(a) == 4 and a[1].startswith('"'):
            out[strings_of(a[1])[0]] = Row(strings_of(a[1])[0], a[2], strings_of(a[3])[0])
    return out


def own_exits():
    """steamctl's own exit codes: meanings by number."""
    text = (TOP / "client/steamctl/options.c").read_text()
    numbers = dict(re.findall(r"(EXIT_\w+) = (\d+)",
                              (TOP / "client/steamctl/steamctl.h").read_text()))
    out = {}
    for row in braces_of(text, "} own_exits[] ="):
        a = split_arguments(row)
        out[numbers[a[0]]] = strings_of(a[1])[0]
    return out


def daemon_options():
    text = (TOP / "daemon/server/options.c").read_text()
    out = {}
    for row in braces_of(text, "} table[] ="):
        a = split_arguments(row)
        name = strings_of(a[0])[0]
        value = strings_of(a[1])[0] if strings_of(a[1]) else ""
        out[name] = Row(name, value, strings_of(a[5])[0])
    return out


if __name__ == "__main__":
    for s in settings().values():
        print(s)
    for table in (commands(), options(), verbs(), codes(), daemon_options()):
        for r in table.values():
            print(r)
    print(own_exits())
