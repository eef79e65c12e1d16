"""Answers a request by a CGI program: a fresh process, its stdout the response (RFC 3875)."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway import diagnosis
from gateway.body import Body
from gateway.body_stream import BodyStream
from gateway.cgi import wire
from gateway.cgi.locate import locate
from gateway.cgi.output import BadOutput
from gateway.cgi.process import is_ending
from gateway.cgi.stderr import ErrorStream
from gateway.cgi.stdin import StdinPipe
from gateway.cgi.variables import Script, concerns_start, mount_variables, request_variables
from gateway.confinement.cgroup import OomWatch
from gateway.confinement.model import Confinement
from gateway.confinement.words import limit_met
from gateway.exchange import Exchange
from gateway.fault import Fault
from gateway.handlers.reuse import ReusedScripts
from gateway.relay import Relay
from gateway.settings import CgiMount

if TYPE_CHECKING:
    from gateway.worker import Worker

# Reasons why scripts are started cold, said once each.
_SAID = 1000
# Read from a program at once: what a pipe holds.
_PIECE = 64 * 1024
# Pieces read at the program's end, when what it wrote is in the pipe: something else may go on to write there.
_LAST_PIECES = 16
# From the start until the program's pipes are watched, in seconds. Most programs have ended by then, and all that
# they wrote is read at once, with no wake-up of the loop for it. Those that go on are heard from here on.
_WATCH_AFTER = 0.003
# From the end of stdout until the exit status is known: it tells a response from the stump of one. A program that
# closed its stdout and works on does not hold the client longer.
_EXIT_GRACE = 0.1
# From the program's end until a stdout that something else keeps open is given up.
_STDOUT_GRACE = 0.25


class CgiDirectory:
    """A mounted directory of programs."""

    def __init__(self, worker: Worker, mount: CgiMount, number: int, spawner: int, ooms: OomWatch) -> None:
        """Take the mount, its `number` in the settings, the number of its spawner, and what watches its cgroup."""
        self.worker = worker
        self.mount = mount
        self.number = number
        self.spawner = spawner
        self.ooms = ooms
        self._cold: set[tuple[str, str]] = set()  # what was said of scripts that are not run warm
        self.directory = os.fsencode(os.path.abspath(mount.directory))
        self.prefix = mount.prefix.encode()
        self.variables = mount_variables(self.directory, mount.env)
        self._reused = ReusedScripts(worker, mount, self.variables) if mount.reuse else None

    def answer(self, exchange: Exchange, segments: tuple[bytes, ...], is_directory: bool, redirects: int) -> None:
        """Answer by the program that `segments` below the mount lead to."""
        found = locate(self.directory, self.prefix, segments, is_directory, self.mount.follow_links)
        if isinstance(found, Fault):
            if found.status == 403:
                self.worker.error_log.warning(found.words, exchange.id)
            exchange.fail(found)
            return
        if not (self._reused and self._reused.take(exchange, found, redirects)):
            CgiRun(self, exchange, found, redirects).begin()

    def say_cold(self, name: str, why: str) -> None:
        """Log once why a script is started cold where warm interpreters are wanted."""
        if (name, why) not in self._cold and len(self._cold) < _SAID:
            self._cold.add((name, why))
            self.worker.error_log.notice(f"{name} is started cold: {why}")


class CgiRun:
    """One run of one program: everything about it.

    It is done when its stdout has ended and it has been reaped, in any order; the response may be done before that.
    """

    __slots__ = (
        "_bad_output", "_body", "_cpu", "_deadline", "_error_stream", "_exchange", "_home", "_listens_stderr", "_pid",
        "_reads_stdout", "_redirects", "_relay", "_run_id", "_script", "_status", "_stdin", "_stdout", "_stream",
        "_timer", "_worker",
    )  # fmt: skip

    def __init__(self, home: CgiDirectory, exchange: Exchange, script: Script, redirects: int) -> None:
        self._home = home
        self._worker = home.worker
        self._exchange = exchange
        self._script = script
        self._redirects = redirects
        self._relay = Relay(home.worker, exchange, os.path.basename(script.filename).startswith(b"nph-"))
        self._body: Body | None = None
        self._stream: BodyStream | None = None  # in place of it
        self._stdin: StdinPipe | None = None
        self._run_id = 0
        self._pid = 0
        self._status: int | None = None  # the wait status, once it has been reaped
        self._stdout = -1
        self._reads_stdout = False
        self._error_stream: ErrorStream | None = None
        self._listens_stderr = False
        self._bad_output = ""
        self._cpu = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf

    def __repr__(self) -> str:
        state = "waiting" if not self._run_id else f"pid {self._pid}" if self._status is None else "ended"
        return f"<CgiRun {self._name} {state}>"

    @property
    def spawner(self) -> int:
        """The number of the spawner that starts it."""
        return self._home.spawner

    @property
    def _name(self) -> str:
        return os.fsdecode(self._script.filename)

    # -- before the start

    def begin(self) -> None:
        """Receive the request's body, then start; where it is passed on while it comes, start first."""
        exchange = self._exchange
        exchange.responder = self
        if self._home.mount.stream_body:
            self._stream = self._worker.new_body_stream(exchange)
        if exchange.request.has_body and not self._stream:
            self._body = self._worker.new_body(exchange, self._submit)
            exchange.receive_body(self._body)
        else:
            self._submit()

    def _submit(self) -> None:
        self._worker.runs.add(self)
        self._deadline = self._worker.now() + self._exchange.timeouts.queue
        if not self._worker.launcher.submit(self):
            self._over()
            self._exchange.fail(Fault(503, "too many requests wait for a program to be started", retry_after=5))

    def launch(self) -> None:
        """Start the program: its turn has come."""
        exchange = self._exchange
        mount = self._home.mount
        try:
            reading, to_program = self._make_descriptors()
        except OSError as error:
            self._over()
            # That is the server's lack, and not one of the program's limits.
            exchange.fail(diagnosis.start_failed(self._script.filename, "exec", error.errno or 0, Confinement()))
            return
        body = self._body or self._stream
        variables = request_variables(
            exchange.request,
            self._script,
            self._home.variables,
            exchange.variables,
            body.length if body else None,
            mount.pass_authorization and not (exchange.granted and exchange.granted.hides_authorization),
        )
        if exchange.granted:
            variables |= exchange.granted.variables
        self._stdout = reading[0]
        self._error_stream = ErrorStream(reading[1], self._log_stderr)
        self._deadline = self._worker.now() + self._exchange.timeouts.script
        exchange.program_runs()
        self._later(_WATCH_AFTER, self._listen_stdout)
        path = self._script.filename
        self._run_id = self._worker.launcher.start(
            self, path, os.path.dirname(path), variables, mount.kill_group, self._warm(), to_program
        )
        if self._body:
            self._body.close()
        elif self._stream:
            exchange.receive_body(self._stream)

    def _warm(self) -> int:
        """Return the number of the mount whose warm interpreters may run it."""
        granted = self._exchange.granted
        if not self._home.mount.warm or (granted and any(map(concerns_start, granted.variables))):
            return wire.COLD
        return self._home.number

    def _make_descriptors(self) -> tuple[list[int], list[int]]:
        """Return our ends of stdout and stderr, and the program's of [stdin,] stdout, stderr. Raise OSError."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            if self._body:
                theirs.append(self._body.descriptor())
            elif self._stream:
                reading, writing = os.pipe()
                theirs.append(reading)
                self._stdin = StdinPipe(self._worker.readiness, writing, self._stream, self._took_input)
            for _ in range(2):
                reading, writing = os.pipe()
                ours.append(reading)
                theirs.append(writing)
                os.set_blocking(reading, False)
        except OSError:
            for descriptor in ours + theirs:
                os.close(descriptor)
            self._close_stdin()
            raise
        return ours, theirs

    def _took_input(self) -> None:
        """The program takes its input: it is not silent."""
        if self._deadline != math.inf:
            self._deadline = self._worker.now() + self._exchange.timeouts.script

    def _close_stdin(self) -> None:
        if self._stdin:
            self._stdin.close()

    # -- what the launcher tells

    def started(self, pid: int) -> None:
        """It runs for longer than a moment: now its stderr is worth listening to as it comes."""
        self._pid = pid
        if self._error_stream and not self._listens_stderr:
            self._listens_stderr = True
            self._worker.readiness.watch(self._error_stream.descriptor, self._read_stderr)

    def not_started(self, phase: str, error: int) -> None:
        """The start failed."""
        fault = diagnosis.start_failed(self._script.filename, phase, error, self._home.mount.confinement)
        if fault.status == 403:
            self._worker.error_log.warning(fault.words, self._exchange.id)
        self._give_up(fault)

    def is_cold(self, why: str) -> None:
        """It was to be run warm, and is started cold."""
        self._home.say_cold(self._name, why)

    def unfit(self, why: str) -> None:
        """It was to be run warm, and cannot be."""
        required = self._worker.settings.named("--warm require")
        self._give_up(Fault(500, f"{self._name} cannot be run warm ({required}): {why}"))

    def pipes(self) -> set[int]:
        """Return the inodes of the pipes that the program writes to."""
        ours = [self._stdout] if self._stdout >= 0 else []
        if self._error_stream:
            ours.append(self._error_stream.descriptor)
        return {os.fstat(descriptor).st_ino for descriptor in ours}

    def lost(self) -> None:
        """The spawner died."""
        self._give_up(Fault(502, f"{self._name} was lost: the process that starts programs died"))

    def _give_up(self, fault: Fault) -> None:
        self._close_stdin()
        self._close_stdout()
        self._close_stderr()
        self._over()
        self._relay.discard()
        self._exchange.program_ended(0, "", 0.0, 0)
        if self._exchange.responder is self:
            self._exchange.fail(fault)

    def ended(self, pid: int, status: int, cpu: float, memory: int) -> None:
        """It was reaped."""
        self._pid = pid
        self._status = status
        self._cpu = cpu
        self._deadline = math.inf
        self._cancel_timer()
        self._close_stdin()
        self._close_stderr()
        self._relay.is_last = True
        self._read_last()
        if self._stdout >= 0:
            if not self._relay.is_full:
                self._listen_stdout()
            self._later(_STDOUT_GRACE, self._stdout_grace_over)
        else:
            self._over()
        self._exchange.program_ended(pid, diagnosis.exit_word(status), cpu, memory)
        self._settle()

    # -- the program's output

    def _listen_stdout(self) -> None:
        if not self._reads_stdout and self._stdout >= 0:
            self._reads_stdout = True
            self._worker.readiness.watch(self._stdout, self._read_stdout)

    def _ignore_stdout(self) -> None:
        if self._reads_stdout:
            self._reads_stdout = False
            self._worker.readiness.ignore(self._stdout)

    def _close_stdout(self) -> None:
        if self._stdout >= 0:
            if self._reads_stdout:
                self._reads_stdout = False
                self._worker.readiness.forget(self._stdout)
            os.close(self._stdout)
            self._stdout = -1

    def _read_stdout(self) -> bool:
        """Take what stdout holds, a piece at most; return whether there may be more."""
        try:
            data = os.read(self._stdout, _PIECE)
        except BlockingIOError:
            return False
        if not data:
            self._close_stdout()
            if self._status is not None:
                self._over()
            elif self._stdin and self._stdin.is_open:
                # If the client has its answer before its body has come whole, the rest of that never comes.
                self._deadline = self._worker.now() + self._exchange.timeouts.script
            else:
                self._deadline = math.inf
            self._settle()
            return False
        if self._status is None and not self._exchange.is_ended:
            self._deadline = self._worker.now() + self._exchange.timeouts.script
        try:
            self._relay.take(data)
        except BadOutput as bad:
            self._bad_output = str(bad)
            self._relay.discard()
            self._settle()
        if self._relay.is_full:
            self._ignore_stdout()
            self._deadline = math.inf
        return self._stdout >= 0

    def _read_last(self) -> None:
        """Take what the program wrote before its end."""
        for _ in range(_LAST_PIECES):
            if self._stdout < 0 or self._relay.is_full or not self._read_stdout():
                break

    def client_ready(self) -> None:
        """The client takes bytes again."""
        self._relay.client_ready()
        if self._stdout >= 0 and not self._reads_stdout and not self._relay.is_full:
            self._listen_stdout()
            if self._status is None:
                self._deadline = self._worker.now() + self._exchange.timeouts.script
            else:
                self._later(_STDOUT_GRACE, self._stdout_grace_over)

    def _stdout_grace_over(self) -> None:
        """The program ended a while ago, and something else keeps its stdout open: that is not waited for."""
        self._read_last()
        if self._reads_stdout:
            self._close_stdout()
            self._over()
            self._settle()

    # -- the program's stderr

    def _read_stderr(self) -> None:
        assert self._error_stream
        if not self._error_stream.read():
            self._ignore_stderr()  # it was closed; it is looked at once more at the end

    def _ignore_stderr(self) -> None:
        if self._listens_stderr and self._error_stream:
            self._listens_stderr = False
            self._worker.readiness.ignore(self._error_stream.descriptor)

    def _close_stderr(self) -> None:
        self._ignore_stderr()
        if self._error_stream:
            self._error_stream.close()

    def _log_stderr(self, lines: list[str]) -> None:
        self._worker.error_log.script(lines, os.path.basename(self._name), self._pid, self._exchange.id)

    # -- the end

    def _settle(self, waited: bool = False) -> None:
        """End the response if its end has come: the output has ended, or is no response, and the exit is known.

        With `waited` the exit is not waited for any longer.
        """
        exchange = self._exchange
        # After a redirect within the server another run answers.
        if exchange.is_ended or exchange.responder is not self or (self._stdout >= 0 and not self._bad_output):
            return
        if self._status is None and not waited:
            self._later(_EXIT_GRACE, self._exit_grace_over)
        elif self._bad_output or not self._relay.has_header:
            why = self._bad_output or "it closed its stdout before the header was complete"
            ending = self._ending(self._relay.first_bytes)
            self._relay.discard()
            exchange.fail(diagnosis.no_header(ending, why))
            self._terminate()
        elif self._relay.redirect:
            self._relay.follow(self._redirects, self._name)
        else:
            killed = self._status is not None and os.WIFSIGNALED(self._status)
            self._relay.finish(self._explained("its response ends here") if killed else "")

    def _exit_grace_over(self) -> None:
        """It closed its stdout, or wrote what is no response, a while ago: end without its exit status if it works on.

        While it is not known to run, or it is ending, its end is on the way; only the spawner is behind.
        """
        if not self._pid or is_ending(self._pid):
            self._later(_EXIT_GRACE, self._exit_grace_over)
        else:
            self._settle(waited=True)

    def client_gone(self) -> None:
        """Nobody wants the response any more."""
        self._relay.discard()
        if self._run_id:
            self._terminate()
            self._close_stdout()
            if self._status is not None:
                self._over()
        else:
            self._worker.launcher.withdraw(self)
            self._over()

    def sweep(self, now: float) -> None:
        """Act if the deadline has passed; called some times a second."""
        if now < self._deadline:
            return
        if self._stdin and self._stdin.awaits_client:
            self._deadline = now + self._exchange.timeouts.script  # it is the client who is silent
            return
        self._deadline = math.inf
        exchange = self._exchange
        timeouts, named = exchange.timeouts, self._worker.settings.named
        if not self._run_id:
            self._worker.launcher.withdraw(self)
            self._over()
            limit = named("--max-programs")
            words = f"{self._name} waited {timeouts.queue:g} s for its start: too many programs run ({limit})"
            exchange.fail(Fault(503, words, "timeout", retry_after=5))
            return
        limit = named("--script-timeout")
        silence = self._explained(f"silent for {timeouts.script:g} s ({limit}); it is ended")
        if exchange.is_ended or exchange.responder is not self:
            words = f"still running {timeouts.script:g} s after its response ({limit}); it is ended"
            self._worker.error_log.warning(self._explained(words), exchange.id)
        elif exchange.is_begun:
            self._relay.cut_off(silence, "timeout")
        else:
            self._relay.discard()
            exchange.fail(Fault(504, f"no header: {silence}", "timeout"))
        self._terminate()

    def forsake(self) -> None:
        """The server stops now; the spawner ends the program."""
        if self._run_id:
            self._exchange.program_ended(self._pid, "", 0.0, 0)

    def _explained(self, why: str) -> str:
        return diagnosis.cut_off(self._ending(), why)

    def _ending(self, output: bytes = b"") -> diagnosis.Ending:
        stderr = self._stderr_tail()
        home = self._home
        was_killed = self._status is not None and os.WIFSIGNALED(self._status)
        oom = was_killed and home.ooms.has_killed()
        limit = limit_met(home.mount.confinement, self._status, self._cpu, stderr, oom)
        return diagnosis.Ending(self._script.filename, self._pid, self._status, stderr, output, limit)

    def _stderr_tail(self) -> str:
        if not self._error_stream:
            return ""
        if self._status is None:
            self._error_stream.read()
        return self._error_stream.tail

    def _terminate(self) -> None:
        if self._status is None and self._run_id:
            self._worker.launcher.terminate(self._run_id)

    def _over(self) -> None:
        self._worker.runs.discard(self)
        self._cancel_timer()

    def _later(self, delay: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._worker.loop.call_later(delay, callback)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
