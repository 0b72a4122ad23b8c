"""What the stages of a model would cost on a target: a step of decoding behind a full context, predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node

if TYPE_CHECKING:
    from ...compiler.cost.prediction import Prediction
    from ...compiler.cost.targets import Target
    from ...compiler.measures import Measure

DTYPE = "bf16"  # of weights and values, as systolic cost takes by default


@dataclass(frozen=True)
class StageCosts:
    """Predictions for ``rows`` rows at the last of ``context`` positions."""

    target: Target
    rows: int
    context: int

    @classmethod
    def on(cls, target: str, rows: int, context: int) -> StageCosts:
        """For a target by its name, or its file; ``SystolicError`` for one that does not exist."""
        from ...compiler.cost import load_target

        return cls(load_target(target), rows, context)

    @property
    def title(self) -> str:
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}"
        return f"a step of {rows} behind {self.context - 1:,} positions on {self.target.name}, {DTYPE}"

    def predict(self, graph: Graph) -> Prediction | None:
        """The costs of a graph with time; of one that reads its future, those of the whole text. None where
        nothing can be derived from it."""
        from ...compiler.cost.prediction import plan_program, predict

        phase = "decode" if graph.certificate().leak is None else "prefill"
        try:
            plan = plan_program(graph, self.target, context=self.context, phase=phase, dtype=DTYPE)
        except SystolicError:
            return None
        return predict(plan, self.rows)

    def measure(self, graph: Graph, shown: Graph) -> Measure:
        """Nanoseconds by node of ``shown``, where programs are derived from ``graph``.

        The nodes of a region run as one: its time stands at the last of them that is shown. What only the
        program has, such as its masks, stands nowhere.
        """
        found, costs = self.predict(graph), dict.fromkeys((node.name for node in shown.nodes), 0.0)
        if found is None:
            raise SystolicError(f"no program can be derived from {graph.name}, so it has no column cost")
        for region, cost in zip(found.regions, found.costs, strict=True):
            at = next((name for name in reversed(region.nodes) if name in costs), None)
            if at is not None:
                costs[at] += 1e9 * cost.seconds

        def nanoseconds(node: Node) -> int:
            return round(costs[node.name])

        return nanoseconds
