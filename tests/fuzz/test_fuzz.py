"""The short form of `make fuzz`: the first cases of each fuzzer break no promise."""

import os

import pytest

from tests.fuzz.__main__ import FUZZERS, fuzzer
from tests.fuzz.harness import Tally, generator, go_on

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))


@pytest.mark.parametrize("name", FUZZERS)
def test_random_cases_break_no_promise(name: str) -> None:
    case, limit = fuzzer(name)
    tally = Tally(seed=0)
    for _ in go_on(case, tally, 100_000, limit):
        assert not tally.failures, next(iter(tally.failures.values()))
        if tally.seconds > SECONDS:
            break
    assert tally.done > 0


def test_a_case_is_repeated_by_its_number() -> None:
    assert generator(3, 7).random() == generator(3, 7).random()
    assert generator(3, 7).random() != generator(3, 8).random()


def test_failures_and_slow_cases_are_counted_and_remembered(tmp_path) -> None:
    def case(random):
        number = random.randrange(3)
        if number == 0:
            raise ValueError("broken")
        while number == 1:
            pass
        return "fine"

    tally = Tally(seed=0)
    for _ in go_on(case, tally, 12, limit=0.05):
        pass
    assert set(tally.labels) == {"fine", "too slow", "failed: ValueError"}
    assert len(tally.failures) == 12 - tally.labels["fine"]
    tally.save(tmp_path / "tally.json")
    assert Tally.read(tmp_path / "tally.json", 0) == tally
    assert Tally.read(tmp_path / "tally.json", 1) == Tally(1)
