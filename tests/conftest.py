"""Until all tests import from there."""

from tests.github import *  # noqa: F403
from tests.service import *  # noqa: F403
