"""The real daemon under a stand-in for the service manager: one that keeps the descriptors it is given."""
import array
import select
import socket
import threading

from steamd_e2e import *


class Stored(Daemon):
    """A daemon under a manager that keeps what it is given, and gives it to the next one: this test."""

    def __init__(self, model, *sets, tracer=(), socket_mode=None):
        super().__init__(model, *sets, socket_mode=socket_mode)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.dir / "notify"))
        self.messages = []  # all that was said
        self.store = []  # (name, descriptor, watched); guarded: what one has closed, no other may close again
        self.guard = threading.Lock()
        self.ready = threading.Event()
        self.read = threading.Event()
        self.tracer = tracer
        self.env = {}  # besides ENV
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        while True:
            data, ancillary, _, _ = self.notify.recvmsg(65536, 8192)
            fds = array.array("i")
            for _, _, received in ancillary:
                fds.frombytes(received[:len(received) - len(received) % 4])
            for fd in fds:
                os.set_inheritable(fd, False)
            words = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            name = words.get("FDNAME")
            self.messages.append(data.decode(errors="replace"))
            if "LEAVE" in words:
                self.notify.close()
                return
            if "READ" in words:
                self.read.set()
            if words.get("READY") == "1":
                self.ready.set()
            if words.get("FDSTOREREMOVE") == "1":
                self.close(lambda entry: entry[0] == name)
            elif words.get("FDSTORE") == "1":
                # systemd gives back first what came last
                with self.guard:
                    self.store[:0] = [(name, fd, words.get("FDPOLL") != "0") for fd in fds]
            else:
                for fd in fds:
                    os.close(fd)

    def close(self, is_meant):
        with self.guard:
            for entry in [e for e in self.store if is_meant(e)]:
                self.store.remove(entry)
                os.close(entry[1])

    def leave(self):
        """Nobody listens any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"LEAVE=1", str(self.dir / "notify"))

    def read_all(self):
        """What the broker has said is read, what it said last too."""
        self.read.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"READ=1", str(self.dir / "notify"))
        assert self.read.wait(20)

    def drop_dead(self):
        """Descriptors whose other end is gone leave the store, as with systemd."""
        def is_dead(entry):
            poll = select.poll()
            poll.register(entry[1], 0)
            return entry[2] and poll.poll(0)
        self.close(is_dead)

    def forget(self):
        """The store is lost, and the executor ends with its last descriptor."""
        if self.dir.exists():
            self.read_all()  # else what was stored last would be there after the loss
        self.close(lambda entry: True)

    def launch(self):
        self.read_all()
        self.ready.clear()
        self.drop_dead()
        fds = [e[1] for e in self.store]
        base = max([499, *fds]) + 1  # beyond all that is open here while the child is made
        env = dict(ENV, NOTIFY_SOCKET=str(self.dir / "notify"), **self.env)
        env.pop("XDG_RUNTIME_DIR", None)
        if fds:
            env.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(e[0] for e in self.store))

        def place():
            for i, fd in enumerate(fds):
                os.dup2(fd, base + i, inheritable=False)
            for i in range(len(fds)):
                os.dup2(base + i, 3 + i)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.tracer, "sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *self.command()], stderr=log, stdout=log,
                stdin=subprocess.DEVNULL, env=env, preexec_fn=place, close_fds=False)

    def __enter__(self):
        self.launch()
        wait_for(lambda: self.ready.is_set() or self.process.poll() is not None, 60, "READY=1")
        assert self.ready.is_set(), f"steamd ended with {self.process.returncode}:\n{self.log()}"
        return self

    def __exit__(self, kind, value, trace):
        super().__exit__(kind, value, trace)
        self.forget()

    def again(self):
        self.process.wait(20)
        self.__enter__()


def show(d, name, **kwargs):
    return json.loads(d.ctl("session", "show", "--json", name, **kwargs))["turn"]


def start(d, name, text, n, seed, *args, **kwargs):
    return d.popen("ask", "--json", "--no-think", "--session", name, "--ignore-eos", "-n", n, "--seed", seed, *args,
                   text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def finish(p):
    """The last line of an answer, or None and the reason."""
    out, err = p.communicate(timeout=60)
    if p.returncode != 0:
        return None, (p.returncode, err.decode())
    return json.loads(out.splitlines()[-1]), None
