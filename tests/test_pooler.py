"""The service behind PgBouncer in transaction mode, where a statement may run in any session.

    pytest -m drill -s tests/test_pooler.py

It needs pgbouncer on the PATH, and the embedded PostgreSQL.
"""

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.postgres import AS_NOBODY, some_server
from tests.service import ROOT, free_port, serve, wait_until

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


def test_the_features_work_behind_a_pooler_with_its_setting() -> None:
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with some_server() as server:
        server.control("start")
        port, configuration = free_port(), server.folder.parent / "pgbouncer.ini"
        configuration.write_text(CONFIGURATION.format(server=server, port=port))
        command = [*AS_NOBODY, program, "--quiet", str(configuration)]
        pooler = subprocess.Popen(command, cwd="/")  # noqa: S603
        settings: Any = {"DATABASE_URL": f"postgresql://postgres@127.0.0.1:{port}/postgres"}
        try:
            with serve(wait=False, **settings) as own:
                wait_until(lambda: "unsupported startup parameter" in own.log_text())
                own.wait_for("/readyz", 503)
            with serve("--workers", "2", TRANSACTION_POOLER="true", **settings) as own:
                command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
                environment = os.environ | {"TEST_SERVICE_URL": own.url}
                subprocess.run(command, cwd=ROOT, env=environment, check=True)  # noqa: S603
        finally:
            pooler.kill()
            pooler.wait()
