"""CSV files as spreadsheets write them, in and out.

tests/csv/ has files that were written by the programs that they are named after, from one table;
tests/csv/README.md says how.
"""

import csv
import io
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from main import COLUMNS, ESCAPED, TaskStatus, read_cell, read_rows, write_cell
from tests.service import (
    KEYS,
    MISSING,
    NewDatabase,
    Person,
    create_project,
    create_task,
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


def read_errors(admin: Person, done: Any) -> list[dict[str, str]]:
    answer = admin.get(f"/uploads/{done['id']}/errors")
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


# --------------------------------------------------------------------------------------- in


@pytest.fixture(scope="module")
def fresh(new_database: NewDatabase) -> Iterator[Person]:
    """The admin of a service of its own, in which the first project is number 1."""
    with new_database() as url, serve(DATABASE_URL=url) as own:
        yield own.client(X_API_Key=KEYS[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_a_program_becomes_its_tasks(path: Path, fresh: Person) -> None:
    if not ok(fresh.get("/projects/")) or ok(fresh.get("/projects/"))[0]["id"] != 1:
        create_project(fresh)
    known = {task["id"] for task in walk(fresh, "/projects/1/tasks/")}
    done = finished(fresh, upload(fresh, path.read_bytes()))
    assert done["rows_rejected"] == 0, read_errors(fresh, done)
    tasks = [t for t in walk(fresh, "/projects/1/tasks/?sort=id") if t["id"] not in known]
    columns = ("title", "description", "status", "priority", "due_date")
    assert [[task[name] for name in columns] for task in tasks] == [
        ["Größe prüfen", 'Ein "Zitat"; mit, Zeichen', "in_progress", 2, "2027-01-15"],
        ["Ελληνικά", "zwei\nZeilen", "pending", 0, None],
        ["=1+1", None, "completed", -5, "2027-12-31"],
    ]


LAYOUTS = {
    "semicolons": "project_id;title;priority\n{p};A;1\n",
    "tabs": "project_id\ttitle\tpriority\n{p}\tA\t1\n",
    "sep=": "sep=;\r\nproject_id;title;priority\r\n{p};A;1\r\n",
    "SEP=,": "SEP=,\nproject_id,title,priority\n{p},A,1\n",
    "a byte order mark": "\ufeffproject_id,title,priority\n{p},A,1\n",
    "CR alone": "project_id,title,priority\r{p},A,1\r",
    "no end of the last line": "project_id,title,priority\r\n{p},A,1",
    "padding": "project_id,title,priority,,\n{p},A,1,,\n,,,,\n,,,,\n",
    "blank lines": "project_id,title,priority\n\n\n{p},A,1\n\r\n \n",
    "cells missing at the end": "project_id,priority,title,due_date,repository\n{p},1,A\n",
    "cells that are empty": "project_id,title,priority,due_date,assigned_to\n{p},A,1,,\n",
    "floats": "project_id,title,priority,assigned_to\n{p}.0,A,1.0,\n",
    "another order and case": " Priority , TITLE ,Project_ID\n1, A ,{p}\n",
    "quoted names": '"project_id";"title";"priority"\n"{p}";"A";"1"\n',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_whatever_its_layout(layout: str, admin: Person) -> None:
    (task,) = import_rows(admin, create_project(admin), LAYOUTS[layout])
    assert task["title"] == "A"
    assert task["priority"] == 1
    assert task["due_date"] is None


@pytest.mark.parametrize("cell", ["2027-01-15", "2027-01-15 00:00:00", "2027-01-15T00:00:00.000"])
def test_a_date_may_have_a_midnight(cell: str, admin: Person) -> None:
    content = f"project_id,title,due_date\n{{p}},A,{cell}\n"
    (task,) = import_rows(admin, create_project(admin), content)
    assert task["due_date"] == "2027-01-15"


REFUSED: dict[str, tuple[str | bytes, str, str]] = {
    "a delimiter that is none": ("project_id|title\n1|A\n", "Line 1: ", "project_id|title"),
    "no header": ("1,Order boxes\n", "Line 1: ", "“1”"),
    "an empty file": ("", "Line 1: ", "project_id is missing"),
    "another column": ("project_id,title,colour\n1,A,red\n", "Line 1: ", "“colour”"),
    "a column twice": ("project_id,title,title\n1,A,B\n", "Line 1: ", "title is there twice"),
    "a column too few": ("title\nA\n", "Line 1: ", "project_id is missing"),
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


@pytest.mark.parametrize(
    "form",
    [
        {"data": {"file": "project_id,title\n1,A\n"}},
        {"files": {"tasks": ("tasks.csv", b"project_id,title\n1,A\n")}},
        {"json": {"file": "project_id,title"}},
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ],
)
def test_a_request_without_a_file_is_told_how_to_send_one(form: Any, admin: Person) -> None:
    problem = refused(admin.post("/upload/csv", **form), 400, "body", "file")
    assert "curl -F file=@tasks.csv" in problem["errors"][0]["msg"]


REJECTED = {
    "project_id": {
        str(MISSING): "project_id: There is no such project",
        "": "project_id: This field is required",
        "1.5": "project_id: Expected a whole number",
        "x": "project_id: Expected a whole number",
        "0": "project_id: Expected 1 or more",
    },
    "title": {
        "   ": "title: This field is required",
        "x" * 201: "title: Expected at most 200 characters",
    },
    "status": {"done": "status: Expected 'pending', 'in_progress' or 'completed'"},
    "assigned_to": {
        str(MISSING): "assigned_to: Expected a member of the project",
        "ada": "assigned_to: Expected a whole number",
    },
    "priority": {
        "high": "priority: Expected a whole number",
        "2147483648": "priority: Expected 2147483647 or less",
        "@SUM(1)": "priority: Expected a whole number",
    },
    "due_date": {
        "15.01.2027": "due_date: Expected a date, as 2027-01-31",
        "2027-01-15 09:30": "due_date: Expected a date, as 2027-01-31",
        "2027-02-30": "due_date: Expected a date, as 2027-01-31",
        "1899-12-31": "due_date: Expected 1900-01-01 or more",
    },
    "repository": {"../user": "repository: Expected owner/name, as on GitHub"},
}


@pytest.mark.parametrize("column", REJECTED)
def test_a_rejected_row_comes_back_with_its_line_and_a_sentence(column: str, admin: Person) -> None:
    good = dict.fromkeys(COLUMNS, "") | {"title": "A", "project_id": create_project(admin)["id"]}
    sent = [good | {column: cell} for cell in REJECTED[column]]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    writer.writerows([good, *sent])
    done = finished(admin, upload(admin, buffer.getvalue()))
    assert done["rows_inserted"] == 1
    lines = 3
    for row, came, reason in zip(
        read_errors(admin, done), sent, REJECTED[column].values(), strict=True
    ):
        assert row.pop("error") == reason
        assert row.pop("line") == str(lines)
        lines += 1
        cell = str(came[column])
        assert row == {name: str(text) for name, text in came.items()} | {
            column: f"'{cell}" if cell.startswith("@") else cell
        }


def test_a_row_with_a_cell_too_many_is_rejected_in_words(admin: Person) -> None:
    done = finished(admin, upload(admin, "project_id,title\n1,A,B\n"))
    (row,) = read_errors(admin, done)
    assert row["error"] == "The row has more cells than the first line has columns"


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


# --------------------------------------------------------------------------------------- out


@given(text=cells)
def test_a_text_is_written_harmless_and_read_as_it_was(text: str) -> None:
    written = str(write_cell(text))
    assert not re.match(r"[=+\-@\t\r]", written)
    assert read_cell("description", written) == text
    assert (written != text) == bool(ESCAPED.match(text))


texts = st.sampled_from(["=1+1", "'=1+1", "''-5", "-5 degrees", "'", "''", "@x", "it's", "\tx"])
tasks = st.fixed_dictionaries(
    {"title": (cells.map(str.strip) | texts.map(str.strip)).filter(bool)},
    optional={
        "description": st.none() | cells | texts,
        "status": st.sampled_from([*TaskStatus]),
        "priority": st.integers(-(2**31), 2**31 - 1),
        "due_date": st.dates(date(1900, 1, 1), date(9998, 12, 31)).map(str),
        "assigned_to": st.just("the member"),
    },
)


@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
@given(written=st.lists(tasks, min_size=1, max_size=8))
def test_any_tasks_are_the_same_after_an_export_and_an_upload(
    written: list[dict[str, Any]], admin: Person, member: Person
) -> None:
    first, second = create_project(admin, member), create_project(admin, member)
    for fields in written:
        person = {"assigned_to": member.id} if "assigned_to" in fields else {}
        create_task(admin, first, **fields | person)
    export = admin.get(f"/projects/{first['id']}/tasks/export").content
    moved = re.sub(rf"(?m)^{first['id']},".encode(), f"{second['id']},".encode(), export)
    copies = import_rows(admin, second, moved)
    tasks = walk(admin, f"/projects/{first['id']}/tasks/?sort=id")
    assert [without(task, *OWN) for task in copies] == [without(task, *OWN) for task in tasks]


@pytest.fixture(scope="module")
def member(admin: Person) -> Person:
    return sign_up(admin)


def test_numbers_stay_numbers_in_an_export(admin: Person) -> None:
    project = create_project(admin)
    create_task(admin, project, priority=-5)
    export = admin.get(f"/projects/{project['id']}/tasks/export")
    (row,) = csv.DictReader(io.StringIO(export.text, newline=""))
    assert row["priority"] == "-5"


def test_a_byte_order_mark_comes_where_it_is_asked_for(admin: Person) -> None:
    project = create_project(admin)
    done = finished(admin, upload(admin, f"project_id,title\n{MISSING},A\n"))
    for path in (f"/projects/{project['id']}/tasks/export", f"/uploads/{done['id']}/errors"):
        assert admin.get(path).content.startswith(b"project_id,")
        assert admin.get(f"{path}?bom=true").content.startswith(b"\xef\xbb\xbfproject_id,")


def test_a_file_keeps_its_name_in_the_name_of_its_errors(admin: Person) -> None:
    accepted = upload(admin, f"project_id,title\n{MISSING},A\n", "Aufgaben März.CSV")
    done = finished(admin, accepted)
    disposition = admin.get(f"/uploads/{done['id']}/errors").headers["Content-Disposition"]
    assert 'filename="Aufgaben M_rz_errors.csv"' in disposition
    assert "filename*=UTF-8''Aufgaben%20M%C3%A4rz_errors.csv" in disposition


def test_error_rows_are_kept_for_thirty_days(fresh: Person) -> None:
    done = finished(fresh, upload(fresh, f"project_id,title\n{MISSING},A\n"))
    url = fresh.service.database_url
    kept = "SELECT count(*) FROM upload_errors WHERE upload_id = $1"
    age = "UPDATE uploads SET created_at = now() - interval '31 days' WHERE id = $1 RETURNING id"
    assert query(url, kept, done["id"]) == [(1,)]
    query(url, age, done["id"])
    wait_until(lambda: query(url, kept, done["id"]) == [(0,)])
