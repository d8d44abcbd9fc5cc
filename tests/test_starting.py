"""Starting and stopping: workers, a database that is away, hangs or comes later, settings, signals,
telemetry."""

import os
import re
import shutil
import signal
import string
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from main import check_database_url, hasher
from tests.postgres import held, run, some_server
from tests.service import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    ROOT,
    NewDatabase,
    Service,
    at_once,
    create_project,
    execute,
    expect_in_time,
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
    wait_until,
)

SCHEMA = (ROOT / "schema.sql").read_text()


def test_eight_workers_start_at_once_and_share_their_secrets(database_url: str) -> None:
    settings: dict[str, Any] = {"DATABASE_URL": database_url, "API_KEY": "", "JWT_SECRET_KEY": ""}
    with serve("--workers", "8", wait=False, POOL_SIZE="2", **settings) as own:
        pattern = re.compile(r"X-API-Key: (\S+)$", re.MULTILINE)
        wait_until(lambda: len(pattern.findall(own.log_text())) == 8, 60)
        (key,) = set(pattern.findall(own.log_text()))
        admin = own.client(X_API_Key=key, Connection="close")
        assert statuses([admin.get("/projects/") for _ in range(24)]) == {200: 24}
        person = sign_up(admin)
        person.headers["Connection"] = "close"
        assert statuses([person.get("/auth/me") for _ in range(24)]) == {200: 24}
        assert not re.search("error|warn|unavailable", own.log_text(), re.IGNORECASE)


def expect_unavailable(service: Service, cause: str) -> None:
    """Whatever needs the database is a 503 in time; nothing else waits for it. The log says why,
    once per cause."""
    admin, wrong = service.client(X_API_Key=KEYS[0]), service.client(X_API_Key="wrong")
    acts = [partial(admin.get, path) for path in ("/readyz", "/health", "/users/", "/tasks/1")] * 5
    acts += [partial(log_in, wrong, "a"), partial(upload, admin, "project_id,title\n1,T\n")] * 2
    expect_in_time(at_once(*acts), 503)
    assert ok(admin.get("/livez")) == {"status": "ok"}
    answer = wrong.get("/projects/")
    refused(answer, 401)
    assert answer.elapsed.total_seconds() < 0.5, "a bad key does not reach the database"
    address = urlsplit(service.database_url).netloc.rpartition("@")[2]
    causes = re.findall(rf"The database at {address} is unavailable \((.*)\)", service.log_text())
    assert cause in "".join(causes)
    assert sorted(set(causes)) == sorted(causes)
    assert MARKER not in service.log_text()


def test_a_database_may_come_later_hang_and_go() -> None:
    password = quote(f"{MARKER}{string.punctuation} ü{MARKER}", safe="")
    with some_server() as server:
        settings: Any = {"DATABASE_URL": server.url.replace("@", f":{password}@"), "wait": False}
        with serve(**settings) as own, own.client(X_API_Key=KEYS[0]) as admin:
            own.wait_for("/livez", seconds=10)
            expect_unavailable(own, "refused")
            server.control("start")
            own.wait_for(seconds=5)
            path = admin.post("/projects/", json={"name": "N"}).headers["Location"]
            server.signal(signal.SIGSTOP)
            with serve(**settings) as started_meanwhile:
                expect_unavailable(own, "Timeout")
                started_meanwhile.wait_for("/livez", seconds=10)
                expect_unavailable(started_meanwhile, "Timeout")
                server.signal(signal.SIGCONT)
                own.wait_for(seconds=5)
                started_meanwhile.wait_for(seconds=5)
            server.control("stop", "-m", "immediate")
            expect_unavailable(own, "refused")
            server.control("start")
            own.wait_for(seconds=5)
            assert ok(admin.get(path))["name"] == "N"


def test_a_schema_that_waits_delays_no_request(database_url: str, tmp_path: Path) -> None:
    """The worker that applies it does not listen yet, so that a proxy sends it nothing."""
    shutil.copy(ROOT / "main.py", tmp_path)
    (tmp_path / "schema.sql").write_text(f"{SCHEMA}\n-- Newer.\n")
    waiting = "SELECT FROM pg_locks WHERE relation = 'idempotent_answers'::regclass AND NOT granted"
    with serve(DATABASE_URL=database_url) as own, ExitStack() as stack:
        admin = own.client(X_API_Key=KEYS[0])
        with held(database_url, "LOCK TABLE idempotent_answers IN ROW EXCLUSIVE MODE"):
            newer = stack.enter_context(
                serve(wait=False, folder=tmp_path, DATABASE_URL=database_url)
            )
            wait_until(lambda: query(database_url, waiting))
            expect_in_time([admin.post("/tasks/", json={"title": "T"})], 201)
            with pytest.raises(httpx.ConnectError):
                newer.client().get("/livez")
        newer.wait_for()


def test_a_schema_that_fails_is_logged_with_its_text(database_url: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "main.py", tmp_path)
    (tmp_path / "schema.sql").write_text(f"{SCHEMA}\nALTER TABLE tasks ADD COLUMN note nonsense;\n")
    with serve(wait=False, folder=tmp_path, DATABASE_URL=database_url) as own:
        words = 'schema.sql: type "nonsense" does not exist: ALTER TABLE tasks ADD COLUMN note'
        wait_until(lambda: words in own.log_text())


def test_nobody_registers_or_signs_in_before_the_service_has_its_user_and_its_secret(
    database_url: str, tmp_path: Path
) -> None:
    settings: Any = {"DATABASE_URL": database_url, "JWT_SECRET_KEY": ""}
    with serve(**settings) as own:
        ok(register(own.client(), "ada"), 201)
    shutil.copy(ROOT / "main.py", tmp_path)
    (tmp_path / "schema.sql").write_text(f"{SCHEMA}\nSELECT 1 / 0;\n")  # all tables are there
    with serve(wait=False, folder=tmp_path, **settings) as own:
        own.wait_for("/livez")
        refused(register(own.client(), "Service"), 503)
        refused(log_in(own.client(), "ada"), 503)


def test_a_new_database_of_another_encoding_is_refused(new_database: NewDatabase) -> None:
    options = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    words = "the encoding of the database has to be UTF8, not LATIN1"
    with (
        new_database(options, distributed=False) as url,
        serve(wait=False, DATABASE_URL=url) as own,
    ):
        wait_until(lambda: words in own.log_text())
        refused(own.client().get("/readyz"), 503)


TURKISH = """
    CREATE FUNCTION public.lower(text) RETURNS text IMMUTABLE LANGUAGE sql
    RETURN pg_catalog.lower(replace($1, 'I', chr(305)))
"""


def test_a_database_may_have_its_own_idea_of_lower_case(new_database: NewDatabase) -> None:
    with new_database(distributed=False) as url:
        execute(url, TURKISH)
        url += "&" if "?" in url else "?"
        url += "search_path=public,pg_catalog"
        with serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
            ok(register(admin, "Ida"), 201)
            ok(log_in(admin, "IDA"))
            project = create_project(admin)["id"]
            row = f"{project},A,FastAPI/FastAPI"
            finished(admin, upload(admin, f"project_id,title,repository\n{row}\n"))
            (task,) = ok(admin.get(f"/projects/{project}/tasks/"))
            assert task["repository"] == "FastAPI/FastAPI"


VERSION_2 = (ROOT / "tests/schema_of_version_2.sql").read_text()
DATA = """
    INSERT INTO projects (name, created_by) VALUES ('Move', 1);
    INSERT INTO members (project_id, user_id) VALUES (1, 2);
    INSERT INTO repositories (full_name, stars, fetched_at) VALUES ('octo/old', 7, now());
    INSERT INTO tasks (project_id, title, assigned_to, created_by, repository_id)
    VALUES (1, 'Pack', 2, 1, 1);
    INSERT INTO uploads (filename, columns, state, rows_total, rows_inserted, created_by)
    VALUES ('tasks.csv', '{project_id,title}', 'running', 2, 1, 1);
    INSERT INTO upload_batches (upload_id, line, rows) VALUES (1, 3, '[[3, ["1", "Carry"]]]');
"""
# Without the table that version 2 leaves behind.
CATALOG = """
    WITH catalog (relation, part, definition) AS (
        SELECT table_name, column_name,
            concat_ws(' ', udt_name, is_nullable, column_default, identity_generation)
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    )
    SELECT * FROM catalog WHERE relation !~ '^sign_in_failures' ORDER BY relation, part, definition
"""


def read_catalog(new_database: NewDatabase, schema: str) -> list[tuple[Any, ...]]:
    with new_database(distributed=False) as url:
        execute(url, schema)
        return query(url, CATALOG)


def test_a_database_of_version_2_becomes_todays_for_good(new_database: NewDatabase) -> None:
    todays_catalog = read_catalog(new_database, SCHEMA)
    with new_database(distributed=False) as url:
        execute(url, VERSION_2)
        query(url, "SELECT create_user('ada', 'ada@x.org', 'user', $1)", hasher.hash(PASSWORD))
        execute(url, DATA)
        with serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
            assert query(url, CATALOG) == todays_catalog
            ada = ok(log_in(admin, "Ada"))["user"]
            task = ok(admin.get("/tasks/1"))
            assert task["assigned_to"] == ada["id"]
            assert task["repository"] == "octo/old"
            assert ok(admin.patch("/tasks/1", json={"completed": True}))["version"] == 2
            wait_until(lambda: ok(admin.get("/uploads/1"))["state"] == "done")

            execute(url, VERSION_2)  # as the start of an older worker beside it does
            assert query(url, CATALOG) == todays_catalog
            content = "project_id,title,due_date\n1,Unpack,2027-01-15\n"
            assert finished(admin, upload(admin, content))["rows_inserted"] == 1
            titles = [task["title"] for task in ok(admin.get("/projects/1/tasks/?sort=id"))]
            assert titles == ["Pack", "Carry", "Unpack"]


def test_a_column_that_is_added_stands_in_its_table_too(new_database: NewDatabase) -> None:
    without_alter = re.sub(r"^ALTER TABLE \w+\s+ADD COLUMN[^;]*;$", "", SCHEMA, flags=re.MULTILINE)
    assert read_catalog(new_database, without_alter) == read_catalog(new_database, SCHEMA)


# Of a file .env by its encoding: lines, and what stands in the refusal.
WRONG_FILES = {
    "utf-8": f"""
        DATABASE_URL=postgresql://u:{MARKER}/{MARKER}@localhost/x POOL_SIZE=many API_KEY=,
        ACCESS_TOKEN_EXPIRE_MINUTES=0 REFRESH_TOKEN_EXPIRE_DAYS=-1 REGISTRATION=maybe
        VALIDATION_STATUS=401 ADMIN_USERNAME=a/b GITHUB_API_BASE=ftp://x CORS_ORIGINS=x
        GITHUB_TOKEN=ü ADMIN_PASSWORD={"x" * 1001}
    """,
    "utf-8-sig": f"ADMIN_PASSWORD={MARKER}",
    "ascii": f"ADMIN_USERNAME=Service ADMIN_PASSWORD={MARKER}",
    "cp1252": "DATABASE_URL=postgresql://db/x?target_session_attrs=master CORS_ORIGINS=https://*.x",
    "utf-16": ".env=",
}


@pytest.mark.parametrize(("encoding", "text"), WRONG_FILES.items(), ids=WRONG_FILES)
def test_what_is_wrong_stops_the_start_with_one_line(
    encoding: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("\n".join(text.split()), encoding)
    own = launch(tmp_path, API_KEY="", GITHUB_API_BASE="")
    assert own.process
    assert own.process.wait(60) == 1
    (line,) = own.log_text().splitlines()
    names = [word.partition("=")[0] for word in text.split()]
    assert [name for name in names if name not in line] == []
    assert MARKER not in line


def test_settings_that_cannot_be_read_stop_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").touch(0)
    as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*(as_anybody if os.geteuid() == 0 else []), sys.executable, "-c", "import main"]
    line = "Cannot start: .env cannot be read: [Errno 13] Permission denied: '.env'\n"
    assert run(*command, code=1, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) == line


@pytest.mark.parametrize("character", f"{string.punctuation} ü\t\n")
def test_a_password_is_taken_as_it_stands_or_refused_without_a_part_of_it(character: str) -> None:
    password = f"{MARKER}{character}{MARKER}"
    url = f"postgresql://app:{password}@db:5432/x"
    if character in "/?#@[] ü\t\n":
        with pytest.raises(ValueError, match=f"^((?!{MARKER}).)*$"):
            check_database_url(url)
    else:
        assert urlsplit(check_database_url(url)).password == password


def test_python_main_py_is_uvicorn_with_its_variables(database_url: str, tmp_path: Path) -> None:
    variables = {"DATABASE_URL": database_url, "UVICORN_PORT": free_port()}
    command = [sys.executable, str(ROOT / "main.py")]
    with subprocess.Popen(command, cwd=tmp_path, env=variables) as process:  # noqa: S603
        Service(f"http://127.0.0.1:{variables['UVICORN_PORT']}").wait_for()
        process.terminate()


def test_sigterm_ends_what_runs_and_waits_for_no_client_that_hangs(database_url: str) -> None:
    serving = serve("--timeout-graceful-shutdown", "2", DATABASE_URL=database_url, tracebacks=True)
    with serving as own, own.client(X_API_Key=KEYS[0]) as admin, ThreadPoolExecutor(3) as pool:
        assert own.process
        used, imported = (create_project(admin)["id"] for _ in range(2))
        lock = "SELECT FROM projects WHERE id = {} FOR UPDATE"
        inserting = """SELECT FROM pg_stat_activity
            WHERE state = 'active' AND query LIKE '%INSERT INTO tasks%' AND pid <> pg_backend_pid()
              AND datname = current_database()"""
        hung = own.connect()
        hung.sendall(b"POST /tasks/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        with held(database_url, lock.format(imported)):
            ok(upload(admin, f"project_id,title\n{imported},Imported\n"), 202)
            with held(database_url, lock.format(used)):
                act = partial(admin.post, f"/projects/{used}/tasks/", json={"title": "In flight"})
                answers = [pool.submit(act) for _ in range(3)]
                wait_until(lambda: len(query(database_url, inserting)) == 4)
                own.process.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                time.sleep(0.5)
            for answer in answers:
                ok(answer.result(), 201)
            own.process.wait(10)
            assert time.monotonic() - begun < 7, "2 s for requests, 5 s for the rest"
        hung.close()
    titles = "SELECT title FROM tasks"
    assert query(database_url, titles) == [("In flight",)] * 3
    with serve(DATABASE_URL=database_url):
        wait_until(lambda: ("Imported",) in query(database_url, titles))


class Collector(BaseHTTPRequestHandler):
    """Stands for an OpenTelemetry collector: keeps what it is sent."""

    received = b""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Collector.received += self.path.encode() + body
        self.send_response(200)
        self.end_headers()


def test_a_collector_gets_traces_and_metrics_without_secrets(database_url: str) -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        settings: Any = {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        with serve(DATABASE_URL=database_url, **settings) as own:
            admin = own.client(X_API_Key=KEYS[0])
            refused(admin.get(f"/api/v1/tasks/{MISSING}/"), 404)
            refused(register(admin, f"{MARKER}!", password=MARKER), 400)
        server.shutdown()  # the service has stopped, and sent the rest
    for text in ("/v1/traces", "/v1/metrics", "/tasks/{task_id}"):
        assert text.encode() in Collector.received
    assert [text for text in (*KEYS, MARKER) if text.encode() in Collector.received] == []
