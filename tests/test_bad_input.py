"""Invalid input, class by class: refused in one format, nothing of it stored or repeated.

Requests are bytes sent over a socket, because no HTTP client would send most of them. Values stand
as in JSON.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import jwt
import pytest

from tests.service import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    SECRET,
    Person,
    Service,
    create_project,
    create_task,
    finished,
    ok,
    query,
    refused,
    send_raw,
    serve,
    sign_up,
    upload,
    without,
)

JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = "Content-Type: multipart/form-data; boundary=B"
CHUNKED = "Transfer-Encoding: chunked"
FILE_START = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
KIBIBYTE = 1024


def message(start: str, *headers: str, body: bytes | str = b"", key: str | None = KEYS[0]) -> bytes:
    """An HTTP request, with JSON and the length of the body unless the headers say otherwise."""
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    lines = [f"{start} HTTP/1.1", "Host: x", "Connection: close", *headers]
    given = "\n".join(headers).lower()
    if key is not None:
        lines.append(f"X-API-Key: {key}")
    if content and "content-type" not in given:
        lines.append(JSON)
    if content and not re.search("content-length|transfer-encoding", given):
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def send(service: Service, text: bytes) -> httpx.Response:
    begun = time.monotonic()
    status, headers, body = send_raw(service, text)
    assert time.monotonic() - begun < 2, "each case is answered soon"
    return httpx.Response(status, headers=headers, content=body)


def stored(service: Service) -> list[tuple[Any, ...]]:
    """Each table, the number of its rows, and a digest; not those that count failed sign-ins."""
    sql = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ '^(pg|sql|sign)_'"
    digest = "SELECT '{0}', count(*), md5(string_agg(r::text, '' ORDER BY r::text)) FROM {0} AS r"
    tables = sorted(query(service.database_url, sql))
    return query(service.database_url, " UNION ".join(digest.format(*table) for table in tables))


Refuses = Callable[..., None]


@pytest.fixture
def refuses(own_service: Service, subtests: pytest.Subtests) -> Refuses:
    """Send each message: it is refused with one of the statuses, and nothing is stored."""

    def send_all(messages: Iterable[bytes], *statuses: int) -> None:
        before = stored(own_service)
        for text in messages:
            with subtests.test(f"{text[:110]!r}"):
                answer = send(own_service, text)
                assert answer.status_code in (statuses or (400,)), answer.text[:300]
                assert len(refused(answer, answer.status_code).get("errors", [])) <= 20
                assert "Location" not in answer.headers
        assert stored(own_service) == before

    return send_all


DIGITS, DEEP, ACCENTS = "9" * 5000, "[" * 500 + "]" * 500, "x" + "\u0301" * 31
DOCUMENTS: list[str | bytes] = [
    *(MARKER, "null", '[{"name": "x"}]', "{}", '{"name": "x"} x', "[" * 100_000),
    *(b'{"name": "\xe9"}', '{"name": "\ud800"}', json.dumps(dict.fromkeys(map(str, range(50))))),
]
UPLOAD_FORMS = [b"", b"x", b"--B--\r\n", FILE_START + b"x", b"--B\r\n\r\n\r\n--B--\r\n"]
# Invalid values, of each field.
PROJECT_FIELDS = {
    "name": r'null true 5 ["x"] "" "\u0020\t" "x\u0000" "x\ud800" NaN -Infinity 1e400 [1e400]'
    rf' {DIGITS} {DEEP} "{"a" * 201}" "{ACCENTS}"',
    "description": rf'5 "\u0000" "\ud800" NaN "{"a" * 10_001}"',
} | dict.fromkeys(("unknown", "id", "version", "created_by", "NAME", "", "\\udfff"), "1")
TASK_FIELDS = {
    "priority": '1.5 "5" true null 2147483648 -2147483649 NaN',
    "completed": '0 1 "yes" null',
    "status": r'"done" "" 1 null ["pending"]',
    "due_date": r'"2023-02-29" "20230101" "2023-1-1" "1899-12-31" "9999-12-31" "\uff12023-01-01"'
    ' "2023-01-01T00:00:00" "86400" 0 1.5',
    "assigned_to": f'0 -1 1.0 "1" true {2**63} {MISSING} {DIGITS}',
    "repository": r'"../user" "a/b?c" "a/.." "a/b/c" "a/b\n" "a@b/c" "a" "-a/b" "a\\b/c" 5'
    r' "https://evil.example/a/b" "a/%2e%2e" "a\uff0fb" "a/b\u0000"',
    "project_id": "2",
}
ACCOUNT_FIELDS = {
    "username": rf'"ab" "a\u0020b" "\u0430da" "\u212aelvin" "a/b" null "{"x" * 51}"',
    "email": rf'"a" "a@" "a@b@c" "a@b\r\nBcc:c@d" "a@b\u0000" 5 "a@{"b" * 253}"',
    "password": rf'"aaaaaaa" "aaaaaaaa\u0000" 12345678 null "{"a" * 129}"',
    "role": '"admin"',
    "is_active": "true",
}
USER_FIELDS = {"role": '"root" null', "is_active": "0 null", "username": '"x"', "password": "null"}
WORDS = rf'"\u0000" "\ud800" 5 null {{"$gt":""}} "{"x" * 10_000}" "{ACCENTS}"'


def with_fields(fields: dict[str, str], **valid: str) -> list[str]:
    """A JSON object for each value, with the other fields that are valid."""
    objects = []
    for name, values in fields.items():
        beside = "".join(f'"{n}": "{value}", ' for n, value in valid.items() if n != name)
        objects += [f'{{{beside}"{name}": {value}}}' for value in values.split()]
    return objects


def test_a_body_of_another_kind_is_refused(admin: Person, refuses: Refuses) -> None:
    refuses([message("POST /projects/", body=body) for body in DOCUMENTS])
    refuses([message("POST /projects/", FORM, body='{"name": "x"}')])
    refuses([message("POST /upload/csv", MULTIPART, body=body) for body in UPLOAD_FORMS])
    many = refused(admin.post("/projects/", json={f"f{n}": 1 for n in range(101)}), 400, "body")
    assert many["errors"][0]["msg"] == "Expected at most 100 fields"


def test_an_invalid_field_is_refused_in_every_write(admin: Person, refuses: Refuses) -> None:
    project = create_project(admin)
    path, task = f"/projects/{project['id']}", f"/tasks/{create_task(admin, project)['id']}"
    refuses([message("POST /projects/", body=b) for b in with_fields(PROJECT_FIELDS, name="x")])
    refuses([message(f"POST {path}/tasks/", body=b) for b in with_fields(TASK_FIELDS, title="x")])
    refuses([message(f"PUT {path}", body=b) for b in with_fields(PROJECT_FIELDS)])
    refuses([message(f"PATCH {task}", body=b) for b in ["{}", *with_fields(TASK_FIELDS)]])
    projects = {"project_id": f'0 -1 {2**63} {MISSING} "1" 1.0'}
    refuses([message("POST /tasks/", body=b) for b in with_fields(projects, title="x")], 400, 404)


def test_an_invalid_account_or_login_is_refused(admin: Person, refuses: Refuses) -> None:
    accounts = with_fields(ACCOUNT_FIELDS, username="SERVICE", password=PASSWORD)
    refuses([message("POST /auth/register", body=body, key=None) for body in accounts])
    path = f"PATCH /users/{sign_up(admin).id}"
    refuses([message(path, body=b) for b in ["{}", *with_fields(USER_FIELDS)]])
    both = {"username": WORDS, "password": WORDS}
    logins = with_fields(both, username="ada", password="x")  # noqa: S106
    refuses([message("POST /auth/login", body=body, key=None) for body in logins])


IDS = f"abc NaN -1 0 1'-- %00 %ff %ed%a0%80 1%2f2 %C2%B9 1.5 {2**63 - 1} {2**63} {DIGITS}"
NOWHERE = f"/nope%00 /%ff /{MARKER} //evil.example /tasks//1 /LIVEZ /api/v1/api/v1/livez"
QUERIES = f"""
    limit=0 limit=201 limit={2**64} limit=5.5 limit= Limit=1 limit%00=1 =1 statsu=done
    offset=-1 offset={2**63} offset={DIGITS} count=maybe completed=maybe
    sort=version sort=id,priority status=done status= status=pending{"&status=pending" * 10}
    q=%00 q= q=x{"%CC%81" * 31} assigned_to=me assigned_to=-1 project_id={2**63} repository=a%00/b
    due_before=2023-02-29 due_after=0 due_after=10000-01-01 due_after=2023-01-01T00:00:00Z
    updated_after=0 updated_after=2023-01-01 updated_after=9999-12-31T23:59:59-23:59
    updated_after=0001-01-01T00:00:00%2B23:59 cursor=x cursor=%00 cursor={"A" * 7000}
    cursor=-priority.1. cursor=priority.1.1 cursor=-priority.{2**63}.1 cursor=-priority.1.1&offset=1
"""
MISMATCHED = ['"99999999999999999999"', '"01"', '""', ",".join(f'"{n}"' for n in range(2, 999))]
MALFORMED = ["1", '"1', "'1'", "\u00b9", MARKER, "**"]


def test_a_path_to_nothing_is_not_found_or_invalid(refuses: Refuses) -> None:
    paths = ["GET /tasks/{}", "GET /uploads/{}/errors", "PUT /projects/1/members/{}"]
    refuses([message(path.format(bad)) for path in paths for bad in IDS.split()], 400, 404)
    refuses([message(f"GET {path}") for path in NOWHERE.split()], 404)


def test_an_invalid_query_is_refused(refuses: Refuses) -> None:
    refuses([message(f"GET /tasks/?{text}") for text in QUERIES.split()])
    lists = ("/projects/", "/users/", "/uploads/", "/projects/1/members/", "/projects/1/tasks/")
    refuses([message(f"GET {path}?statsu=done") for path in lists])


def test_an_invalid_header_is_refused(admin: Person, refuses: Refuses) -> None:
    task = f"/tasks/{create_task(admin, create_project(admin))['id']}"
    refuses([message(f"DELETE {task}", f"If-Match: {tag}") for tag in MISMATCHED], 412)
    refuses([message(f"DELETE {task}", f"If-Match: {tag}") for tag in MALFORMED])
    keys = [f"Idempotency-Key: {key}" for key in ("", "a b", "\xe9", "x" * 256)]
    refuses([message("POST /projects/", key, body='{"name": "x"}') for key in keys])


API_KEYS = ["", MARKER, f"{KEYS[0]}\xe9", "\xff\xfe", ",".join(KEYS), KEYS[0].upper()]
AUTHORIZATIONS = ["", "Bearer", "Basic dXNlcjpwYXNz", "\xe9\xff \xff", "Bearer ..", "Bearer *.*.*"]
JWS = jwt.PyJWS()  # takes claims that PyJWT would not sign
ODD: list[Any] = [None, True, 5, -1, "", "0", "x", "1\0", "1 OR 1=1", DIGITS, str(MISSING), [1], {}]
ODD += [float("nan"), float("inf"), 10**18, 10**30, "infinity", "0001-01-01T00:00:00+23:59"]


def bad_tokens(token: str) -> list[str]:
    """Tokens that are no good, made from one that is."""
    claims = jwt.decode(token, options={"verify_signature": False})
    payloads = [claims | {claim: value} for claim in claims for value in ODD]
    payloads += [without(claims, claim) for claim in claims]
    bad = [JWS.encode(json.dumps(payload).encode(), SECRET) for payload in payloads]
    bad += [jwt.encode(claims, f"{SECRET} "), jwt.encode(claims, "", "none")]
    bad += [jwt.encode(claims, SECRET, "HS512")]
    head, payload, seal = token.split(".")
    return [*bad, f"{head}.{payload}.", f"{head}.{payload}", head, f"{token}.{seal}", token[:-4]]


def test_bad_credentials_are_unauthorized(admin: Person, refuses: Refuses) -> None:
    person = sign_up(admin)
    access, refresh = person.tokens["access_token"], person.tokens["refresh_token"]
    headers = [f"Authorization: {text}" for text in [*AUTHORIZATIONS, access, f"Bearer, {access}"]]
    headers += [f"Authorization: Bearer {token}" for token in [*bad_tokens(access), refresh]]
    headers += [f"X-API-Key: {key}" for key in API_KEYS] + [f"Cookie: X-API-Key={KEYS[0]}"]
    refuses([message("GET /tasks/?limit=0", header, key=None) for header in headers], 401)
    refuses([message("GET /auth/me", f"Authorization: Bearer {access}", key=MARKER)], 401)
    tokens = [token for token in [*bad_tokens(refresh), access, "..", ""] if len(token) < 4000]
    bodies = [json.dumps({"refresh_token": token}) for token in tokens]
    refuses([message("POST /auth/refresh", body=body, key=None) for body in bodies], 401)
    wrong = with_fields({"refresh_token": r'5 null {"$gt":""} "\ud800.a.b"'})
    refuses([message("POST /auth/refresh", body=body, key=None) for body in wrong])


def test_no_byte_of_a_file_is_read_for_a_stranger(refuses: Refuses) -> None:
    for key in (MARKER, None):
        refuses([message("POST /upload/csv", MULTIPART, CHUNKED, key=key)], 401)


TOKEN_FORMS = [b"", b"username=ada&password=", b"username=%00&password=x", b"\xff=1", b"&" * 16_000]
FILENAMES = ["../../etc/passwd", "..\\boot.ini", "a\\\r\nX-Evil: 1.csv", 'a"b.csv', "x" * 3000]


def test_an_invalid_token_form_is_an_error_of_oauth2(own_service: Service) -> None:
    errors = dict.fromkeys(TOKEN_FORMS, "invalid_request")
    errors |= {b"grant_type=client_credentials": "unsupported_grant_type"}
    for body, error in errors.items():
        answer = send(own_service, message("POST /auth/token", FORM, body=body, key=None))
        assert refused(answer, 400)["error"] == error


def test_the_name_of_a_file_cannot_leave_its_header_or_its_folder(admin: Person) -> None:
    for name in FILENAMES:
        found = finished(admin, upload(admin, f"project_id,title\n{MISSING},T\n", name))
        assert re.fullmatch(r"[^/\\\x00-\x1f\x7f\u2028]{1,255}", found["filename"])
        errors = admin.get(f"/uploads/{found['id']}/errors")
        disposition = r"attachment; filename=\"[\w .()-]+\"; filename\*=UTF-8''[\w.()%~-]+"
        assert re.fullmatch(disposition, errors.headers["Content-Disposition"], re.ASCII)
        assert "X-Evil" not in errors.headers


# The bytes that each kind of endpoint takes.
LIMITS = {
    ("POST /auth/login", JSON): 16 * KIBIBYTE,
    ("POST /auth/token", FORM): 16 * KIBIBYTE,
    ("POST /projects/", JSON): 256 * KIBIBYTE,
    ("POST /upload/csv", MULTIPART): 65 * KIBIBYTE * KIBIBYTE,
}


def test_a_body_over_the_limit_is_refused(admin: Person, refuses: Refuses) -> None:
    for start, limit in LIMITS.items():
        begun = FILE_START if MULTIPART in start else MARKER.encode()
        chunk = b"%x\r\n" % (limit + 1) + begun.ljust(limit + 1) + b"\r\n0\r\n\r\n"
        declared = [message(*start, f"Content-Length: {size}") for size in (limit + 1, 10**12)]
        refuses([*declared, message(*start, CHUNKED, body=chunk)], 413)
    longest = message("POST /projects/", body='{"name": "x"}'.ljust(256 * KIBIBYTE))
    assert send(admin.service, longest).status_code == 201


def test_a_bug_is_a_500_that_tells_nothing(database_url: str) -> None:
    with serve(DATABASE_URL=database_url, tracebacks=True) as own:
        admin = own.client(X_API_Key=KEYS[0])
        project = create_project(admin)["id"]
        query(database_url, f"ALTER TABLE tasks ADD CONSTRAINT {MARKER} CHECK (title <> 'x')")
        headers = {"Idempotency-Key": "failed", "X-Request-ID": "request-of-the-bug"}
        body = {"title": "x", "project_id": project}
        failed = admin.post("/tasks/", json=body, headers=headers)
        assert "errors" not in refused(failed, 500, code="internal_error")
        assert "request-of-the-bug" in own.log_text()
        given_up = finished(admin, upload(admin, f"project_id,title\n{project},x\n"))
        assert given_up["state"] == "failed"
        assert given_up["error"] == "An internal error occurred; see the log."
        assert own.log_text().count(f"Import of upload {given_up['id']}: ") == 3
        query(database_url, f"ALTER TABLE tasks DROP CONSTRAINT {MARKER}")
        assert ok(admin.post("/tasks/", json=body, headers=headers), 201)["title"] == "x"
