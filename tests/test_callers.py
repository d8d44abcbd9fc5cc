"""Limits of sign-ins beyond those of one name from one address, which test_main.py has."""

import secrets

import pytest

from tests.service import Person, Service, log_in, query, refused, sign_up


@pytest.mark.parametrize(
    ("key", "limit"), [("name {username}", 50), ("address {address}", 100), ("address {net}", 100)]
)
def test_too_many_failures_close_a_name_or_an_address(
    key: str, limit: int, admin: Person, own_service: Service
) -> None:
    user, net = sign_up(admin), f"2001:db8:{1 + secrets.randbelow(65535):x}:1::"
    address = f"{net}7" if "net" in key else f"203.0.113.{secrets.randbelow(256)}"
    known = key.format(username=user.username, address=address, net=f"{net}/64")
    sql = """
        INSERT INTO sign_in_attempts (key, attempts) VALUES ($1, $2)
        ON CONFLICT (key) DO UPDATE SET attempts = $2
    """
    query(own_service.database_url, sql, known, limit)
    answer = log_in(user, user.username, X_Forwarded_For=address)
    refused(answer, 429, code="too_many_attempts")
    sql = "SELECT attempts FROM sign_in_attempts WHERE key = $1"
    assert query(own_service.database_url, sql, known) == [(limit,)], "a refusal does not count"
