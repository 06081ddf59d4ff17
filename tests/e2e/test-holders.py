#!/usr/bin/env python3
"""The checks of holderchecks.py with the tests' own stand-in for systemd; tests/systemd/holder.py has the real one."""
import holderchecks
from stored import *


class StandIn(Stored):
    """A daemon that this test keeps in service."""

    def broker(self):
        return self.process.pid if self.process.poll() is None else 0

    def executor(self):
        return self.status()["executor"]["pid"]

    def restart(self):
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log()
        self.__enter__()

    def back(self, pid):
        assert pid == self.process.pid
        self.again()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log()
        self.read_all()
        self.forget()

    def start(self):
        self.__enter__()

    def put(self, name, fd):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(str(self.dir / "notify"))
            socket.send_fds(s, [f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()], [fd])

    def kept(self):
        self.read_all()
        self.drop_dead()
        return len(self.store)


if __name__ == "__main__":
    with StandIn("air", *holderchecks.SETS) as h:
        try:
            holderchecks.run_all(h)
        except SystemExit as e:  # how it ends is looked at, too
            code = e.code
    sys.exit(code)
