"""The only process that starts, ends and reaps CGI programs; one for each front worker and confinement.

Some facts about starting a process. posix_spawn stalls its caller until the program's image is loaded, some 0.3 ms;
so it is not done where requests are read. A child between its start and its exec shares the caller's memory, so the
caller is small and does nothing else. It cannot set limits: those that this process must not have itself are given to
the program right after its exec, when it may have run for a moment; a fork in its place takes several times as long.
What the program has forked in this moment has the limits that this process has, and the soft one of CPU time.

Only the parent of a process may reap it, and until it has, the pid cannot be given to another process; so the process
that reaps is the one that signals, and never one that it has reaped.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping

from gateway.cgi import wire
from gateway.cgi.process import signal_group
from gateway.cgi.roll import Roll
from gateway.cgi.warm.keeper import CARE, Begun, Cold, Keeper, WarmMount

# A program that ends sooner is told in one message, with its end; the pid of one that runs longer is told now.
_ANNOUNCE_AFTER = 0.05
# All at their defaults in a program. They are already, but where glibc is not told, it asks for each.
_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
# The kernel's number of a limit, soft and hard limit.
Limit = tuple[int, int, int]
_RIGHTS_SPACE = socket.CMSG_SPACE(3 * 4)  # stdin, stdout, stderr


class Spawner:
    """Serves one front worker over `channel`; ends everything it started when the worker is gone.

    `roll`: where the pids of what runs are noted, for the master, should the spawner be killed.
    `kill_timeout`: seconds from TERM to KILL. `warm`: the mounts whose scripts are run warm, by their number.
    `limits`: those of each program that this process does not have itself.
    """

    def __init__(
        self,
        channel: socket.socket,
        roll: Roll,
        kill_timeout: float,
        warm: Mapping[int, WarmMount],
        limits: tuple[Limit, ...] = (),
    ) -> None:
        self._roll = roll
        self._limits = limits
        self._cpu = next((soft for kind, soft, _ in limits if kind == resource.RLIMIT_CPU), 0)
        self._cpu_before = resource.getrlimit(resource.RLIMIT_CPU)
        self._channel = channel
        self._kill_timeout = kill_timeout
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._pids: dict[int, int] = {}  # run id: pid
        self._runs: dict[int, int] = {}  # pid: run id
        self._kill_at: dict[int, float] = {}  # pid that was sent TERM: when KILL follows
        self._group_ends: set[int] = set()  # pids whose process group ends with them
        self._unannounced: dict[int, float] = {}  # run id: when it was started
        self._events: list[wire.Event] = []
        self._worker_gone = False
        self._buffer = memoryview(bytearray(wire.MESSAGE_LIMIT))
        self._warm = warm
        self._keeper: Keeper | None = None
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}

    def run(self) -> None:
        """Serve until the worker is gone and every program has ended."""
        self._signals = _catch_signals()
        os.umask(0o022)
        if self._warm:
            self._keeper = Keeper(
                self._warm, _start_interpreter, self._limit, self._begun, self._start_held, self._was_cold
            )
        with contextlib.suppress(OSError):  # the worker has gone; that is read, too
            self._channel.send(wire.encode_events([]))
        poll = self._poll
        poll.register(self._channel, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while not (self._worker_gone and not self._runs):
            if self._keeper:
                self._watch(self._keeper.readers)
            ready = poll.poll(self._until_next())
            for descriptor, _ in ready:
                if descriptor == self._signals.fileno():
                    self._take_signals()
                elif descriptor in self._readers:
                    self._readers[descriptor]()
                elif not self._take_requests():
                    self._worker_left()
            if self._kill_at:
                self._kill_overdue()
            if self._keeper:
                self._keeper.care()
            self._tell()
        if self._keeper:
            self._keeper.close()
            self._reap_all()

    def _watch(self, readers: dict[int, Callable[[], None]]) -> None:
        for descriptor in self._readers.keys() - readers.keys():
            self._poll.unregister(descriptor)
        for descriptor in readers.keys() - self._readers.keys():
            self._poll.register(descriptor, select.POLLIN)
        self._readers = readers

    def _until_next(self) -> float | None:
        """Return the milliseconds until something has to be done without being asked, or None."""
        if self._unannounced:
            return _ANNOUNCE_AFTER * 1000
        if self._kill_at:
            return max(0.0, min(self._kill_at.values()) - time.monotonic()) * 1000 + 1
        return CARE * 1000 if self._keeper and self._keeper.has_interpreters else None

    def _take_requests(self) -> bool:
        """Do what the worker asked, a few requests at most; return False when the worker is gone."""
        for _ in range(16):
            try:
                length, ancillary, flags, _ = self._channel.recvmsg_into(
                    (self._buffer,), _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not length:
                return False
            request = wire.decode_request(self._buffer[:length])
            if isinstance(request, int):
                self._terminate(request)
            else:
                descriptors = array.array("i")
                if ancillary:
                    descriptors.frombytes(ancillary[0][2])
                self._start(request, descriptors.tolist(), bool(flags & socket.MSG_CTRUNC))
        return True

    def _start(self, start: wire.Start, descriptors: list[int], were_lost: bool) -> None:
        if start[-1] != wire.COLD and self._keeper and not were_lost:
            answer = self._keeper.start(start, descriptors)
            if isinstance(answer, Begun):
                self._begun(start, answer.pid)
            elif isinstance(answer, Cold):
                self._start_held(start, descriptors, answer.why)
        else:
            self._start_cold(start, descriptors, were_lost)

    def _start_held(self, start: wire.Start, descriptors: list[int], why: str) -> None:
        """Start what could not be started warm, for the reason `why`; '' where that is no matter."""
        if self._warm[start[-1]].is_required:
            self._events.append(("unfit", start[0], why or "its interpreter was not ready"))
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if why:
            self._events.append(("cold", start[0], why))
        self._start_cold(start, descriptors, were_lost=False)

    def _was_cold(self, pid: int, why: str) -> None:
        """A process that was to be warm has executed its script."""
        run_id = self._runs.get(pid)
        if run_id is not None:
            self._events.append(("cold", run_id, why))

    def _start_cold(self, start: wire.Start, descriptors: list[int], were_lost: bool) -> None:
        _, path, directory, environment, _, _ = start
        phase = "chdir"
        try:
            if were_lost:
                # The kernel drops descriptors that our table has no room for (unix(7)).
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._lend_cpu_limit()
            stdin = descriptors[-3] if len(descriptors) > 2 else self._null
            os.chdir(directory)
            phase = "exec"
            pid = os.posix_spawn(
                path,
                (path,),
                environment,
                file_actions=(
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, descriptors[-2], 1),
                    (os.POSIX_SPAWN_DUP2, descriptors[-1], 2),
                ),
                setsid=True,
                setsigdef=_SIGNALS,
            )
            if self._limits:
                phase = "limits"
                self._limit_or_end(pid)
        except OSError as error:
            self._events.append(("failed", start[0], phase, error.errno or 0))
        else:
            self._begun(start, pid)
        finally:
            self._take_cpu_limit_back()
            for descriptor in descriptors:
                os.close(descriptor)

    def _lend_cpu_limit(self) -> None:
        """Have the soft limit of CPU time while a program is started, which has it from its first instruction then."""
        if self._cpu:
            resource.setrlimit(resource.RLIMIT_CPU, (self._cpu, self._cpu_before[1]))

    def _take_cpu_limit_back(self) -> None:
        """Have it no longer: it counts what this process has used in all its life. The signal for it does nothing."""
        if self._cpu:
            resource.setrlimit(resource.RLIMIT_CPU, self._cpu_before)

    def _limit(self, pid: int) -> None:
        """Limit a program that was just started, or a child of a warm interpreter before its request; raise OSError."""
        for kind, soft, hard in self._limits:
            resource.prlimit(pid, kind, (soft, hard))

    def _limit_or_end(self, pid: int) -> None:
        """Limit a program, or have it end and raise OSError: one that has become another user by a set-user-id bit."""
        try:
            self._limit(pid)
        except PermissionError:
            signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _begun(self, start: wire.Start, pid: int) -> None:
        """A run has its process."""
        run_id = start[0]
        self._pids[run_id] = pid
        self._runs[pid] = run_id
        self._roll.add(pid)
        self._unannounced[run_id] = time.monotonic()
        if start[4]:
            self._group_ends.add(pid)
        if self._worker_gone:
            self._terminate(run_id)

    def _terminate(self, run_id: int) -> None:
        """Send TERM to a run's group; KILL follows."""
        pid = self._pids.get(run_id)
        if pid is None and self._keeper and self._keeper.withdraw(run_id):
            self._events.append(("failed", run_id, "exec", errno.ECANCELED))
        if pid is not None and pid not in self._kill_at:
            self._kill_at[pid] = time.monotonic() + self._kill_timeout
            signal_group(pid, signal.SIGTERM)
            # A stopped program takes no TERM until it goes on.
            signal_group(pid, signal.SIGCONT)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for pid, moment in self._kill_at.items():
            if now >= moment:
                self._kill_at[pid] = now + self._kill_timeout
                signal_group(pid, signal.SIGKILL)

    def _worker_left(self) -> None:
        if self._worker_gone:
            return
        self._worker_gone = True
        self._poll.unregister(self._channel)
        self._channel.close()
        for run_id in list(self._pids):
            self._terminate(run_id)

    def _take_signals(self) -> None:
        received = self._signals.recv(4096)
        if signal.SIGTERM in received:
            for pid in self._runs:
                signal_group(pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):  # none is left
            self._reap_ended()

    def _reap_ended(self) -> None:
        while self._runs or self._keeper:
            reaped = -1  # any
            if self._group_ends or self._kill_at:
                # Left unreaped until its group has been ended: then the group's number cannot be another's yet.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                if found is None:
                    return
                reaped = found.si_pid
                if found.si_pid in self._group_ends or found.si_pid in self._kill_at:
                    signal_group(found.si_pid, signal.SIGKILL)
            pid, status, usage = os.wait4(reaped, os.WNOHANG)
            if not pid:
                return
            if pid not in self._runs:
                if self._keeper:
                    self._keeper.reaped(pid)
                continue
            run_id = self._runs.pop(pid)
            self._roll.remove(pid)
            del self._pids[run_id]
            self._kill_at.pop(pid, None)
            self._group_ends.discard(pid)
            self._unannounced.pop(run_id, None)
            failed = self._keeper.ended(pid, status) if self._keeper else None
            if failed:
                what, words = failed
                self._events.append(
                    ("unfit", run_id, words) if what == "unfit" else ("failed", run_id, what, int(words))
                )
                continue
            cpu = usage.ru_utime + usage.ru_stime
            self._events.append(("ended", run_id, pid, status, cpu, _peak_memory(usage)))

    def _reap_all(self) -> None:
        """Wait for what is left: interpreters and children that wait, which have been told to end."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def _tell(self) -> None:
        if self._unannounced:
            now = time.monotonic()
            for run_id in [run for run, begun in self._unannounced.items() if now - begun >= _ANNOUNCE_AFTER]:
                del self._unannounced[run_id]
                self._events.append(("started", run_id, self._pids[run_id]))
        if self._events and not self._worker_gone:
            try:
                # Waits if the worker is that far behind: what is told must not be lost.
                self._channel.send(wire.encode_events(self._events))
            except OSError:
                self._worker_left()
        self._events.clear()


def _start_interpreter(
    path: bytes, arguments: list[bytes], environment: Mapping[bytes, bytes], descriptors: Mapping[int, int]
) -> int:
    """Start a process that has `descriptors`, by the numbers that they are to have; raise OSError."""
    # By way of numbers that nothing is at: one that is given may be another's aim.
    free = max(descriptors.values()) + len(descriptors) + 8
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    for number, descriptor in descriptors.items():
        actions.append((os.POSIX_SPAWN_DUP2, descriptor, free + number))
    for number in descriptors:
        actions.append((os.POSIX_SPAWN_DUP2, free + number, number))
        actions.append((os.POSIX_SPAWN_CLOSE, free + number))
    return os.posix_spawn(path, arguments, environment, file_actions=actions, setsid=True, setsigdef=_SIGNALS)


def _peak_memory(usage: resource.struct_rusage) -> int:
    """Return a program's peak resident memory in bytes, or 0 where the kernel does not tell.

    Until its exec a child shares this process's memory, and the kernel counts that (getrusage(2): the maximum is kept
    over an exec). So a peak below our own cannot be seen.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage.ru_maxrss * 1024 if usage.ru_maxrss > own else 0


def _catch_signals() -> socket.socket:
    """Return a socket that tells signals, a byte each.

    A caught signal is at its default again in a started program (POSIX exec), while an ignored one stays ignored; so
    whatever this process inherited as ignored, SIGPIPE from Python's start for one, is caught by a handler that does
    nothing. INT and QUIT come from the terminal to the whole foreground group and are the master's business.
    """
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # Kept for the life of the process: the wake-up descriptor is the signal handler's.
    _catch_signals.writing = writing  # type: ignore[attr-defined]
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, _do_nothing)
    # Nor does the terminal's Ctrl-Z stop it.
    for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reading


def _do_nothing(_number: int, _frame: object) -> None:
    pass
