"""CSV files as spreadsheets write them, in and out.

tests/csv/ has files that were written by the programs that they are named after, from one table;
tests/csv/README.md says how.
"""

import csv
import io
import re
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from main import COLUMNS, ESCAPED, TaskStatus, read_cell, read_rows, write_cell
from tests.service import (
    MISSING,
    Person,
    Service,
    create_project,
    create_task,
    finished,
    ok,
    query,
    refused,
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


def read_errors(admin: Person, done: Any) -> list[dict[str, str]]:
    answer = admin.get(f"/uploads/{done['id']}/errors")
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


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
    "SEP=,": "SEP=,\nproject_id,title,priority\n{p},A,1\n",
    "CR alone": "project_id,title,priority\r{p},A,1\r",
    "no end of the last line": "project_id,title,priority\r\n{p},A,1",
    "padding": "project_id,title,priority,,\n{p},A,1,,\n,,,,\n,,,,\n",
    "blank lines": "project_id,title,priority\n\n\n{p},A,1\n\r\n \n",
    "cells missing at the end": "project_id,priority,title,due_date,repository\n{p},1,A\n",
    "cells that are empty": "project_id,title,priority,due_date,assigned_to\n{p},A,1,,\n",
    "another order and case": " Priority , TITLE ,Project_ID\n1, A ,{p}\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_whatever_its_layout(layout: str, admin: Person) -> None:
    (task,) = import_rows(admin, create_project(admin), LAYOUTS[layout])
    assert task["title"] == "A"
    assert task["priority"] == 1
    assert task["due_date"] is None


@pytest.mark.parametrize("end", ["", " 00:00", " 00:00:00", "T00:00:00.000"])
def test_a_date_may_have_a_midnight(end: str) -> None:
    assert read_cell("due_date", f"2027-01-15{end}") == "2027-01-15"


REFUSED: dict[str, tuple[str | bytes, str, str]] = {
    "a delimiter that is none": ("project_id|title\n1|A\n", "Line 1: ", "project_id|title"),
    "no header": ("1,Order boxes\n", "Line 1: ", "“1”"),
    "an empty file": ("", "Line 1: ", "project_id is missing"),
    "another column": ("project_id,title,colour\n1,A,red\n", "Line 1: ", "“colour”"),
    "a column twice": ("project_id,title,title\n1,A,B\n", "Line 1: ", "title is there twice"),
    "names under sep=": ("sep=;\nproject_id;name\n", "Line 2: ", "“name”"),
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


def test_a_request_without_a_file_is_told_how_to_send_one(admin: Person) -> None:
    forms: list[Any] = [{"data": {"file": "project_id,title\n1,A\n"}}, {"json": {"file": "x"}}]
    for form in [*forms, {"files": {"tasks": ("tasks.csv", b"project_id,title\n1,A\n")}}]:
        problem = refused(admin.post("/upload/csv", **form), 400, "body", "file")
        assert "curl -F file=@tasks.csv" in problem["errors"][0]["msg"]


# Cells, by column, and what is said of them.
REJECTED = {
    ("project_id", str(MISSING)): "There is no such project",
    ("project_id", ""): "This field is required",
    ("project_id", "1.5"): "Expected a whole number",
    ("project_id", "0"): "Expected 1 or more",
    ("title", "   "): "Expected 1 or more characters",
    ("title", "x" * 201): "Expected at most 200 characters",
    ("status", "done"): "Expected 'pending', 'in_progress' or 'completed'",
    ("assigned_to", str(MISSING)): "Expected a member of the project",
    ("assigned_to", "ada"): "Expected a whole number",
    ("priority", "2147483648"): "Expected 2147483647 or less",
    ("priority", "@SUM(1)"): "Expected a whole number",
    ("priority", "-007.5"): "Expected a whole number",
    ("priority", "-" + "9" * 5000): "Expected a whole number",
    ("due_date", "15.01.2027"): "Expected a date, as 2027-01-31",
    ("due_date", "2027-01-15 09:30"): "Expected a date, as 2027-01-31",
    ("due_date", "2027-02-30"): "Expected a date, as 2027-01-31",
    ("due_date", "1899-12-31"): "Expected 1900-01-01 or more",
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
    *rows, last = read_errors(admin, done)
    assert last["error"] == "The row has more cells than the first line has columns"
    for row, came, (column, cell) in zip(rows, sent, REJECTED, strict=True):
        assert row.pop("error") == f"{column}: {REJECTED[column, cell]}"
        assert row.pop("line") == str(sent.index(came) + 3)
        written = {column: f"'{cell}"} if ESCAPED.match(cell) and cell else {}
        assert row == {name: str(text) for name, text in came.items()} | written


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
tables = st.lists(st.lists(cells, min_size=2, max_size=4), max_size=5)


@given(
    rows=tables,
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    start=st.sampled_from(["", "\ufeff", "sep="]),
)
def test_a_table_in_any_dialect_reads_as_it_was(
    rows: list[list[str]], delimiter: str, end: str, start: str
) -> None:
    buffer = io.StringIO()
    buffer.write(f"sep={delimiter}{end}" if start == "sep=" else start)
    # csv quotes the ends of lines of its own dialect only; spreadsheets quote all of them.
    quoting: Any = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([["project_id", "title"], *rows])
    read = [row for _, row in read_rows(io.BytesIO(buffer.getvalue().encode()))]
    assert read == [["project_id", "title"], *rows]


@given(text=cells)
def test_a_text_is_written_harmless_and_read_as_it_was(text: str) -> None:
    written = str(write_cell(text))
    assert not re.match(r"[=+\-@\t\r]", written)
    assert read_cell("title", written) == text
    assert (written != text) == bool(ESCAPED.match(text))


texts = st.sampled_from(["=1+1", "'=1+1", "''-5", "-5 degrees", "'", "''", "@x", "it's", "\tx"])
tasks = st.fixed_dictionaries(
    {"title": (cells | texts).filter(str.strip)},
    optional={
        "description": st.none() | cells | texts,
        "status": st.sampled_from([*TaskStatus]),
        "priority": st.integers(-(2**31), 2**31 - 1),
        "due_date": st.dates(date(1900, 1, 1), date(9998, 12, 31)).map(str),
        "assigned_to": st.just("the member"),
    },
)


@settings(max_examples=5, deadline=None, suppress_health_check=[*HealthCheck])
@given(written=st.lists(tasks, min_size=3, max_size=8))
def test_any_tasks_are_the_same_after_an_export_and_an_upload(
    written: list[dict[str, Any]], admin: Person, member: Person
) -> None:
    first, second = create_project(admin, member), create_project(admin, member)
    for fields in written:
        person = {"assigned_to": member.id} if "assigned_to" in fields else {}
        create_task(admin, first, **fields | person)
    export = member.get(f"/projects/{first['id']}/tasks/export").content
    moved = re.sub(rf"(?m)^{first['id']},".encode(), f"{second['id']},".encode(), export)
    copies = import_rows(admin, second, moved)
    tasks = walk(admin, f"/projects/{first['id']}/tasks/?sort=id")
    assert [without(task, *OWN) for task in copies] == [without(task, *OWN) for task in tasks]


@pytest.fixture(scope="module")
def member(admin: Person) -> Person:
    return sign_up(admin)


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


def test_a_file_keeps_its_name_in_the_name_of_its_errors(admin: Person) -> None:
    accepted = upload(admin, f"project_id,title\n{MISSING},A\n", "Aufgaben März.CSV")
    done = finished(admin, accepted)
    disposition = admin.get(f"/uploads/{done['id']}/errors").headers["Content-Disposition"]
    assert 'filename="Aufgaben M_rz_errors.csv"' in disposition
    assert "filename*=UTF-8''Aufgaben%20M%C3%A4rz_errors.csv" in disposition


def test_error_rows_are_kept_for_thirty_days(admin: Person, own_service: Service) -> None:
    done = finished(admin, upload(admin, f"project_id,title\n{MISSING},A\n"))
    url = own_service.database_url
    kept = "SELECT count(*) FROM upload_errors WHERE upload_id = $1"
    age = "UPDATE uploads SET created_at = created_at - $2::interval WHERE id = $1"
    query(url, age, done["id"], timedelta(days=29, hours=23))
    time.sleep(1.2)  # what has expired is deleted every second
    assert query(url, kept, done["id"]) == [(1,)]
    query(url, age, done["id"], timedelta(hours=1))
    wait_until(lambda: query(url, kept, done["id"]) == [(0,)])
