"""The service behind PgBouncer in transaction mode, where a statement may run in any session.

    pytest -m drill -s tests/test_pooler.py

It needs pgbouncer on the PATH, and the embedded PostgreSQL.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from tests.postgres import AS_NOBODY, Server, some_server
from tests.service import KEYS, ROOT, at_once, create_project, free_port, ok, serve, wait_until
from tests.test_drills import Load, expect_in_time

pytestmark = pytest.mark.drill
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


@pytest.fixture
def pooled() -> Iterator[tuple[Server, str]]:
    """A server, and its URL through a pooler that has four sessions for all."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with some_server() as server:
        server.control("start")
        port, configuration = free_port(), server.folder.parent / "pgbouncer.ini"
        configuration.write_text(CONFIGURATION.format(server=server, port=port))
        command = [*AS_NOBODY, program, "--quiet", str(configuration)]
        with subprocess.Popen(command, cwd="/") as pooler:  # noqa: S603
            yield server, f"postgresql://postgres@127.0.0.1:{port}/postgres"
            pooler.kill()


def test_the_features_work_behind_a_pooler(pooled: tuple[Server, str]) -> None:
    with serve("--workers", "2", DATABASE_URL=pooled[1], TRANSACTION_POOLER="true") as own:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
        environment = os.environ | {"TEST_SERVICE_URL": own.url}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)  # noqa: S603
    print(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_a_frozen_server_behind_a_pooler_is_answered_in_time(pooled: tuple[Server, str]) -> None:
    server, url = pooled
    serving = serve(DATABASE_URL=url, TRANSACTION_POOLER="true")
    with serving as own, own.client(X_API_Key=KEYS[0]) as admin:
        path = f"/projects/{create_project(admin)['id']}"
        with Load(own) as load:
            load.wait_for(500)
            server.signal(signal.SIGSTOP)
            asked = expect_in_time(at_once(*[partial(admin.get, path)] * 20), 503)
            server.signal(signal.SIGCONT)
            load.wait_for(500)
        ok(admin.get(path))
        load.check(server.url, f"Frozen behind a pooler: {asked}")


def test_without_the_setting_the_log_names_the_reason(pooled: tuple[Server, str]) -> None:
    with serve(wait=False, DATABASE_URL=pooled[1]) as own:
        wait_until(lambda: "unsupported startup parameter" in own.log_text())
        own.wait_for("/readyz", 503)
