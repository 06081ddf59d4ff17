#!/usr/bin/env python3
# Prints daemon/text/unicode-tables.c. Needs the module 'regex' of a release with Unicode 16 tables
# (2024.11.6 is one); refuses to print tables that differ from the golden classes.
#
#	tests/unit/make-unicode-tables.py > daemon/text/unicode-tables.c
import json
import os
import sys

import regex

CLASSES = [("L", r"\p{L}"), ("N", r"\p{N}"), ("S", r"\s")]
WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"

golden_path = os.path.join(os.path.dirname(__file__), "../golden/tokenizer/unicode_classes.json")
golden = json.load(open(golden_path))
names = [""] * 0x110000
for code in range(0x110000):
    if 0xD800 <= code <= 0xDFFF:
        continue
    found = [name for name, pattern in CLASSES if regex.match(pattern, chr(code))]
    if regex.match(WORD, chr(code)):
        found.append("W")
    names[code] = " | ".join("UNICODE_" + name for name in found)
for name, _ in CLASSES:
    wanted = {c for a, b in golden[name] for c in range(a, b + 1)}
    if wanted != {c for c in range(0x110000) if "UNICODE_" + name in names[c]}:
        sys.exit(f"this regex module has other tables for {name}")

ranges = []
for code, name in enumerate(names):
    if not name:
        continue
    if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == name:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, name])

short = {"UNICODE_L | UNICODE_W": "LW", "UNICODE_N | UNICODE_W": "NW", "UNICODE_N": "N",
         "UNICODE_S": "S", "UNICODE_W": "W"}
print("/* Unicode 16 classes; printed by tests/unit/make-unicode-tables.py. */")
print('#include "daemon/text/unicode.h"\n')
print("/* clang-format off */")
print("#define S UNICODE_S\n#define N UNICODE_N\n#define W UNICODE_W")
print("#define LW (UNICODE_L | UNICODE_W)\n#define NW (UNICODE_N | UNICODE_W)\n")
print("const struct unicode_range unicode_ranges[] = {")
line = "\t"
for first, last, name in ranges:
    item = f"{{0x{first:x}, 0x{last:x}, {short[name]}}}, "
    if len(line) + len(item) > 92:
        print(line.rstrip())
        line = "\t"
    line += item
print(line.rstrip())
print("};")
print(f"const uint32_t unicode_n_ranges = {len(ranges)};")
