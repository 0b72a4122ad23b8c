"""The sizes of a transformer that config.json names, for peers whose graphs are written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Sized:
    """Llama's and Mistral's names of sizes, or GPT-2's, by which they are found."""

    config: Mapping[str, Any]

    @property
    def layers(self) -> int:
        return int(self.config.get("n_layer") or self.config["num_hidden_layers"])

    @property
    def heads(self) -> int:
        return int(self.config.get("n_head") or self.config["num_attention_heads"])

    @property
    def key_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        width = self.config.get("n_embd") or self.config["hidden_size"]
        return int(self.config.get("head_dim") or width // self.heads)
