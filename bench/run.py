"""The service beside its peers: one machine, one PostgreSQL, one load, in turns.

    pip install -r bench/requirements.txt
    apt-get install wrk                                           makes the load
    npm install --no-package-lock --prefix bench/peers/fastify    without it Fastify is left out
    python bench/run.py               about twenty minutes
    python bench/run.py --scale       also 5,000,000 tasks against 5,000: ten minutes more
    python bench/run.py --soak 60     an hour of mixed load for the memory, instead of two minutes

Prints requests a second and CPU time of the server process, then each mark and whether it is met. A
ratio is the median of rounds in which all take turns; only ratios hold on another machine. The
database is an embedded PostgreSQL in a temporary folder, or the server of --database-url.
"""

import argparse
import http.client
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from operator import attrgetter
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from servers import (
    ASYNC,
    BENCH,
    CALLER_ID,
    FASTIFY,
    FIRST_PAGE,
    FLOOR,
    GET,
    LIST_20,
    LIST_200,
    ON_H11,
    PAGE,
    PLAIN,
    POST,
    PUT,
    SECOND,
    SERVICE,
    SYNC,
    Database,
    Figure,
    Server,
    Turn,
    copy_tasks,
    create_database,
    csv_lines,
    extract_second_version,
    find_postgres,
    import_file,
    load_server,
    sign_up,
)

FAR_PAGE, MAX_PAGE = 10_000, 200
FILE_ROWS, LONG_FILE_ROWS = 100_000, 200_000  # to be timed; to be busy with
LARGE_FILE_ROWS, LARGE_DESCRIPTION = 13_300, "word " * 1990  # together 64 MiB, the most accepted
STEADY_SECONDS = 15
Kind = Callable[[Figure], float]
RATE: Kind = attrgetter("rate")
CPU: Kind = attrgetter("cpu")


class Meter:
    """Measures in rounds in which all take turns, and keeps the marks."""

    def __init__(self, rounds: int, seconds: int) -> None:
        self.rounds, self.seconds = rounds, seconds
        self.marks: list[list[str]] = []

    def measure(self, *turns: Turn, connections: int = 16) -> list[list[Figure]]:
        """The figures of each turn, round by round, after a short round to warm up."""
        rounds = []
        for number in range(self.rounds + 1):
            seconds = self.seconds if number else 1
            rounds.append([load_server(turn, seconds, connections) for turn in turns])
            for turn, figure in zip(turns, rounds[-1], strict=True):
                if figure.failures:
                    sys.exit(
                        f"{turn.server.name}: {figure.failures} times {turn.requests[0]} fails"
                    )
        return [list(figures) for figures in zip(*rounds[1:], strict=True)]

    def mark(self, what: str, value: float, sign: str, limit: float, unit: str = "x") -> None:
        is_met = {"<=": value <= limit, ">=": value >= limit, ">": value > limit}[sign]
        row = [what, f"{value:.2f} {unit}", f"{sign} {limit:g} {unit}", "yes" if is_met else "NO"]
        print(*row, sep=" | ", file=sys.stderr, flush=True)
        self.marks.append(row)


def ratio(kind: Kind, figures: list[Figure], others: list[Figure]) -> float:
    return median(kind(one) / kind(other) for one, other in zip(figures, others, strict=True))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def require_same_answers(servers: list[Server], line: str) -> None:
    """Each server does the same work: the same fields and values, but for those of the moment."""
    method, path, *body = line.split(" ", 2)
    answers = []
    for server in servers:
        sent = {"json": json.loads(body[0])} if body else {}
        answer = server.ask(method, path, **sent).json()
        rows = answer if isinstance(answer, list) else [answer]
        passing = {"id", "created_at", "updated_at", "version"}
        answers.append([{name: row[name] for name in row.keys() - passing} for row in rows])
        if answers[-1] != answers[0]:
            sys.exit(f"{line}: {server.name} {answers[-1]}, {servers[0].name} {answers[0]}")


def compare_peers(
    meter: Meter, databases: dict[str, Database], requests: dict[str, list[str]]
) -> None:
    """The servers on their databases, the service first. Each round has new processes, because two
    processes of one server differ by up to 30 %."""
    endpoints = GET, LIST_20, LIST_200, POST, PUT
    figures: dict[tuple[str, str], list[Figure]] = {}
    once = Meter(1, meter.seconds)
    for number in range(meter.rounds):
        with ExitStack() as stack:
            servers = [stack.enter_context(db.serve(name)) for name, db in databases.items()]
            for what in endpoints:
                if number == 0:  # later, changes have been made on one database or on the other
                    require_same_answers(servers, requests[what][0])
                measured = once.measure(*[Turn(each, requests[what]) for each in servers])
                for name, figure in zip(databases, measured, strict=True):
                    figures.setdefault((what, name), []).extend(figure)
    table, ratios = [], {}
    for what, (kind, unit) in itertools.product(endpoints, [(RATE, "requests/s"), (CPU, "µs CPU")]):
        table.append([f"{what}, {unit}"])
        for name in databases:
            ratios[what, kind, name] = ratio(kind, figures[what, SERVICE], figures[what, name])
            value = median(map(kind, figures[what, name]))
            table[-1].append(f"{value:,.0f} ({ratios[what, kind, name]:.2f} x)")
    print_table(["(service / server)", *databases], table)
    for what in GET, LIST_20, POST, PUT:
        meter.mark(f"CPU, {what}: service / {PLAIN}", ratios[what, CPU, PLAIN], "<=", 1.2)
    meter.mark(f"CPU, {GET}: service / {FLOOR}", ratios[GET, CPU, FLOOR], "<=", 2.6)
    for peer, limit in (ASYNC, 2.5), (SYNC, 5):
        least, what = min((ratios[what, RATE, peer], what) for what in endpoints)
        meter.mark(f"requests/s: service / {peer} (least: {what})", least, ">=", limit)
    if found := ratios.get((PUT, CPU, SECOND)):
        meter.mark(f"CPU, {PUT}: service / {SECOND}", found, "<=", 1)
    if found := ratios.get((LIST_200, RATE, FASTIFY)):
        meter.mark(f"requests/s, {LIST_200}: service / {FASTIFY}", found, ">", 1)


def compare_credentials(meter: Meter, service: Server, projects: list[int], get: list[str]) -> None:
    """A member by token, whose rights the database looks up, against an admin by key."""
    by_token = Turn(service, get, sign_up(service, "member", projects))
    token, key = meter.measure(by_token, Turn(service, get))
    meter.mark(f"CPU, {GET}: by token / by key", ratio(CPU, token, key), "<=", 1.6)
    meter.mark(f"time, {GET}: by token / by key", ratio(RATE, key, token), "<=", 1.6)


def compare_pages(meter: Meter, service: Server, tasks: int, first: list[str]) -> None:
    far, url = min(FAR_PAGE, tasks // PAGE), f"/tasks/?limit={MAX_PAGE}"
    for _ in range((far - 1) * PAGE // MAX_PAGE):
        url = service.ask("GET", url).links["next"]["url"]
    cursor = httpx.URL(url).params["cursor"]
    last = [f"GET /tasks/?limit={PAGE}&cursor={cursor}"]
    slower = ratio(RATE, *meter.measure(Turn(service, first), Turn(service, last)))
    meter.mark(f"time, list of all tasks: page {far:,} / page 1", slower, "<=", 1.1)


def compare_import(meter: Meter, service: Server, database: Database, projects: list[int]) -> None:
    """The service against COPY of the same rows into the same table."""
    times = []
    for _ in range(meter.rounds):
        imported = import_file(service, csv_lines(projects, FILE_ROWS))
        with database.connect() as db:
            lines = csv_lines(projects, FILE_ROWS, str(CALLER_ID))
            copied = copy_tasks(db, ["".join(lines)])
        times.append((imported / copied, imported, copied))
    slower, imported, copied = sorted(times)[len(times) // 2]
    what = f"time, {FILE_ROWS:,} rows: import ({imported:.2f} s) / \\copy ({copied:.2f} s)"
    meter.mark(what, slower, "<=", 3)


def ask_steadily(turn: Turn, is_over: Callable[[], bool]) -> tuple[float, int]:
    """The p99 at 50 requests a second, in milliseconds from when a request was due to its answer;
    and how many answers were errors. Those that fall due during a wait end with it."""
    client = http.client.HTTPConnection("127.0.0.1", turn.server.client.base_url.port)
    headers, requests = dict([turn.credentials.split(": ")]), itertools.cycle(turn.requests)
    waits, failures, due = [], 0, time.perf_counter()
    while not is_over():
        time.sleep(max(0, due - time.perf_counter()))
        method, path = next(requests).split()
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        answer.read()
        failures += answer.status != 200
        answered = time.perf_counter()
        while due < answered:
            waits.append((answered - due) * 1000)
            due += 0.02
    return quantiles(waits, n=100)[98], failures


def compare_waits(meter: Meter, what: str, turn: Turn, disturb: Callable[[], Any]) -> None:
    """Steady requests while something else goes on, against quiet ones."""
    end = time.perf_counter() + STEADY_SECONDS
    quiet, _ = ask_steadily(turn, lambda: time.perf_counter() > end)
    with ThreadPoolExecutor(1) as thread:
        disturbance = thread.submit(disturb)
        busy, failures = ask_steadily(turn, disturbance.done)
        print(disturbance.result(), file=sys.stderr)
    meter.mark(f"p99, {what} ({busy:.1f} ms) / quiet ({quiet:.1f} ms)", busy / quiet, "<=", 5)
    meter.mark(f"errors, {what}", failures, "<=", 0, "")


def measure_waits(meter: Meter, service: Server, database: Database, projects: list[int]) -> None:
    get = Turn(service, [f"GET /projects/{id}" for id in projects])
    file = list(csv_lines(projects, LONG_FILE_ROWS))
    compare_waits(meter, f"{GET}: during an import", get, lambda: import_file(service, file))

    long_project = database.fill(1, 0)
    with database.connect() as db:
        insert = """
            INSERT INTO tasks (project_id, title, description, created_by)
            SELECT %s, 'Task ' || task, string_agg(md5(task || ' ' || word), ' '), %s
            FROM generate_series(1, 6000) AS task, generate_series(1, 300) AS word GROUP BY task
        """
        db.execute(insert, [*long_project, CALLER_ID])
        db.execute("VACUUM ANALYZE")
    path = f"/projects/{long_project[0]}/tasks/?q=x"  # found in none
    search = Turn(service, [f"GET {path}"], sign_up(service, "ada", long_project))
    path = f"/projects/{projects[0]}/tasks/?limit={PAGE}"
    listing = Turn(service, [f"GET {path}"], sign_up(service, "bob", projects[:1]))
    what = f"{LIST_20}: while another user keeps 12 requests of q= over 6,000 long tasks going"
    compare_waits(meter, what, listing, lambda: load_server(search, STEADY_SECONDS, 12))


def measure_memory(
    meter: Meter, service: Server, on_h11: Server, projects: list[int], mixed: list[str], soak: int
) -> None:
    file = list(csv_lines(projects, LARGE_FILE_ROWS, text=LARGE_DESCRIPTION))

    def ask_for_long_paths() -> None:
        for number in range(1000):
            on_h11.client.get(f"/{number}/{'x' * 50_000}")

    def measure_after(step: Callable[[], Any], server: Server = service) -> float:
        step()
        return float(server.process.memory_info().rss) / 2**20

    warm = measure_after(lambda: load_server(Turn(service, mixed), 10, 16))
    soaked = measure_after(lambda: load_server(Turn(service, mixed), 60 * soak, 16))
    uploaded = measure_after(lambda: import_file(service, file))
    uploaded_again = measure_after(lambda: import_file(service, file))
    # The parser of the image, zttp, refuses such paths before the application sees them.
    fresh = measure_after(lambda: load_server(Turn(on_h11, mixed), 10, 16), on_h11)
    asked = measure_after(ask_for_long_paths, on_h11)
    for what, after, before in (
        (f"{soak} min of mixed load / after 10 s", soaked, warm),
        ("two files of 64 MiB / after one", uploaded_again, uploaded),
        ("1,000 paths of 50 KB / before", asked, fresh),
    ):
        meter.mark(f"memory after {what}", after / before, "<=", 1.1)
        meter.mark(f"memory after {what.partition(' / ')[0]}", after, "<=", 150, "MiB")


def compare_sizes(meter: Meter, create: Callable[[str], AbstractContextManager[Database]]) -> None:
    with ExitStack() as stack:
        sizes = []
        for name, projects in ("bench_small", 5), ("bench_large", 5_000):
            database = stack.enter_context(create(name))
            service = stack.enter_context(database.serve(SERVICE))
            ids = database.fill(projects, projects * 1000)
            requests, growing = database.write_requests(ids), (GET, LIST_20, FIRST_PAGE, POST, PUT)
            turns = {what: Turn(service, requests[what]) for what in growing}
            member = sign_up(service, "member", database.fill(1, 100))
            schemas = service.ask("GET", "/openapi.json").json()["components"]["schemas"]
            for sort in schemas["TaskSort"]["enum"]:
                path = f"/tasks/?sort={sort}"
                turns[f"{path} of a member of 100 tasks"] = Turn(service, [f"GET {path}"], member)
            sizes.append(turns)
        small, large = sizes
        for what, turn in small.items():
            slower = ratio(RATE, *meter.measure(turn, large[what]))
            limit = 1.2 if what in growing else 2
            meter.mark(f"time, {what}: 5,000,000 tasks / 5,000", slower, "<=", limit)
        turn = Turn(service, ["GET /tasks/"], sign_up(service, "member-of-300", ids[:300]))
        [figures] = meter.measure(turn, connections=1)
        what = "GET /tasks/ of a member of 300 projects, 5,000,000 tasks, by priority"
        meter.mark(what, 1000 / median(map(RATE, figures)), "<=", 30, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="The service beside its peers, on the same data.")
    parser.add_argument("--seconds", type=int, default=2, help="of a measurement (2)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (5)")
    parser.add_argument("--tasks", type=int, default=500_000, help="in 100 projects (500,000)")
    parser.add_argument("--soak", type=int, default=2, metavar="MINUTES", help="of mixed load (2)")
    parser.add_argument("--scale", action="store_true", help="also 5,000,000 tasks against 5,000")
    parser.add_argument("--database-url", help="of a PostgreSQL that databases are created on")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the servers, too
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        meter = Meter(options.rounds, options.seconds)
        postgres = find_postgres(options.database_url, folder, stack)
        create = partial(create_database, parameters=postgres, folder=folder)
        database = stack.enter_context(create("bench"))
        service = stack.enter_context(database.serve(SERVICE))
        projects = database.fill(100, options.tasks)
        requests = database.write_requests(projects)
        peers = dict.fromkeys([SERVICE, PLAIN, FLOOR, ASYNC, SYNC], database)
        if extract_second_version(folder):
            peers[SECOND] = stack.enter_context(create("bench_second"))
            with peers[SECOND].serve(SECOND):  # which makes its tables
                peers[SECOND].fill(100, options.tasks)
        if (BENCH / "peers/fastify/node_modules").exists():
            peers[FASTIFY] = database
        compare_peers(meter, peers, requests)
        compare_credentials(meter, service, projects, requests[GET])
        compare_pages(meter, service, options.tasks, requests[FIRST_PAGE])
        compare_import(meter, service, database, projects)
        measure_waits(meter, service, database, projects)
        mixed = [each[n % len(each)] for n in range(1000) for each in requests.values()]
        with database.serve(ON_H11) as on_h11:
            measure_memory(meter, service, on_h11, projects, mixed, options.soak)
        if options.scale:
            compare_sizes(meter, create)
        starts = []
        for _ in range(options.rounds):
            with database.serve(SERVICE) as another:
                starts.append(another.start_seconds)
        meter.mark("start to first answer", median(starts), "<=", 1.5, "s")
    print_table(["figure", "value", "mark", "met"], meter.marks)


if __name__ == "__main__":
    main()
