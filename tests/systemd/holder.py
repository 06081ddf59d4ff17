#!/usr/bin/env python3
"""The checks of tests/e2e/holderchecks.py under the real systemd. Started by test-systemd.sh, in its namespaces."""
import pathlib
import socket
import subprocess

import steamd_e2e
import holderchecks
from steamd_e2e import Client, struct, wait_for

UNIT = "steamd.service"
LOG = pathlib.Path("/run/steamd-test/console")

steamd_e2e.STEAMCTL = pathlib.Path("/usr/local/bin/steamctl")


def systemctl(*args):
    return subprocess.run(["systemctl", *args], check=True, timeout=60, capture_output=True, text=True).stdout.strip()


class Systemd(Client):
    """steamd.service, which systemd keeps in service."""

    socket = "/run/steamd.sock"

    def show(self, name):
        return systemctl("show", "-p", name, "--value", UNIT)

    def broker(self):
        return int(self.show("MainPID"))

    def executor(self):
        return self.status()["executor"]["pid"]

    def restart(self):
        systemctl("restart", UNIT)

    def back(self, pid):
        wait_for(lambda: self.broker() not in (0, pid) and self.show("ActiveState") == "active", 30, "another broker")

    def stop(self):
        systemctl("stop", UNIT)

    def start(self):
        systemctl("start", UNIT)

    def put(self, name, fd):
        n = self.kept()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            # NotifyAccess=main: only what the broker says is heard, and root may speak for it
            credentials = struct.pack("iII", self.broker(), 0, 0)
            s.connect("/run/systemd/notify")
            s.sendmsg([f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()],
                      [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd)),
                       (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
        wait_for(lambda: self.kept() == n + 1, 10, "a descriptor more")

    def kept(self):
        return int(self.show("NFileDescriptorStore"))

    def log(self):
        return LOG.read_text(errors="replace")


if __name__ == "__main__":
    systemctl("start", UNIT)
    holderchecks.run_all(Systemd())
