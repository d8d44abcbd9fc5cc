"""CSV files as spreadsheets write them, in and out.

tests/csv/ has files that were written by the programs that they are named after, from one table;
tests/csv/README.md says how.
"""

import csv
import io
import re
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from main import COLUMNS, ESCAPED, read_cell, write_cell
from tests.service import (
    KEYS,
    MISSING,
    Person,
    create_project,
    create_task,
    execute,
    finished,
    ok,
    query,
    refused,
    serve,
    sign_up,
    upload,
    wait_until,
    walk,
    without,
)

FILES = sorted((Path(__file__).parent / "csv").glob("*.csv"))
OWN = ("id", "project_id", "created_at", "created_by", "updated_at", "version")


def import_rows(admin: Person, project: Any, content: str | bytes) -> list[Any]:
    """The tasks that a file becomes, all of them, in the order of their ids; `{p}` is a project."""
    text = content if isinstance(content, bytes) else content.replace("{p}", str(project["id"]))
    done = finished(admin, upload(admin, text))
    assert done["state"] == "done"
    assert done["rows_rejected"] == 0, admin.get(f"/uploads/{done['id']}/errors").text
    return walk(admin, f"/projects/{project['id']}/tasks/?sort=id")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_a_program_becomes_its_tasks(path: Path, admin: Person) -> None:
    project = create_project(admin)
    content = re.sub(rb'(?m)^("?)1\b', rb"\g<1>%d" % project["id"], path.read_bytes())
    columns = ("title", "description", "status", "priority", "due_date")
    tasks = import_rows(admin, project, content)
    assert [[task[name] for name in columns] for task in tasks] == [
        ["Größe prüfen", 'Ein "Zitat"; mit, Zeichen', "in_progress", 2, "2027-01-15"],
        ["Ελληνικά", "zwei\nZeilen", "pending", 0, None],
        ["=1+1", None, "completed", -5, "2027-12-31"],
    ]


LAYOUTS = {
    "sep=": "sep=;\r\nproject_id;title;priority\r\n{p};A;1\r\n",
    "CR alone": "project_id,title,priority\r{p},A,1\r",
    "no end of the last line": "project_id,title,priority\r\n{p},A,1",
    "padding": "project_id,title,priority,,\n{p},A,1,,\n,,,,\n,,,,\n",
    "blank lines": "project_id,title,priority\n\n\n{p},A,1\n\r\n \n",
    "cells missing at the end": "project_id,priority,title,due_date,repository\n{p},1,A\n",
    "another order and case": " Priority , TITLE ,Project_ID\n1, A ,{p}\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_whatever_its_layout(layout: str, admin: Person) -> None:
    (task,) = import_rows(admin, create_project(admin), LAYOUTS[layout])
    assert task["title"] == "A"
    assert task["priority"] == 1
    assert task["due_date"] is None


def test_a_date_may_have_a_midnight() -> None:
    for end in ("", " 00:00", "T00:00:00.000"):
        assert read_cell("due_date", f"2027-01-15{end}") == "2027-01-15"


REFUSED: dict[str, tuple[str | bytes, str, str]] = {
    "a delimiter that is none": ("project_id|title\n1|A\n", "Line 1: ", "project_id|title"),
    "another column": ("project_id,title,colour\n1,A,red\n", "Line 1: ", "“colour”"),
    "a column twice": ("project_id,title,title\n1,A,B\n", "Line 1: ", "title is there twice"),
    "Latin-1": (b"project_id,title\n1,A\n1,Gr\xfc\xdfe\n", "Line 3: ", "CSV UTF-8"),
    "UTF-16": ("project_id,title\n1,A\n".encode("utf-16"), "Line 1: ", "CSV UTF-8"),
    "an open quote": ('project_id,title\n1,A\n1,"B\n1,C\n', "Line 3: ", "is not closed"),
    "text after a quote": ('project_id,title\n1,"A" B\n', "Line 2: ", "write it twice"),
    "a long cell": (f"project_id,title\n1,{'x' * 140_000}\n", "Line 2: ", "128 KiB"),
    "a long row": (f'project_id,title\n1,"{"x" * 300_000}"\n', "Line 2: ", "256 KiB"),
    "many rows": ("project_id,title\n" + "1,A\n" * 500_001, "Line 500002: ", "500,000 rows"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_csv_is_refused_as_a_whole_with_its_line(kind: str, admin: Person) -> None:
    content, line, words = REFUSED[kind]
    before = ok(admin.get("/uploads/?limit=1"))
    problem = refused(upload(admin, content), 400, "body", "file", code="invalid_input")
    (error,) = problem["errors"]
    assert error["msg"].startswith(line)
    assert words in error["msg"]
    assert ok(admin.get("/uploads/?limit=1")) == before


# Cells, by column, and what is said of them.
REJECTED = {
    ("project_id", str(MISSING)): "There is no such project",
    ("project_id", ""): "This field is required",
    ("project_id", "1.5"): "Expected a whole number",
    ("title", "   "): "Expected 1 or more characters",
    ("status", "done"): "Expected 'pending', 'in_progress' or 'completed'",
    ("assigned_to", str(MISSING)): "Expected a member of the project",
    ("priority", "@SUM(1)"): "Expected a whole number",
    ("assigned_to", "-007"): "Expected 1 or more",
    ("priority", "-" + "9" * 5000): "Expected a whole number",
    ("due_date", "15.01.2027"): "Expected a date, as 2027-01-31",
    ("repository", "../user"): "Expected owner/name, as on GitHub",
}


def test_a_rejected_row_comes_back_with_its_line_and_a_sentence(admin: Person) -> None:
    good = dict.fromkeys(COLUMNS, "") | {"title": "A", "project_id": create_project(admin)["id"]}
    sent = [good | {column: cell} for column, cell in REJECTED]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    writer.writerows([good, *sent])
    done = finished(admin, upload(admin, buffer.getvalue() + "1,A,,,,,,,one cell too many\n"))
    assert done["rows_inserted"] == 1
    errors = admin.get(f"/uploads/{done['id']}/errors").text
    *rows, last = csv.DictReader(io.StringIO(errors, newline=""))
    assert last["error"] == "The row has more cells than the first line has columns"
    for row, came, (column, cell) in zip(rows, sent, REJECTED, strict=True):
        assert row.pop("error") == f"{column}: {REJECTED[column, cell]}"
        assert row.pop("line") == str(sent.index(came) + 3)
        written = {column: f"'{cell}"} if ESCAPED.match(cell) and cell else {}
        assert row == {name: str(text) for name, text in came.items()} | written


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@given(text=cells)
def test_a_text_is_written_harmless_and_read_as_it_was(text: str) -> None:
    written = str(write_cell(text))
    assert not re.match(r"[=+\-@\t\r]", written)
    assert read_cell("title", written) == text
    assert (written != text) == bool(ESCAPED.match(text))


# What a spreadsheet or a database would run.
TEXTS = ["=1+1", "''-5", "'", "two\r\nlines", "x'); DROP TABLE tasks;--", "%s $1 :id"]


def test_tasks_are_the_same_after_an_export_and_an_upload(admin: Person) -> None:
    member = sign_up(admin)
    first, second = create_project(admin, member), create_project(admin, member)
    for text in TEXTS:
        create_task(admin, first, title=text, description=f"\t{text}", assigned_to=member.id)
    export = member.get(f"/projects/{first['id']}/tasks/export").content
    moved = re.sub(rf"(?m)^{first['id']},".encode(), f"{second['id']},".encode(), export)
    copies = import_rows(admin, second, moved)
    assert [task["title"] for task in copies] == TEXTS
    tasks = walk(admin, f"/projects/{first['id']}/tasks/?sort=id")
    assert [without(task, *OWN) for task in copies] == [without(task, *OWN) for task in tasks]


def test_excel_keeps_the_number_of_an_inbox(admin: Person) -> None:
    inbox = ok(admin.post("/tasks/", json={"title": "T"}), 201)["project_id"]
    assert len(str(inbox)) <= 11, "with more digits, Excel saves 1.09951E+12"


def test_rejected_rows_are_those_of_the_export_that_was_uploaded(admin: Person) -> None:
    project = create_project(admin)
    for text in TEXTS:
        create_task(admin, project, title=text, description="", priority=-5)
    sent = admin.get(f"/projects/{project['id']}/tasks/export").text.replace("pending", "lost")
    done = finished(admin, upload(admin, sent))
    errors = admin.get(f"/uploads/{done['id']}/errors").text
    buffer = io.StringIO()
    rows = csv.reader(io.StringIO(errors, newline=""))
    csv.writer(buffer).writerows(row[:-2] for row in rows)  # without `line` and `error`
    assert buffer.getvalue() == sent


def test_a_file_has_numbers_as_they_are_and_a_byte_order_mark_for_excel(admin: Person) -> None:
    project = create_project(admin)
    create_task(admin, project, priority=-5)
    done = finished(admin, upload(admin, f"project_id,title,priority\n{MISSING},A,-5\n"))
    for path in (f"/projects/{project['id']}/tasks/export", f"/uploads/{done['id']}/errors"):
        plain, marked = admin.get(path), admin.get(f"{path}?bom=true")
        assert plain.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert plain.text.startswith("project_id,")
        assert ",-5," in plain.text
        assert marked.content == b"\xef\xbb\xbf" + plain.content


def test_error_rows_are_kept_for_thirty_days(database_url: str) -> None:
    kept = partial(query, database_url, "SELECT count(*) FROM upload_errors")
    age = "UPDATE uploads SET created_at = created_at - $1::interval"
    with serve(DATABASE_URL=database_url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        finished(admin, upload(admin, f"project_id,title\n{MISSING},A\n"))
        query(database_url, age, timedelta(days=29, hours=23))
        time.sleep(1.2)  # what has expired is deleted every second
        assert kept() == [(1,)]
        query(database_url, age, timedelta(hours=1))
        wait_until(lambda: kept() == [(0,)])


OLD_UPLOADS_AND_NEW_ERRORS = """
    INSERT INTO uploads (filename, columns, created_by, state, created_at)
    SELECT 'a.csv', '{}', 1, 'done', now() - interval '40 days' FROM generate_series(1, 50);
    INSERT INTO uploads (filename, columns, created_by, state) VALUES ('b.csv', '{}', 1, 'done');
    INSERT INTO upload_errors (upload_id, line, cells, error)
    SELECT max(id), line, '[]', 'No' FROM uploads, generate_series(1, 20000) AS line GROUP BY line;
    ANALYZE uploads, upload_errors;
"""


def test_error_rows_are_not_read_until_they_expire(database_url: str) -> None:
    sql = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'upload_errors'"
    with serve(DATABASE_URL=database_url):
        execute(database_url, OLD_UPLOADS_AND_NEW_ERRORS)
        time.sleep(1)
        ((before,),) = query(database_url, sql)
        time.sleep(2.5)
        assert query(database_url, sql) == [(before,)]
