"""Starting and stopping: eight workers at once, a database that is away, hangs or comes later, settings, signals."""

import gzip
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import (
    KEYS,
    MARKER,
    MISSING,
    ROOT,
    NewDatabase,
    Service,
    at_once,
    create_project,
    create_task,
    finished,
    free_port,
    launch,
    log_in,
    ok,
    query,
    refused,
    register,
    serve,
    sign_up,
    statuses,
    upload,
)
from tests.postgres import Server, held, some_server

ANSWER_SECONDS = 3.2  # 3 s are promised; the rest is for a busy machine
KEY_LINE = r"X-API-Key: (\S+)$"


# ------------------------------------------------------------------------------------------ workers


def test_eight_workers_start_at_once_on_an_empty_database_and_share_their_secrets(database_url: str) -> None:
    shared: dict[str, Any] = {"DATABASE_URL": database_url, "API_KEY": "", "JWT_SECRET_KEY": "", "POOL_SIZE": "2"}
    with serve("--workers", "8", wait=False, **shared) as own:
        for _ in range(600):
            keys = re.findall(KEY_LINE, own.log_text(), re.MULTILINE)
            if len(keys) < 8:
                time.sleep(0.1)
        assert keys == keys[:1] * 8, own.log_text()
        with own.client(X_API_Key=keys[0], Connection="close") as admin:
            assert statuses([admin.get("/projects/") for _ in range(24)]) == {200: 24}
            tokens = sign_up(admin).tokens
        assert not re.search("error|warn|unavailable", own.log_text(), re.IGNORECASE), own.log_text()
    assert query(database_url, "SELECT count(*) FROM secrets") == [(3,)], "a key, a secret, and the schema's digest"
    assert query(database_url, "SELECT username FROM users WHERE role = 'admin'") == [("service",)]
    with serve(**shared) as later, later.client(Authorization=f"Bearer {tokens['access_token']}") as person:
        assert re.findall(KEY_LINE, later.log_text(), re.MULTILINE) == keys[:1]
        assert ok(person.get("/auth/me")) == tokens["user"]
        assert ok(later.client(X_API_Key=keys[0]).get(f"/users/{tokens['user']['id']}")) == tokens["user"]


def test_two_workers_share_an_embedded_database_which_stops_with_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    pid_file = tmp_path / "a" / "b" / "postmaster.pid"
    with serve("--workers", "2", DATA_DIR=str(pid_file.parent)) as own:
        admin = own.client(X_API_Key=KEYS[0], Connection="close")
        path = admin.post("/projects/", json={"name": "Shared"}).headers["Location"]
        assert statuses([admin.get(path) for _ in range(10)]) == {200: 10}
        assert pid_file.exists()
    assert not pid_file.exists()


# ------------------------------------------------------------------------------------------ the database


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with some_server() as server:
        yield server


def expect_unavailable(service: Service) -> None:
    """Whatever needs the database is a 503 in time; nothing else waits for it."""
    with service.client(X_API_Key=KEYS[0]) as admin, service.client(X_API_Key="wrong") as wrong:
        acts = [partial(admin.get, path) for path in ("/readyz", "/health", "/projects/", "/tasks/1")] * 5
        acts += [partial(admin.post, "/projects/", json={"name": "N"}), partial(log_in, wrong, "ada")] * 3
        acts += [partial(register, wrong, "ada"), partial(upload, admin, "project_id,title\n1,T\n")]
        for answer in at_once(*acts):
            refused(answer, 503)
            assert answer.elapsed.total_seconds() < ANSWER_SECONDS
        assert ok(admin.get("/livez")) == {"status": "ok"}
        answer = wrong.get("/projects/")
        refused(answer, 401)
        assert answer.elapsed.total_seconds() < 0.5, "a bad key does not reach the database"


def test_a_database_may_come_later_hang_and_go(server: Server) -> None:
    with serve(wait=False, DATABASE_URL=server.url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        own.wait_for("/livez")
        expect_unavailable(own)
        time.sleep(1)
        (line,) = [line for line in own.log_text().splitlines() if server.address in line]
        assert "refused" in line
        server.control("start")
        own.wait_for(seconds=5)
        path = admin.post("/projects/", json={"name": "N"}).headers["Location"]
        server.signal(signal.SIGSTOP)
        expect_unavailable(own)
        server.signal(signal.SIGCONT)
        own.wait_for(seconds=5)
        server.control("stop", "-m", "immediate")
        expect_unavailable(own)
        server.control("start")
        own.wait_for(seconds=5)
        assert ok(admin.get(path))["name"] == "N"
        lines = [line for line in own.log_text().splitlines() if "unavailable" in line and "HTTP" not in line]
        assert len(lines) < 12, "once per cause"
        assert all(server.address in line for line in lines)


def test_a_database_that_hangs_from_the_start_is_awaited(server: Server) -> None:
    with suppress(AssertionError):  # it runs already
        server.control("start")
    server.signal(signal.SIGSTOP)
    with serve(wait=False, DATABASE_URL=server.url) as own:
        own.wait_for("/livez", seconds=10)
        expect_unavailable(own)
        time.sleep(1)
        assert len([line for line in own.log_text().splitlines() if server.address in line]) == 1, own.log_text()
        server.signal(signal.SIGCONT)
        own.wait_for(seconds=5)


# ------------------------------------------------------------------------------------------ settings

WRONG_SETTINGS = f"""
    DATABASE_URL={MARKER}
    DATABASE_URL=postgresql://u:{MARKER}@localhost/x?sslmode=nonsense
    DATABASE_URL=postgresql://u:{MARKER}@localhost:notaport/x
    ACCESS_TOKEN_EXPIRE_MINUTES=0 REFRESH_TOKEN_EXPIRE_DAYS=-1 POOL_SIZE=many REGISTRATION=maybe VALIDATION_STATUS=x
    ADMIN_PASSWORD={MARKER}
    ADMIN_USERNAME=a/b ADMIN_PASSWORD={MARKER}
    ADMIN_USERNAME=Service ADMIN_PASSWORD={MARKER}
    API_KEY=,
    GITHUB_API_BASE=ftp://x
    DATA_DIR=/proc/self/data DATABASE_URL=
"""


def test_every_wrong_setting_stops_the_start_with_one_line(tmp_path: Path, subtests: pytest.Subtests) -> None:
    launched = []
    for text in WRONG_SETTINGS.strip().splitlines():
        wrong = dict(setting.split("=", 1) for setting in text.split())
        launched.append((text, launch(tmp_path, **{"API_KEY": "", "DATABASE_URL": "postgresql://x/x"} | wrong)))
    for text, own in launched:
        with subtests.test(text):
            assert own.process
            assert own.process.wait(60) != 0
            (line,) = own.log_text().strip().splitlines()
            assert text.split("=")[0].strip() in line
            assert MARKER not in line


def test_an_admin_of_the_settings_is_created_once_and_then_left_alone(database_url: str) -> None:
    settings: dict[str, Any] = {"DATABASE_URL": database_url, "ADMIN_USERNAME": "Boss", "ADMIN_PASSWORD": "long enough"}
    with serve(**settings) as own, own.client() as nobody:
        tokens = ok(log_in(nobody, "boss", "long enough"))
        boss = own.client(Authorization=f"Bearer {tokens['access_token']}")
        ok(boss.patch(f"/users/{tokens['user']['id']}", json={"password": "changed by the boss"}))
        assert "WARN" not in own.log_text()
    with serve(**settings | {"ADMIN_USERNAME": "bOSS"}) as own, own.client() as nobody:
        refused(log_in(nobody, "boss", "long enough"), 401)
        assert ok(log_in(nobody, "boss", "changed by the boss"))["user"]["username"] == "Boss"
        assert "WARN" not in own.log_text(), "it is an admin"


def test_python_main_py_is_uvicorn_with_its_variables(database_url: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    variables = {"UVICORN_PORT": port, "UVICORN_ROOT_PATH": "/prefix", "DATABASE_URL": database_url, "API_KEY": KEYS[0]}
    command = [sys.executable, str(ROOT / "main.py")]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=sink, stderr=sink)  # noqa: S603
    own = Service(f"http://127.0.0.1:{port}", log, database_url, process)
    try:
        own.wait_for()
        with own.client(X_API_Key=KEYS[0]) as admin:
            answer = admin.post("/projects/", json={"name": "N"})
            assert answer.headers["Location"] == f"/prefix/projects/{ok(answer, 201)['id']}"
    finally:
        assert own.terminate() in (0, -signal.SIGTERM), own.log_text()


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.drill)])
def test_sigterm_ends_what_runs_and_waits_for_no_client_that_hangs(workers: str, new_database: NewDatabase) -> None:
    with new_database() as url, ThreadPoolExecutor(3) as pool:
        serving = serve("--workers", workers, tracebacks=True, DATABASE_URL=url)  # uvicorn logs what it cancels
        with serving as own, own.client(X_API_Key=KEYS[0]) as admin:
            project = create_project(admin)
            path, body = f"/projects/{project['id']}/tasks/", b'{"title": "Slow"}'
            rows = "".join(f"{project['id']},Row {number}\n" for number in range(20_000))
            accepted = upload(admin, f"project_id,title\n{rows}")
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEYS[0]}\r\nContent-Type: application/json\r\n"
            hung, slow = own.connect(), own.connect(20)
            for wire in (hung, slow):
                wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:8])
            with held(url, f"SELECT FROM projects WHERE id = {project['id']} FOR UPDATE"):
                waiting = [pool.submit(admin.post, path, json={"title": "Waits"}) for _ in range(3)]
                time.sleep(0.3)
                assert own.process
                own.process.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                time.sleep(0.7)
            with pytest.raises(OSError):  # noqa: PT011
                own.connect(1).recv(1)
            slow.sendall(body[8:])
            assert slow.recv(1000).startswith(b"HTTP/1.1 201")
            assert {answer.result().status_code for answer in waiting} == {201}
            own.process.wait(20)
            assert time.monotonic() - begun < 15
            hung.close()
        with serve(DATABASE_URL=url) as later, later.client(X_API_Key=KEYS[0]) as admin:
            assert finished(admin, accepted, 30)["rows_inserted"] == 20_000
            counts = "SELECT left(title, 4), count(*), count(DISTINCT title) FROM tasks GROUP BY 1 ORDER BY 1"
            assert query(url, counts) == [("Row ", 20_000, 20_000), ("Slow", 1, 1), ("Wait", 3, 1)]


# ------------------------------------------------------------------------------------------ telemetry


class Collector(ThreadingHTTPServer):
    """Stands for an OpenTelemetry collector: keeps what it is sent."""

    def __init__(self) -> None:
        self.received: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}
        super().__init__(("127.0.0.1", 0), Export)


class Export(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.received[self.path].append(gzip.decompress(body) if "Content-Encoding" in self.headers else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_collector_gets_traces_and_metrics(database_url: str) -> None:
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, args=(0.02,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
        settings: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "projects"}
        with serve(DATABASE_URL=database_url, **settings) as own, own.client(X_API_Key=KEYS[0]) as admin:
            task = create_task(admin, create_project(admin))
            ok(admin.get(f"/api/v1/tasks/{task['id']}/?", headers={"traceparent": f"00-{trace}-{parent}-01"}))
            refused(admin.get(f"/tasks/{MISSING}"), 404)
            refused(admin.post("/auth/register", json={"username": f"{MARKER}!", "password": MARKER}), 400)
        collector.shutdown()  # the service has stopped, and sent the rest
    traces, metrics = (b"".join(bodies) for bodies in collector.received.values())
    exported = [ExportTraceServiceRequest.FromString(body) for body in collector.received["/v1/traces"]]
    spans = [
        span for sent in exported for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans
    ]
    assert (trace, parent) in [(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans]
    found = Counter(
        (span.name, attribute.value.int_value)
        for span in spans
        for attribute in span.attributes
        if attribute.key == "http.response.status_code"
    )
    assert (found["GET /tasks/{task_id}", 200], found["GET /tasks/{task_id}", 404]) == (2, 1)
    assert all(text in metrics for text in (b"http.server.request.duration", b"/tasks/{task_id}", b"projects"))
    assert [text for text in (*KEYS, MARKER) if text.encode() in traces + metrics] == []
