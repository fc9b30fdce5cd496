"""Where the judges of a partition table write down what is wrong: bounded, so that a hostile table stays readable."""

from __future__ import annotations

from armvm.spec.verdict import Evidence, Problem

_MOST_OF_A_KIND = 16


class ProblemLog:
    """Problems in the order in which they were found; of each kind the first few, and how many more there were."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[Problem]] = {}
        self._left_out: dict[str, int] = {}

    def add(
        self, code: str, message: str, *, where: str, found: str, expected: str | None = None, serious: bool = True
    ) -> None:
        """Write down one problem."""
        kind = self._kinds.setdefault(code, [])
        if len(kind) < _MOST_OF_A_KIND:
            kind.append(Problem(code, message, Evidence(where, found, expected), serious))
        else:
            self._left_out[code] = self._left_out.get(code, 0) + 1

    def problems(self) -> tuple[Problem, ...]:
        """Everything written down so far, by kind."""
        result: list[Problem] = []
        for code, kind in self._kinds.items():
            result += kind
            if more := self._left_out.get(code):
                last = kind[-1]
                evidence = Evidence("partition table", f"{more} more")
                result.append(Problem(code, f"There are {more} more problems of this kind.", evidence, last.serious))
        return tuple(result)
