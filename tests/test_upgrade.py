"""Today's service on a database of version 2, whose schema.sql is kept beside this file."""

import re
from typing import Any

from main import hasher
from tests.service import (
    KEYS,
    PASSWORD,
    ROOT,
    NewDatabase,
    execute,
    finished,
    log_in,
    ok,
    query,
    refused,
    serve,
    upload,
    wait_until,
)

SCHEMA = (ROOT / "schema.sql").read_text()
VERSION_2 = (ROOT / "tests/schema_of_version_2.sql").read_text()
ADA = "SELECT create_user('ada', 'ada@example.org', 'user', $1)"
DATA = """
    INSERT INTO projects (name, created_by) VALUES ('Move', 1);
    INSERT INTO members (project_id, user_id) VALUES (1, 2);
    INSERT INTO repositories (full_name, stars, fetched_at) VALUES ('octo/old', 7, now());
    INSERT INTO tasks (project_id, title, assigned_to, created_by, repository_id)
    VALUES (1, 'Pack', 2, 1, 1);
    INSERT INTO idempotent_answers
    VALUES (1, 'POST /projects/1/tasks', 'once', sha256('{"title": "Pack"}'), 1, 1, '{"id": 1}');
    INSERT INTO uploads (filename, columns, state, rows_total, rows_inserted, created_by)
    VALUES ('tasks.csv', '{project_id,title}', 'running', 4, 1, 1);
    INSERT INTO upload_batches (upload_id, line, rows)
    VALUES (1, 3, '[[3, ["1", "Carry"]]]'), (1, 4, '[[4, ["1", "Clean"]], [5, ["1", ""]]]');
"""
# Tables, columns, constraints and indexes, without the table that version 2 leaves behind.
CATALOG = """
    WITH relation AS (
        SELECT * FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relname !~ '^sign_in_failures'
    )
    SELECT relname, relkind::text, relpersistence::text, '', '' FROM relation
    UNION SELECT relname, attname, format_type(atttypid, atttypmod),
                 attnotnull || attidentity::text, coalesce(pg_get_expr(adbin, adrelid), '')
    FROM relation JOIN pg_attribute ON attrelid = relation.oid
    LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
    WHERE attnum > 0 AND NOT attisdropped
    UNION SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid), '', ''
    FROM relation JOIN pg_constraint ON conrelid = relation.oid
    UNION SELECT relname, pg_get_indexdef(oid), '', '', '' FROM relation WHERE relkind = 'i'
    ORDER BY 1, 2, 3
"""


def read_catalog(new_database: NewDatabase, schema: str) -> list[tuple[Any, ...]]:
    with new_database(distributed=False) as url:
        execute(url, schema)
        return query(url, CATALOG)


def test_a_database_of_version_2_becomes_todays_for_good(new_database: NewDatabase) -> None:
    todays_catalog = read_catalog(new_database, SCHEMA)
    with new_database(distributed=False) as url:
        execute(url, VERSION_2)
        query(url, ADA, hasher.hash(PASSWORD))
        execute(url, DATA)
        with serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
            assert query(url, CATALOG) == todays_catalog
            ada = ok(log_in(admin, "Ada"))["user"]
            task = ok(admin.get("/tasks/1"))
            assert task["assigned_to"] == ada["id"]
            assert task["repository"] == "octo/old"
            assert ok(admin.patch("/tasks/1", json={"completed": True}))["version"] == 2
            once = {"Idempotency-Key": "once"}  # whose digest was computed in another way
            again = admin.post("/projects/1/tasks/", json={"title": "Pack"}, headers=once)
            refused(again, 422, code="key_reused")
            wait_until(lambda: ok(admin.get("/uploads/1"))["state"] == "done")
            assert ok(admin.get("/uploads/1"))["rows_inserted"] == 3

            execute(url, VERSION_2)  # as the start of an older worker beside it does
            assert query(url, CATALOG) == todays_catalog
            content = "project_id,title,due_date\n1,Unpack,2027-01-15\n"
            assert finished(admin, upload(admin, content))["rows_inserted"] == 1
            titles = [task["title"] for task in ok(admin.get("/projects/1/tasks/?sort=id"))]
            assert titles == ["Pack", "Carry", "Clean", "Unpack"]
            execute(url, SCHEMA)  # as the next start of a newer one does
            assert query(url, CATALOG) == todays_catalog


def test_a_column_that_is_added_stands_in_its_table_too(new_database: NewDatabase) -> None:
    without_alter = re.sub(r"^ALTER TABLE \w+\s+ADD COLUMN[^;]*;$", "", SCHEMA, flags=re.MULTILINE)
    assert read_catalog(new_database, without_alter) == read_catalog(new_database, SCHEMA)
