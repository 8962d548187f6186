"""How far a run has come: what its loop counts, and what answers its cells must know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class RunState:
    """Counts the replies of a run's root LM (iterations) and its cells, each from 1."""

    run_id: str
    max_iterations: int
    iteration: int = 0
    _iteration_of_cell: list[int] = field(default_factory=list)

    def begin_cell(self) -> int:
        """The number of a cell that begins now."""
        self._iteration_of_cell.append(self.iteration)
        return len(self._iteration_of_cell)

    def iteration_of(self, cell: int) -> int:
        """The iteration that the cell is of; the current one for a number that no cell has."""
        known = 0 < cell <= len(self._iteration_of_cell)
        return self._iteration_of_cell[cell - 1] if known else self.iteration

    def replies(self) -> dict[str, float | None]:
        """Replies of the root LM: how many it has "spent", and has "left"."""
        return {"spent": self.iteration, "left": max(0, self.max_iterations - self.iteration)}
