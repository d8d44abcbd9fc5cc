"""Programs that tests run; a PostgreSQL that they may stop, crash, freeze and promote."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from embedded import CAPABILITY, INIT, NOBODY, PROGRAMS
from tests.service import ROOT, free_port, query

AS_NOBODY = ["setpriv", *NOBODY, *CAPABILITY] if os.geteuid() == 0 else []


def run(*command: str | Path, code: int = 0, **options: Any) -> str:
    """All that is printed by a command that ends with this code."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, timeout=600, **options)  # noqa: S603
    assert done.returncode == code, f"{command}\n{done.stdout}"
    return str(done.stdout)


def run_features(url: str) -> str:
    """Run test_main.py on the service that has this URL."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
    return run(*command, cwd=ROOT, env=os.environ | {"TEST_SERVICE_URL": url})


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"postgresql://postgres@{self.address}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        command = [*AS_NOBODY, f"{PROGRAMS}/{program}", f"-D{self.folder}", *arguments]
        run(*command, env={"LC_ALL": "C"})

    def control(self, *action: str) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k ''"
        self.run("pg_ctl", "-w", f"-l{self.folder}/log", "-o", options, *action)

    def signal(self, number: signal.Signals) -> None:
        """To the postmaster first, so that it starts no other process, and to its children."""
        with suppress(FileNotFoundError, ProcessLookupError):
            postmaster = (self.folder / "postmaster.pid").read_text().split()[0]
            os.kill(int(postmaster), number)
            for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
                os.kill(int(child), number)

    def lead(self, standby: "Server") -> None:
        """Make the other one a standby, and acknowledge only what it has from then on."""
        shutil.rmtree(standby.folder)
        source = f"host=127.0.0.1 port={self.port} user=postgres application_name=standby"
        standby.run("pg_basebackup", "-R", "-cfast", "-Xstream", "-d", source)
        standby.control("start")
        query(self.url, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        query(self.url, "SELECT pg_reload_conf()")


@contextmanager
def some_server() -> Iterator[Server]:
    """A server that does not run yet."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        server = Server(Path(root).resolve() / "pg")
        server.run("initdb", *INIT)
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)
            with suppress(AssertionError):  # it was stopped before
                server.control("stop", "-m", "immediate")


@contextmanager
def held(database_url: str, statement: str) -> Iterator[None]:
    """Another session has run the statement; its transaction is rolled back after the block."""
    with asyncio.Runner() as runner:
        db = runner.run(asyncpg.connect(database_url))
        runner.run(db.execute(f"BEGIN; {statement}"))
        try:
            yield
        finally:
            runner.run(db.close())
