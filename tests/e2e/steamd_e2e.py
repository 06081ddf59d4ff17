"""Starts the real daemon on a checkpoint and talks to it through the real steamctl.

Each test is a function whose name is a sentence; run() prints "ok", "not ok" or
"skip" lines that tests/driver.sh counts.
"""
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

SRC = pathlib.Path(os.environ.get("srcdir", ".")).resolve()
BUILD = pathlib.Path(os.environ.get("builddir", ".")).resolve()
GOLDEN = SRC / "tests" / "golden"
STEAMD = BUILD / "steamd"
SANITIZED = "sanitizers" in str(BUILD)


class Skip(Exception):
    """Raised with the reason why a test cannot run here."""


def _steamctl():
    """The program itself, not libtool's wrapper: its start is measured too."""
    real = BUILD / "client" / "steamctl" / ".libs" / "steamctl"
    return real if real.exists() else BUILD / "client" / "steamctl" / "steamctl"


STEAMCTL = _steamctl()
# nothing sleeps because the machine that tests is short of memory, or is suspended
ENV = dict(os.environ, LD_LIBRARY_PATH=str(BUILD / "client" / ".libs"), MEMORY_PRESSURE_WATCH="/dev/null",
           DBUS_SYSTEM_BUS_ADDRESS="unix:path=/nonexistent")


def children(pid):
    """Process ids of the direct children of @pid."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat[stat.rindex(")") + 2:].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds=20.0, what="condition"):
    """Polls @condition (the daemon offers events to clients, not to outsiders)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {seconds} s")


class Client:
    """steamctl, which speaks to the daemon at self.socket."""

    def popen(self, *args, uid=None, **kwargs):
        become = (lambda: (os.setgroups([]), os.setgid(uid), os.setuid(uid))) if uid else None
        return subprocess.Popen([str(STEAMCTL), "--socket", str(self.socket), *map(str, args)],
                                env=ENV, preexec_fn=become, **kwargs)

    def ctl(self, *args, stdin=b"", uid=None, code=0, timeout=120):
        """Runs steamctl and returns its stdout; the exit code must be @code."""
        p = self.popen(*args, uid=uid, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
        out, err = p.communicate(stdin, timeout)
        if p.returncode != code:
            raise AssertionError(f"steamctl {' '.join(map(str, args))}: exit {p.returncode}, wanted {code}\n"
                                 f"{err.decode(errors='replace')}{out[-500:].decode(errors='replace')}")
        self.last_stderr = err.decode(errors="replace")
        return out

    def lines(self, *args, **kwargs):
        return [json.loads(line) for line in self.ctl(*args, **kwargs).splitlines()]

    def complete(self, ids, n, *args, **kwargs):
        """Greedy completion of @ids; the last JSON line."""
        out = self.lines("complete", "--ids", "--json", "--temperature", "0", "--max-tokens", n,
                         "--ignore-eos", *args, stdin=json.dumps(ids).encode(), **kwargs)
        return out[-1]

    def status(self):
        return json.loads(self.ctl("status", "--json"))


class Daemon(Client):
    """One steamd in a directory of its own, gone when the with block ends."""

    def __init__(self, model, *sets, socket_mode=None):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="steamd-e2e-"))
        self.dir.chmod(0o755)
        self.socket = self.dir / "s.sock"
        self.model = model if os.path.isabs(str(model)) else GOLDEN / model
        self.sets = list(sets)
        if socket_mode:
            self.sets.append(f"SocketMode={socket_mode}")
        self.log_path = self.dir / "log"
        self.process = None

    def command(self):
        command = [str(STEAMD), "--model", str(self.model), "--socket", str(self.socket),
                   "--state", str(self.dir / "state")]
        for s in self.sets:
            command += ["--set", s]
        return command

    def __enter__(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, stdout=log,
                                            stdin=subprocess.DEVNULL, env=ENV)
        try:
            wait_for(self.is_ready, 120, "ready")
        except AssertionError:
            sys.stdout.write(self.log())
            self.kill()
            raise
        return self

    def is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"steamd ended with {self.process.returncode}:\n{self.log()}")
        return "\nready\n" in "\n" + self.log()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __exit__(self, kind, value, trace):
        was_alive = self.process.poll() is None
        self.kill()
        log = self.log()
        if kind or self.process.returncode != 0 or "runtime error" in log or "Sanitizer" in log:
            sys.stdout.write(log)
        if not kind:
            assert was_alive, f"steamd died during the test with {self.process.returncode}"
            assert self.process.returncode == 0, f"steamd ended with {self.process.returncode}"
            assert "Sanitizer" not in log and "runtime error" not in log
        shutil.rmtree(self.dir, ignore_errors=True)

    def executor(self):
        """Process id of the running executor."""
        # one that has died often is started again after a minute
        return wait_for(lambda: children(self.process.pid), 90, "an executor")[0]


def truth(checkpoint):
    return json.loads((GOLDEN / checkpoint / "expect" / "truth.json").read_text())


def prompt(checkpoint, name):
    return next(p for p in truth(checkpoint)["prompts"] if p["name"] == name)


def run(tests):
    """Runs @tests, or those named on the command line; exits."""
    wanted = sys.argv[1:]
    failed = 0
    for test in tests:
        name = test.__name__
        if wanted and name not in wanted:
            continue
        begin = time.monotonic()
        try:
            test()
            print(f"ok {name} ({time.monotonic() - begin:.1f} s)")
        except Skip as reason:
            print(f"skip {name}: {reason}")
        except Exception:  # a test may fail in any way
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print(f"not ok {name}")
        sys.stdout.flush()
    sys.exit(1 if failed else 0)
