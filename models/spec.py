"""config.json, read with types: a family declares the fields that it understands, and no others pass.

A model is a frozen dataclass whose fields are named like those of its config.json. ``Config.read``
fills it, checks every type, and refuses a field that the model does not know, unless it is known not
to change what the model computes: in any family (``HARMLESS``) or in this one (``model.harmless``).
Where files call a field differently, ``model.aliases`` maps their name to the model's. So a quirk of a
checkpoint is either built or an error.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..ir.errors import SystolicError

Model = TypeVar("Model")
Size = Annotated[int, "at least 1"]  # the annotation of a field that counts something

# What hub files hold beside the model itself: where it came from, how it was trained, how its
# classes are called, and defaults of text generation. None of it changes the logits of a token.
_ORIGIN = """_name_or_path _commit_hash architectures auto_map model_type transformers_version
    transformers.js_config unsloth_version unsloth_fixed is_llama_config task_specific_params
    finetuning_task tokenizer_class vocab_file max_sequence_length torch_dtype dtype"""
_TRAINING = """initializer_range initializer_factor attention_dropout attention_probs_dropout_prob
    hidden_dropout hidden_dropout_prob attn_pdrop embd_pdrop resid_pdrop classifier_dropout
    gradient_checkpointing router_aux_loss_coef output_router_logits ignore_index"""
_IMPLEMENTATION = """use_cache cache_implementation output_past n_ctx return_dict output_attentions
    output_hidden_states torchscript use_bfloat16 chunk_size_feed_forward pretraining_tp
    reorder_and_upcast_attn inference_runner validate_runner_input pre_allocate_kv_cache
    max_batch_size masked_softmax_fusion is_decoder _attn_implementation _attn_implementation_autoset
    _from_model_config _flash_attn_2_enabled mamba_ssm_cache_dtype"""
_HEADS = """id2label label2id num_labels _num_labels problem_type summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj"""
_GENERATION = """bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens prefix mask_init_id"""
HARMLESS = frozenset(" ".join((_ORIGIN, _TRAINING, _IMPLEMENTATION, _HEADS, _GENERATION)).split())


@dataclass(frozen=True)
class Config:
    """One JSON object of a configuration. ``source`` names the file, and the field inside it."""

    source: str
    values: Mapping[str, Any]

    def read(self, model: type[Model]) -> Model:
        """The dataclass ``model`` with its fields taken from here.

        Raises ``SystolicError`` for a missing field, one of the wrong type, or one that is unknown.
        """
        hints = get_type_hints(model, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(model)}  # type: ignore[arg-type]
        aliases: Mapping[str, str] = getattr(model, "aliases", {})
        self._refuse_unknown(getattr(model, "harmless", frozenset()) | set(fields) | set(aliases))
        given: dict[str, Any] = {}
        for name, field in fields.items():
            names = [alias for alias, meant in aliases.items() if meant == name] + [name]
            present = [alias for alias in names if alias in self.values]
            if present:
                given[name] = self._typed(present[0], hints[name])
            elif field.default is dataclasses.MISSING:
                raise SystolicError(f"{self.source}: {names[0]} is missing")
            if any(self.values[other] != self.values[present[0]] for other in present[1:]):
                raise SystolicError(f"{self.source}: {present[1]} contradicts {present[0]}")
        try:
            return model(**given)
        except SystolicError as error:  # fields that contradict each other
            raise SystolicError(f"{self.source}: {error}") from None

    def _typed(self, name: str, hint: Any) -> Any:
        if get_origin(hint) in (Union, types.UnionType):
            if self.values[name] is None:
                return None
            hint = next(option for option in get_args(hint) if option is not type(None))
        return _READERS[hint](self, name)

    def _refuse_unknown(self, known: Set[str]) -> None:
        for name, value in self.values.items():
            empty = value is None or value is False or value in ("", [], {})
            if name not in known and name not in HARMLESS and not empty:
                raise SystolicError(
                    f"{self.source}: {name} is {_shown(value)}, a field that this model's builder does not "
                    "know; remove it if it does not change what the model computes"
                )

    def _expected(self, name: str, expected: str) -> SystolicError:
        if name not in self.values:
            return SystolicError(f"{self.source}: {name} is missing; it must be {expected}")
        return SystolicError(f"{self.source}: {name} must be {expected}, not {_shown(self.values[name])}")

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._expected(name, "a whole number")
        return value

    def size(self, name: str) -> int:
        """A whole number that is at least 1."""
        if self.integer(name) < 1:
            raise self._expected(name, "at least 1")
        return self.integer(name)

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._expected(name, "a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        values = self.values.get(name)
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise self._expected(name, "a list of numbers")
        return tuple(map(float, values))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self.values.get(name)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise self._expected(name, "a list of whole numbers")
        return tuple(values)

    def boolean(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self._expected(name, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self._expected(name, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.values.get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self._expected(name, "a list of texts")
        return tuple(values)

    def section(self, name: str) -> Config:
        """An object inside this one; its errors name it."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._expected(name, "an object")
        return Config(f"{self.source}: {name}", value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing (absent or null): always as a tuple."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise self._expected(name, "a token id or a list of them")
        return tuple(ids)


_READERS: Mapping[Any, Callable[[Config, str], Any]] = {
    int: Config.integer,
    Size: Config.size,
    float: Config.number,
    tuple[float, ...]: Config.numbers,
    tuple[int, ...]: Config.integers,
    tuple[str, ...]: Config.texts,
    bool: Config.boolean,
    str: Config.text,
    Config: Config.section,
}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _decode_object(pairs: dict[str, Any]) -> Any:
    # The 5.x layout writes numbers that JSON lacks as {"__float__": "Infinity"}.
    return float(pairs["__float__"]) if set(pairs) == {"__float__"} else pairs


def decode_json(text: str) -> Any:
    """JSON as checkpoints have it, with the library's form of infinity; ``ValueError`` if it is not JSON."""
    return json.loads(text, object_hook=_decode_object)


def read_config(path: Path) -> Config:
    """A JSON file that holds one object; ``SystolicError`` if it is missing or something else."""
    try:
        values = decode_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystolicError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise SystolicError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise SystolicError(f"{path}: must hold a JSON object, not {_shown(values)}")
    return Config(str(path), values)
