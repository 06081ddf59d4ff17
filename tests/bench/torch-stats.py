#!/usr/bin/env python3
"""Replays the traces through PyTorch's own caching allocator on a GPU: what its model is checked against.

usage: torch-stats.py [TRACE…] >FILE    all of tests/bench/traces unless some are named

Prints JSON: for each trace, mode and limit what torch.cuda.memory_stats() says at the end. The limit
is that of set_per_process_memory_fraction(), less the leases of the trace: once a little over the
most that is live at a time, once far over it. Where a lease begins or ends the cache is emptied, as a
process would that gives memory up. A run ends where memory does not suffice. What would begin after
SECONDS of a mode is left out.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import time

GIB = 1 << 30
SECONDS = 7
ROOMY, TIGHT_PERCENT = 128 * GIB, 105
MODES = {"default": "", "expandable": "expandable_segments:True,max_split_size_mb:512"}
LINE = re.compile(r"([+-])(\d+)(?:\*(\d+))?(?:[x-](\d+))?$")


def read(path):
    """Events: (class, bytes, count) for objects that come, (first, last) for those that go; most live bytes."""
    kinds, events, objects, live, peak = {}, [], [], 0, 0
    for line in path.read_text().splitlines():
        word = line.split()
        if word[0] == "kind":
            kinds[word[1]] = word[2], int(word[5])
        elif word[0] != "trace":
            sign, a, times, b = LINE.match(line).groups()
            if sign == "+":
                cls, size = kinds[a]
                events.append((cls, size * int(times or 1), int(b or 1)))
                objects += [events[-1][1]] * events[-1][2]
                live += events[-1][1] * events[-1][2]
                peak = max(peak, live)
            else:
                events.append((int(a), int(b or a)))
                live -= sum(objects[int(a) : int(b or a) + 1])
    return events, peak


def replay(torch, events, limit):
    total = torch.cuda.get_device_properties(0).total_memory
    limit = min(limit, total)
    objects, leased, peak_reserved, peak_allocated, out_at = [], 0, 0, 0, None

    def stats():
        return torch.cuda.memory_stats(0)

    def turn(leased):
        """Another limit from here on; the peaks so far are kept."""
        nonlocal peak_reserved, peak_allocated
        s = stats()
        peak_reserved = max(peak_reserved, s["reserved_bytes.all.peak"] + turn.leased)
        peak_allocated = max(peak_allocated, s["allocated_bytes.all.peak"] + turn.leased)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(0)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit - leased) / total), 0)
        turn.leased = leased

    turn.leased = 0
    torch.cuda.empty_cache()
    torch.cuda.reset_accumulated_memory_stats(0)
    torch.cuda.reset_peak_memory_stats(0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), 0)
    begun = time.monotonic()
    empty, byte, device = torch.empty, torch.uint8, torch.device("cuda", 0)
    try:
        for event in events:
            if len(event) == 3:
                cls, size, count = event
                if cls == "l":
                    leased += size
                    objects.append(size)
                    turn(leased)
                    continue
                for _ in range(count):
                    objects.append(empty(size, dtype=byte, device=device))
                continue
            for i in range(event[0], event[1] + 1):
                if isinstance(objects[i], int):
                    leased -= objects[i]
                    turn(leased)
                objects[i] = None
    except torch.OutOfMemoryError:
        out_at = len(objects)
    s = stats()
    result = {
        "limit_bytes": limit,
        "peak_reserved_bytes": max(peak_reserved, s["reserved_bytes.all.peak"] + turn.leased),
        "peak_allocated_bytes": max(peak_allocated, s["allocated_bytes.all.peak"] + turn.leased),
        "device_allocs": s["num_device_alloc"],
        "device_frees": s["num_device_free"],
        "retries": s["num_alloc_retries"],
        "out_of_memory_at": out_at,
        "seconds": round(time.monotonic() - begun, 3),
    }
    objects.clear()
    return result


def run_mode(mode, paths):
    import torch

    torch.cuda.init()
    rows, begun = [], time.monotonic()
    traces = [(path.stem, *read(path)) for path in paths]
    runs = [(n, e, peak * TIGHT_PERCENT // 100) for n, e, peak in traces] + [(n, e, ROOMY) for n, e, _ in traces]
    for name, events, limit in runs:
        if time.monotonic() - begun < SECONDS:
            rows.append({"trace": name, "mode": mode} | replay(torch, events, limit))
    total = torch.cuda.get_device_properties(0)
    json.dump({"device": total.name, "device_bytes": total.total_memory, "torch": torch.__version__, "rows": rows}, sys.stdout)


def main():
    here = pathlib.Path(__file__).resolve().parent / "traces"
    paths = [pathlib.Path(p) for p in sys.argv[1:]] or sorted(here.glob("*.trace"))
    if "STEAMD_TORCH_MODE" in os.environ:
        return run_mode(os.environ["STEAMD_TORCH_MODE"], paths)
    whole = None
    for mode, conf in MODES.items():
        # the allocator reads its settings once, before the first use of CUDA; older and newer name
        env = os.environ | {"STEAMD_TORCH_MODE": mode}
        env.pop("PYTORCH_ALLOC_CONF", None)
        env.pop("PYTORCH_CUDA_ALLOC_CONF", None)
        if conf:
            env |= {"PYTORCH_CUDA_ALLOC_CONF": conf, "PYTORCH_ALLOC_CONF": conf}
        p = subprocess.run([sys.executable, __file__, *map(str, paths)], env=env, stdout=subprocess.PIPE, check=True)
        part = json.loads(p.stdout)
        if whole:
            whole["rows"] += part["rows"]
        else:
            whole = part
    json.dump(whole, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
