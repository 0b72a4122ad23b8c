"""From a graph with time to programs without: states are chosen, then every op gets rows and positions."""

from .programs import derive_chunk, derive_score, derive_source
from .sources import source_graph
from .states import StatePlan, choose_states

__all__ = ["StatePlan", "choose_states", "derive_chunk", "derive_score", "derive_source", "source_graph"]
