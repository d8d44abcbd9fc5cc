"""The servers that run.py compares, their databases, and the load that they are put under."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg.conninfo import conninfo_to_dict

BENCH = Path(__file__).resolve().parent
SECOND_COMMIT = "7c99e61"  # the second version of the service, in this repository
OPTIONS = "--http zttp --loop uvloop --no-access-log --log-level warning --app-dir"
UVICORN = [sys.executable, "-m", "uvicorn", *OPTIONS.split()]
SERVICE, ON_H11, SECOND = "service", "service on h11", "second version"
PLAIN, FLOOR = "plain FastAPI", "floor"
ASYNC, SYNC, FASTIFY = "SQLAlchemy async", "SQLAlchemy sync", "Fastify"
SERVERS = {
    SERVICE: [*UVICORN, str(BENCH.parent), "main:app"],
    ON_H11: [*UVICORN, str(BENCH.parent), "main:app", "--http", "h11"],
    SECOND: [*UVICORN, SECOND_COMMIT, "main:app"],
    PLAIN: [*UVICORN, f"{BENCH}/peers", "plain_fastapi:app"],
    FLOOR: [*UVICORN, f"{BENCH}/peers", "floor:app"],
    ASYNC: [*UVICORN, f"{BENCH}/peers", "with_sqlalchemy:async_app"],
    SYNC: [*UVICORN, f"{BENCH}/peers", "with_sqlalchemy:sync_app"],
    FASTIFY: ["node", f"{BENCH}/peers/fastify/server.mjs"],
}
API_KEY = "the-key-of-the-benchmark"
CALLER_ID = 1  # the user `service`, the first in a new database
STATUSES = "pending", "in_progress", "completed"
COLUMNS = "project_id,title,description,status,priority,due_date"
PAGE = 20
GET, POST, PUT = "GET project", "POST task", "PUT task"
LIST_20, LIST_200, FIRST_PAGE = "list of 20", "list of 200", "first page of all tasks"


class Server(NamedTuple):
    name: str
    process: psutil.Popen
    client: httpx.Client
    start_seconds: float  # to the first answer

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options).raise_for_status()


class Database:
    """A database, and the servers on it."""

    def __init__(self, name: str, parameters: dict[str, Any], folder: str) -> None:
        self.name, self.parameters, self.folder = name, parameters, folder

    def connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(**self.parameters, dbname=self.name, autocommit=True)

    @contextmanager
    def serve(self, name: str) -> Iterator[Server]:
        """A server that answers, in a session of its own, so that Ctrl-C does not reach it."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        uri = f"postgresql:///{self.name}?{urlencode(self.parameters)}"
        env = os.environ | {"DATABASE_URL": uri, "API_KEY": API_KEY, "POOL_SIZE": "10"}
        env |= {f"PG{option.upper()}": str(value) for option, value in self.parameters.items()}
        env |= {"PGDATABASE": self.name, "UVICORN_PORT": port, "PORT": port}
        options = {"cwd": self.folder, "env": env, "stdout": sys.stderr, "start_new_session": True}
        start = time.perf_counter()
        process = psutil.Popen(SERVERS[name], **options)
        try:
            url, headers = f"http://127.0.0.1:{port}", {"X-API-Key": API_KEY}
            with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
                while process.poll() is None and time.perf_counter() < start + 30:
                    with suppress(httpx.TransportError):
                        if client.get("/projects/1").status_code < 500:
                            break
                    time.sleep(0.01)
                else:
                    sys.exit(f"{name} does not start.")
                yield Server(name, process, client, time.perf_counter() - start)
        finally:
            process.terminate()
            for survivor in psutil.wait_procs([process], timeout=15)[1]:
                survivor.kill()

    def fill(self, projects: int, tasks: int) -> list[int]:
        """Make projects, with so many tasks together; the ids of the projects."""
        with self.connect() as db:
            db.execute("SET session_replication_role = replica")  # no foreign key is checked
            insert = """
                INSERT INTO projects (name, description, created_by)
                SELECT 'Project ' || n, 'A project of the benchmark.', %s
                FROM generate_series(1, %s) AS n RETURNING id
            """
            ids = [id for (id,) in db.execute(insert, [CALLER_ID, projects])]
            copy_tasks(db, csv_lines(ids, tasks, str(CALLER_ID)))
            return ids

    def write_requests(self, projects: list[int]) -> dict[str, list[str]]:
        """Lines for load.lua, the same for every server."""
        with self.connect() as db:
            sample = "SELECT id FROM tasks ORDER BY md5(id::text) LIMIT 2000"
            tasks = [id for (id,) in db.execute(sample)]
        new = json.dumps({"title": "A task", "description": "To see how fast.", "priority": -1})
        return {
            GET: [f"GET /projects/{id}" for id in projects],
            LIST_20: [f"GET /projects/{id}/tasks/?limit={PAGE}" for id in projects],
            LIST_200: [f"GET /projects/{id}/tasks/?limit=200" for id in projects],
            POST: [f"POST /projects/{id}/tasks/ {new}" for id in projects],
            PUT: [f'PUT /tasks/{id} {{"priority": {n}}}' for n in (-1, -2) for id in tasks],
            FIRST_PAGE: [f"GET /tasks/?limit={PAGE}"],
        }


def find_postgres(url: str | None, folder: str, stack: ExitStack) -> dict[str, Any]:
    """libpq's parameters of a PostgreSQL server; of an embedded one, unless a URL names another."""
    if url is None:
        sys.path.append(str(BENCH.parent))
        from embedded import EmbeddedPostgres

        embedded = EmbeddedPostgres(Path(folder, "embedded"))
        stack.callback(embedded.stop)
    options = embedded.start() if url is None else conninfo_to_dict(url)
    return {
        name: options[name] for name in ("host", "port", "user", "password") if options.get(name)
    }


@contextmanager
def create_database(name: str, parameters: dict[str, Any], folder: str) -> Iterator[Database]:
    maintenance = Database("postgres", parameters, folder)
    with maintenance.connect() as db:
        db.execute(f"CREATE DATABASE {name}")
    try:
        yield Database(name, parameters, folder)
    finally:
        with maintenance.connect() as db:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def extract_second_version(folder: str) -> bool:
    """Write its files into a folder; False where this repository has no history."""
    target = Path(folder, SECOND_COMMIT)
    target.mkdir()
    for name in "main.py", "schema.sql":
        command = ["git", "-C", str(BENCH), "show", f"{SECOND_COMMIT}:{name}"]
        shown = subprocess.run(command, capture_output=True)  # noqa: S603 - ours
        (target / name).write_bytes(shown.stdout)
    return shown.returncode == 0


def copy_tasks(db: "psycopg.Connection[Any]", lines: Iterable[str]) -> float:
    """Seconds of a COPY from the client, as psql's \\copy does it."""
    start = time.perf_counter()
    with db.cursor().copy(f"COPY tasks ({COLUMNS},created_by) FROM STDIN (FORMAT csv)") as copy:
        for line in lines:
            copy.write(line)
    seconds = time.perf_counter() - start
    db.execute("VACUUM ANALYZE").execute("CHECKPOINT")  # now, not during the next measurement
    return seconds


def csv_lines(
    projects: list[int], rows: int, last: str = "", text: str = "A description of a line."
) -> Iterator[str]:
    """The values of COLUMNS, and one more. Every other row of a project has the text."""
    for number in range(rows):
        n, place = divmod(number, len(projects))
        start = f"{projects[place]},Task {n},{text * (n % 2)},{STATUSES[n % 3]}"
        yield f"{start},{n * 7919 % 1000},2030-01-{n % 28 + 1:02},{last}\n"


def sign_up(service: Server, username: str, projects: list[int]) -> str:
    """The credentials of a new user, a member of the projects."""
    account = {"username": username, "password": "a password of the benchmark"}
    user = service.ask("POST", "/auth/register", json=account).json()
    for project in projects:
        service.ask("PUT", f"/projects/{project}/members/{user['id']}")
    token = service.ask("POST", "/auth/login", json=account).json()["access_token"]
    return f"Authorization: Bearer {token}"


def import_file(service: Server, lines: Iterable[str]) -> float:
    """Seconds from the start of the upload until every row is a task."""
    content = "".join([f"{COLUMNS},assigned_to\n", *lines]).encode()
    start, files = time.perf_counter(), {"file": ("tasks.csv", content)}
    upload = service.ask("POST", "/upload/csv", files=files).json()
    while upload["state"] in ("queued", "running"):
        time.sleep(0.05)
        upload = service.ask("GET", f"/uploads/{upload['id']}").json()
    if upload["state"] != "done" or upload["rows_rejected"]:
        sys.exit(f"The import fails: {upload}")
    return time.perf_counter() - start


class Turn(NamedTuple):
    server: Server
    requests: list[str]  # lines for load.lua
    credentials: str = f"X-API-Key: {API_KEY}"


class Figure(NamedTuple):
    rate: float  # requests a second
    cpu: float  # microseconds of the server process a request
    failures: int


def load_server(turn: Turn, seconds: int, connections: int) -> Figure:
    """Each connection sends its next request when it has the answer to the last one."""
    with NamedTemporaryFile("w", suffix=".requests") as file:
        file.write("\n".join(turn.requests))
        file.flush()
        options = f"-t1 -c{connections} -d{seconds}s --timeout 10s -s {BENCH}/load.lua".split()
        url = str(turn.server.client.base_url)
        command = ["wrk", *options, "-H", turn.credentials, url, "--", file.name]
        cpu = sum(turn.server.process.cpu_times()[:2])
        output = subprocess.check_output(command, text=True)  # noqa: S603 - ours
        cpu = sum(turn.server.process.cpu_times()[:2]) - cpu
    answers, elapsed, failures = map(float, output.splitlines()[-1].split())
    if not answers:
        sys.exit(f"{turn.server.name} does not answer {turn.requests[0]} within {seconds} s.")
    return Figure(answers / elapsed, cpu / answers * 1e6, int(failures))
