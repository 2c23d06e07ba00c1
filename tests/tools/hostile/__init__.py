"""Caches that were made to do harm: `CASES` of one cache each, and `RANDOM` of many; see `__main__`."""

from tests.tools.hostile import generations, objects, plans, random_changes, tables  # noqa: F401 - they fill both
from tests.tools.hostile.cases import CASES as CASES
from tests.tools.hostile.cases import RANDOM as RANDOM
