"""Asks transformers for the texts in tests/chat_templates/cases.json: run with a Python that has it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent / "chat_templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Says <how> it's there & then: 雨", "parameters": {}},
}
TWO = [{"role": "user", "content": "  Hello & <b>welcome</b>\n"}, {"role": "assistant", "content": " Hi é! "}]
CONVERSATIONS = [
    [TWO[0]],
    [*TWO, {"role": "user", "content": "And now?"}],
    [{"role": "system", "content": " Be kind. "}, *TWO, {"role": "user", "content": "And now?"}],
    [*TWO, {"role": "tool", "content": "5"}, TWO[0], TWO[1], {"role": "user", "content": "third of them"}],
]
VARIABLES = [{}, {"add_generation_prompt": False}, {"tools": [TOOL]}, {"date_string": "26 Jul 2024"}]


def main() -> None:
    cases = []
    for file in sorted(HERE.glob("*.jinja")):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
        tokenizer.chat_template = file.read_text()
        for messages in CONVERSATIONS:
            for variables in VARIABLES:
                case = {"template": file.stem, "messages": messages, "variables": variables}
                options = {"add_generation_prompt": True, **variables}
                try:
                    case["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                except Exception as error:  # what the template raises
                    case["error"] = str(error)
                cases.append(case)
    text = json.dumps({"tokens": TOKENS, "cases": cases}, ensure_ascii=False, indent=1)
    (HERE / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
