"""What systemd gives and is told: sockets, states and the watchdog."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests import support
from tests.reload_support import request, serve

__all__ = ["serve"]

# Gives descriptors as systemd does: from 3 on, to the process that it executes.
GIVE = """
import os, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
free = max(*numbers, 100) + 1
for at, number in enumerate(numbers):
    os.dup2(number, free + at)
for at in range(len(numbers)):
    os.dup2(free + at, 3 + at)
os.closerange(3 + len(numbers), free + len(numbers))
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.argv[3], sys.argv[3:])
"""


def giving(*sockets, names=""):
    """How a server is started that is given sockets."""
    numbers = [given.fileno() for given in sockets]
    return {
        "prefix": [sys.executable, "-c", GIVE, ",".join(map(str, numbers)), names],
        "pass_fds": tuple(numbers),
    }


def listener(family=socket.AF_INET, name=("127.0.0.1", 0)):
    """A socket that listens."""
    made = socket.socket(family)
    made.bind(name)
    made.listen()
    return made


def asked(family, name):
    """What a server answers at an address."""
    with socket.socket(family) as client:
        client.connect(name)
        client.sendall(request("/cgi-bin/echo?x", "Connection: close\r\n"))
        return support.receive_all(client)


class Manager:
    """The service manager's side of sd_notify."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.told: list[dict[str, str]] = []
        self._seen = 0
        self._grown = threading.Condition()
        self._path = path
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while data := self.socket.recv(4096):
            with self._grown:
                self.told.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
                self._grown.notify_all()

    def wait_for(self, name, value=None):
        """Return the first message after the last one that was waited for that has a line."""
        deadline = time.monotonic() + support.PATIENCE
        with self._grown:
            while True:
                while self._seen < len(self.told):
                    message = self.told[self._seen]
                    self._seen += 1
                    if name in message and value in (None, message[name]):
                        return message
                assert self._grown.wait(deadline - time.monotonic()), self.told

    def close(self):
        """Read no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._path)
        self._thread.join(support.PATIENCE)
        self.socket.close()


@pytest.fixture
def manager(tmp_path):
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


# Sockets.


def test_on_each_socket_that_is_given_a_proxy_header_is_read(serve):
    """There are more of them than addresses."""
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    with listener() as one, listener() as other:
        more = '[clients]\nproxy_protocol = ["127.0.0.1"]\n'
        serve(listen=["127.0.0.1:8000"], more=more, **giving(one, other))
        for given in (one, other):
            with socket.create_connection(given.getsockname(), support.PATIENCE) as client:
                client.sendall(header + request("/cgi-bin/echo?x", "Connection: close\r\n"))
                assert b" 200 OK" in support.receive_all(client)


def test_sockets_that_are_given_are_served_in_place_of_the_default(serve, tmp_path):
    path = str(tmp_path / "given")
    with listener() as tcp, listener(socket.AF_UNIX, path) as unix:
        served = serve(listen=["127.0.0.1:8000"], **giving(tcp, unix, names="web:local"))
        for family, name in ((socket.AF_INET, tcp.getsockname()), (socket.AF_UNIX, path)):
            assert b" 200 OK" in asked(family, name)
        assert len(re.findall("listening on", served.errors.text)) == 2
        assert ":8000" not in served.errors.text
        # They stay, whatever the configuration says, over a reload and an upgrade.
        served.reload()
        served.upgrade()
        for family, name in ((socket.AF_INET, tcp.getsockname()), (socket.AF_UNIX, path)):
            assert b" 200 OK" in asked(family, name)
        served.stop()
        # The file is not ours.
        assert os.path.exists(path)
        # Who comes when we are away waits for the next one.
        with socket.create_connection(tcp.getsockname(), support.PATIENCE):
            assert select.select([tcp], [], [], support.PATIENCE)[0]


def test_a_socket_that_is_given_stands_for_the_address_that_is_listened_on(serve):
    with listener() as tcp:
        port = tcp.getsockname()[1]
        served = serve(listen=[f"127.0.0.1:{port}", "127.0.0.1:0"], **giving(tcp))
        assert b" 200 OK" in asked(socket.AF_INET, ("127.0.0.1", port))
        assert len(re.findall("listening on", served.errors.text)) == 2


def test_variables_for_another_process_are_not_ours(serve):
    served = serve(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    assert served.ask()[2] == "first"


@pytest.mark.parametrize("kind", ["datagram", "silent", "file"])
def test_what_is_given_and_does_not_listen_is_a_mistake(tmp_path, kind):
    with socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as given:
        number = os.open("/dev/null", os.O_RDONLY) if kind == "file" else given.fileno()
        started = subprocess.run(
            [sys.executable, "-c", GIVE, str(number), "web", sys.executable, "-m", "gateway", "--cgi-dir", tmp_path],
            pass_fds=(number,),
            cwd=support.ROOT,
            capture_output=True,
            text=True,
            timeout=support.PATIENCE,
            check=False,
        )
    assert started.returncode == 2
    assert re.fullmatch(r"gateway: LISTEN_FDS: descriptor 3 \(web\) .*; .* into the unit\n|.*ListenStream= alone\n",
                        started.stderr)  # fmt: skip


# States.


def test_states_are_told(serve, manager, tmp_path):
    served = serve(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert manager.wait_for("READY")["STATUS"] == "serving"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    served.reload()
    reloading = manager.wait_for("RELOADING", "1")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.wait_for("READY")["STATUS"] == "serving"
    served.more = "nonsense = 1"
    served.write()
    served.signal(signal.SIGHUP)
    manager.wait_for("RELOADING")
    assert "nonsense" in manager.wait_for("READY", "1")["STATUS"]
    # A program of ours is not told where to tell.
    served.more = ""
    served.reload()
    os.kill(served.master, signal.SIGQUIT)
    manager.wait_for("STOPPING", "1")
    assert served.server.process.wait(support.PATIENCE) == 0


def test_an_abstract_address_is_told(serve):
    name = f"gateway-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    serve(env={"NOTIFY_SOCKET": f"@{name}"})
    assert manager.wait_for("READY", "1")
    manager.close()


def test_an_upgrade_tells_who_is_the_main_process_and_the_new_one_tells_on(serve, manager, tmp_path):
    served = serve(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
    manager.wait_for("READY")
    manager.wait_for("WATCHDOG", "1")
    served.upgrade()
    assert int(manager.wait_for("MAINPID")["MAINPID"]) == served.master
    # The old one has gone without a word of stopping; it is the new one that lives.
    assert not any("STOPPING" in message for message in manager.told)
    manager.wait_for("WATCHDOG", "1")
    manager.wait_for("WATCHDOG", "1")
    os.kill(served.master, signal.SIGTERM)
    manager.wait_for("STOPPING", "1")


def test_the_watchdog_is_told_until_the_master_is_stuck(serve, manager, tmp_path):
    served = serve(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"})
    for _ in range(3):
        manager.wait_for("WATCHDOG", "1")
    assert served.ask()[2] == "first"


def test_a_watchdog_of_another_process_is_not_ours(serve, manager, tmp_path):
    served = serve(
        env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    )
    os.kill(served.master, signal.SIGTERM)
    manager.wait_for("STOPPING")
    assert served.server.process.wait(support.PATIENCE) == 0
    assert not any("WATCHDOG" in message for message in manager.told)


@pytest.mark.parametrize("drop_ins", [[], ["users.conf"]])
def test_the_units_are_what_systemd_takes(tmp_path, drop_ins):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for name in ("gateway.service", "gateway.socket"):
        text = (support.ROOT / "examples" / "systemd" / name).read_text()
        # What it runs need not be installed here.
        text = re.sub(r"^(ExecStart\w*)=\S+", rf"\1={sys.executable}", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    (tmp_path / "gateway.service.d").mkdir()
    for drop_in in drop_ins:
        shutil.copy(support.ROOT / "examples" / "systemd" / drop_in, tmp_path / "gateway.service.d")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "gateway.service", tmp_path / "gateway.socket"],
        capture_output=True,
        text=True,
        timeout=support.PATIENCE,
        check=False,
    )
    ours = [line for line in checked.stderr.splitlines() if "gateway." in line or "users.conf" in line]
    assert not ours, checked.stderr
