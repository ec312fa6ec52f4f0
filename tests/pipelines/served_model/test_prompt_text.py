"""The user's last turn out of token ids, under the chat templates of several families."""

from collections.abc import Sequence
from typing import Any

import pytest
from jinja2 import Environment

from pipelines.served_model.prompt_text import prompt_reader

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
VICUNA = (
    "A chat.{% for m in messages %}{% if m['role'] == 'user' %} USER: {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %} ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
WITHOUT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


class Characters:
    """A tokenizer whose ids are code points, with a chat template."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, chat: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        """Render."""
        assert not tokenize
        template = Environment(autoescape=False).from_string(str(self.chat_template))
        return template.render(messages=chat, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text, special tokens left out or not."""
        text = "".join(map(chr, ids))
        for special in SPECIAL if skip_special_tokens else ():
            text = text.replace(special, "")
        return text

    def ids(self, chat: Any) -> list[int]:
        """What an engine gets."""
        return list(map(ord, self.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)))


def turn(role: str, content: str) -> dict[str, str]:
    """A message."""
    return {"role": role, "content": content}


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, MISTRAL, VICUNA, THINKING])
@pytest.mark.parametrize("said", ["Name a prime.", "user\nof many\n\nlines <|im| [x] USER", " spaces "])
def test_only_what_the_user_said_last_is_read(template: str, said: str) -> None:
    """Alone, after other turns, and after a system prompt that the template does not know."""
    tokenizer = Characters(template)
    read = prompt_reader(tokenizer)
    earlier = [turn("user", "Before."), turn("assistant", "Indeed.")]
    assert read(tokenizer.ids([turn("user", said)])) == said
    assert read(tokenizer.ids([*earlier, turn("user", said)])) == said
    if template in (CHATML, LLAMA_3):
        assert read(tokenizer.ids([turn("system", "Be brief."), *earlier, turn("user", said)])) == said


@pytest.mark.parametrize("template", [None, WITHOUT, "{{ raise_exception('no') }}", CHATML])
def test_ids_without_turns_are_read_whole(template: str | None) -> None:
    """A completion has no turns, and some templates write none."""
    read = prompt_reader(Characters(template))
    assert read(list(map(ord, "Once upon a time<|eot_id|>"))) == "Once upon a time"
