"""From a graph with time to programs without: states are chosen, then every op gets rows and positions."""

from .forms import Form, choose_forms, derive_cheapest, latent_form
from .programs import derive_chunk, derive_score, derive_source
from .sources import graph_behind_source, source_graph
from .states import StatePlan, choose_states

__all__ = [
    "Form",
    "StatePlan",
    "choose_forms",
    "choose_states",
    "derive_cheapest",
    "derive_chunk",
    "derive_score",
    "derive_source",
    "graph_behind_source",
    "latent_form",
    "source_graph",
]
