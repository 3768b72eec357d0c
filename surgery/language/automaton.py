"""Patterns matched in one pass over the text: all ways through a pattern are followed at once.

A regular expression tries one way after another, and of some patterns there are more than anybody
can wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Test = Callable[[str], bool]
_MOST_KNOWN = 20_000


class Automaton:
    """States with a move on a character or free moves; built from left to right.

    ``begin`` and ``end`` enclose a pattern; of several, a text has to match one.
    """

    def __init__(self) -> None:
        self._moves: list[tuple[Test, int] | None] = []
        self._free: list[list[int]] = []
        self._choices: list[tuple[int, list[int]]] = []
        self._start = self._current = self._state()
        self._final = self._state()
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._first: frozenset[int] | None = None

    def begin(self) -> None:
        self._current = self._branch(self._start)

    def end(self) -> None:
        self._free[self._current].append(self._final)

    def one(self, test: Test) -> None:
        """One character that passes ``test``."""
        after = self._state()
        self._moves[self._current] = test, after
        self._current = after

    def many(self, test: Test) -> None:
        """Any number of them."""
        loop = self._branch(self._current)
        self._moves[loop] = test, loop
        self._current = self._branch(loop)

    def components(self) -> None:
        """Any number of components, each with the dot behind it."""
        before = self._current
        self.many(lambda _: True)
        self.one(".".__eq__)
        self._free[before].append(self._current)

    def open(self) -> None:
        """The first of several patterns that may stand here."""
        self._choices.append((self._current, []))
        self._current = self._branch(self._current)

    def otherwise(self) -> None:
        """The next of them."""
        before, ends = self._choices[-1]
        ends.append(self._current)
        self._current = self._branch(before)

    def close(self) -> None:
        """The last of them was there."""
        _, ends = self._choices.pop()
        after = self._branch(self._current)
        for end in ends:
            self._free[end].append(after)
        self._current = after

    def matches(self, text: str) -> bool:
        """Whether all of ``text`` is matched; takes a time that grows with both, and no faster."""
        if self._first is None:
            self._first = self._reached([self._start])
        states = self._first
        for character in text:
            after = self._known.get((states, character))
            if after is None:
                after = self._step(states, character)
            if not after:
                return False
            states = after
        return self._final in states

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        moves = [move for state in states if (move := self._moves[state])]
        after = self._reached(target for test, target in moves if test(character))
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[states, character] = after
        return after

    def _reached(self, states: Iterable[int]) -> frozenset[int]:
        """``states`` and all that free moves lead to."""
        found = set(states)
        waiting = list(found)
        while waiting:
            for state in self._free[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        return frozenset(found)

    def _state(self) -> int:
        self._moves.append(None)
        self._free.append([])
        return len(self._free) - 1

    def _branch(self, state: int) -> int:
        """A new state that a free move from ``state`` leads to."""
        new = self._state()
        self._free[state].append(new)
        return new
