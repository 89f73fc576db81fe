"""The oracle is transformers' own apply_chat_template. The templates here are written for these tests; the
real one comes from a model file.
"""
# ruff: noqa: E501  # templates are written as models ship them, where a line break is part of the language

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.errors import TemplateError, UsageError
from nanollama.text.template import MAX_SOURCE_CHARS, ChatTemplate
from nanollama.types import Message

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
BRACKETS = """{%- if messages[0].role == 'system' -%}
    {%- set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate: user, assistant, user, …') -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        {{- bos_token + '[INST] ' + (system + m.content if loop.index0 == 0 else m.content) | trim + ' [/INST]' -}}
    {%- elif m.role == 'assistant' -%}
        {{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
HEADERS = """{%- set ns = namespace(date=strftime_now('%Y'), system='', n=0) %}
{%- macro header(role) %}<|head|>{{ role }}<|end|>

{% endmacro %}
{{- bos_token }}
{%- for message in messages if message.role == 'system' %}{% set ns.system = ns.system + message.content %}{% endfor %}
{{- header('system') }}Year {{ ns.date }}
{{ ns.system }}<|eot|>
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {{- header(message.role) ~ message.content | trim + '<|eot|>' }}
    {%- if ns.n > 6 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}"""
TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\\n\\n' %}
{%- set loop_messages = messages[1:] %}{% else %}{% set first = "" %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages %}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string %}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable %}{% for part in message['content'] %}{{ part.text }}{% endfor %}{% endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
THINKING = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" and not (message.content.startswith('<result>')) %}
        {%- set ns.found = true %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set reasoning = '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if loop.index0 > ns.last and (loop.last or reasoning) %}{{ '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
ANGLES = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
TOOLS = """{%- if tools %}{{ 'Tools:' }}
{%- for tool in tools %}{{ '\\n' ~ tool | tojson }}{{ '\\n' ~ (tool | tojson(indent=4)) }}
{%- for name, value in tool.function.parameters.properties.items() %}{{ name }}: {{ value.type | upper }}{{ ", " if not loop.last }}{% endfor %}
{{- tool.function|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}
{%- endfor %}{% endif %}
{%- if documents is not none %}{{ documents | length }}{% endif %}
{%- for m in messages %}{{ m | tojson }}{{ m.items() | list | length }}{{ m.get('name', 'nobody') }}{% endfor %}"""
MISTRAL_LIKE = """{%- set system_message = messages[0]["content"] if messages[0]["role"] == "system" else '' %}
{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in messages | rejectattr('role', 'eq', 'system') %}
    {%- if message["role"] == "user" %}
        {{- "[INST]" ~ (system_message ~ '\\n\\n' if message is sameas user_messages[-1] and system_message) ~ message["content"] ~ "[/INST]" }}
    {%- else %}{{- message["content"] | trim ~ eos_token }}{% endif %}
{%- endfor %}"""
ODDS = """{% set greeting %}Hello {{ messages | length }}{% endset %}{{ greeting | upper }}
{#- a comment -#}
{% raw %}{{ not a variable }}{% endraw %}
{{ messages | map(attribute='content') | map('trim') | join(' | ') }}
{{ messages | groupby('role') | map('first') | join(',') }} {{ messages | map(attribute='role') | unique | sort | join }}
{{ '%s has %d%%' % ('x', 5) }} {{ '%s-%s' | format('a', 'b') }} {{ '{} {:>5} {x!r}'.format(1, 2, x='y') }}
{{ messages[0].content[:3] }}{{ messages[0].content[-1:] }}{{ messages[0].content[::-1] | replace('a', 'bb') }}
{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ -3 | abs }} {{ 3.14159 | round(2) }} {{ '5' | int + 1 }}
{{ [1, 2] + [3] }} {{ (1, 'a') }} {{ {'k': [none, true, 1.5]} }} {{ 'ab' * 3 }} {{ [0] * 2 }} {{ range(3) | list }}
{{ missing }}{{ missing is defined }}{{ missing | default('none') }} {{ ['a','b'] is iterable }} {{ 'a' in 'abc' }}
{{ 'x'.center(5) }}{{ 'A b'.lower().title().split() }} {{ 'a\\nb' | indent(2) }} {{ "it's" | tojson }} {{ '<b>' | tojson }}
{% for a, b in [(1, 2), (3, 4)] %}{{ loop.index }}{{ a }}{{ b }}{{ loop.cycle('x', 'y') }}{{ loop.previtem is defined }}{% else %}no{% endfor %}
{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() if caller }}{{ kwargs }}{% endmacro %}{{ m(1) }}{% call m(1, z=3) %}in{% endcall %}
{% filter upper %}shout{% endfilter %} {{ ['b', 'a'] | sort | first }} {{ {'b': 1, 'a': 2} | dictsort }} {{ [1, 2] | sum }}
{% with x = 5 %}{{ x }}{% endwith %} {{ 'yes' if messages else 'no' }} {{ 1 < 2 <= 2 }} {{ not true or false and true }}
{{ cycler('a', 'b').next() }} {{ dict(a=1).a }} {{ '<' | e }} {{ 'a b' | urlencode }} {{ [1, 2, 3] | batch(2) | list }}   """

TEMPLATES = {
    "chatml": CHATML,
    "brackets": BRACKETS,
    "headers": HEADERS,
    "turns": TURNS,
    "thinking": THINKING,
    "angles": ANGLES,
    "tools": TOOLS,
    "mistral-like": MISTRAL_LIKE,
    "odds": ODDS,
    "plain": "{{ messages[-1].content }}",
    "crlf": CHATML.replace("\n", "\r\n"),
    "ends in a newline": "{% for m in messages %}{{ m.content }}\n{% endfor %}\n\n",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "It's <hot> & “cold”",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "día": {"type": "number"}},
        },
    },
}
CONVERSATIONS = {
    "one user": [("user", "Hi")],
    "system and user": [("system", "You are a pirate."), ("user", "  Ahoy? \n")],
    "three turns": [
        ("user", "a"),
        ("assistant", " b "),
        ("user", "c"),
        ("assistant", "d\n"),
        ("user", "é 😀 中文 \u202e"),
    ],
    "system and turns": [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "<think>\nhm\n</think>\n\nok"),
        ("user", "more"),
    ],
    "long": [(("user", "assistant")[i % 2], f"message {i}") for i in range(41)],
    "empty contents": [("system", ""), ("user", ""), ("assistant", ""), ("user", "")],
    "Jinja in contents": [("user", "{{ 7 * 7 }} {% if x %} {# c #} {%- raw -%} }} %}")],
    "control tokens in contents": [("user", "<|im_end|>\n<|im_start|>system\n[INST] <s></s>")],
    "ends with the assistant": [("user", "u"), ("assistant", "a")],
    "two users": [("user", "u"), ("user", "v")],
    "unknown role": [("tool", "<result>1</result>"), ("user", "u")],
}

Oracle = Callable[..., str]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """apply_chat_template of transformers, on a tokenizer that has nothing but BOS and EOS."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
        bos_token="<s>",
        eos_token="</s>",
    )

    def render(source: str, messages: list[tuple[str, str]], **extra: Any) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return tokenizer.apply_chat_template(chat, chat_template=source, tokenize=False, **extra)

    return render


def ours(source: str, messages: list[tuple[str, str]], **extra: Any) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    return template.render([Message(*message) for message in messages], **extra).text


def outcome(render: Oracle, *args: Any, **extra: Any) -> str | None:
    """The text, or None if the template failed."""
    try:
        return render(*args, **extra)
    except Exception:
        return None


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_render_byte_for_byte_as_transformers_does(
    oracle: Oracle, source: str, conversation: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    expected = outcome(oracle, source, conversation, add_generation_prompt=add_generation_prompt)
    assert outcome(ours, source, conversation, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_the_table_renders_something(name: str) -> None:
    assert ours(TEMPLATES[name], CONVERSATIONS["system and user"])


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [TOOL]},
        {"tools": []},
        {"documents": [{"title": "t", "text": "x"}]},
        {"enable_thinking": False},
    ],
)
@pytest.mark.parametrize("name", ["tools", "thinking", "odds"])
def test_further_variables_reach_the_template(oracle: Oracle, name: str, extra: dict[str, Any]) -> None:
    conversation = CONVERSATIONS["system and turns"]
    expected = oracle(TEMPLATES[name], conversation, add_generation_prompt=True, **extra)
    assert ours(TEMPLATES[name], conversation, **extra) == expected


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "<think>", "</think>", "<|im_end|>", "\n", " ", "a"]))
    .map("".join),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=6))
def test_random_conversations_render_as_transformers_does(
    oracle: Oracle, name: str, conversation: list[tuple[str, str]]
) -> None:
    expected = outcome(oracle, TEMPLATES[name], conversation, add_generation_prompt=True)
    assert outcome(ours, TEMPLATES[name], conversation) == expected


@pytest.mark.model
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_template_of_smollm2_renders_as_transformers_does(
    oracle: Oracle, smollm2_path: Any, conversation: list[tuple[str, str]]
) -> None:
    from nanollama.formats.gguf import GGUFFile

    with GGUFFile(smollm2_path) as file:
        source = file.metadata["tokenizer.chat_template"]
    assert ours(source, conversation) == oracle(source, conversation, add_generation_prompt=True)


def test_a_template_that_raises_is_quoted_in_the_error() -> None:
    with pytest.raises(TemplateError, match="Roles must alternate: user, assistant, user, …"):
        ours(BRACKETS, CONVERSATIONS["two users"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if x %}", "not valid Jinja.*endif.*line 1"),
        ("\n\n{{ x | nosuchfilter }}", "No filter named 'nosuchfilter'.*line 3"),
        ("{{ messages[0].nothing.more }}", "failed on this conversation: .*no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'other' %}", "no loader"),
        ("{{ 'x' + 1 }}", "TypeError"),
        ("{{ raise_exception('x' * 5000) }}", "x…$"),
        ("x" * (MAX_SOURCE_CHARS + 1), f"at most {MAX_SOURCE_CHARS:,}"),
    ],
)
def test_a_broken_template_gives_one_sentence(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words) as caught:
        ours(source, [("user", "hi")])
    assert "\n" not in str(caught.value)


def test_a_template_at_the_length_limit_is_accepted() -> None:
    assert ours("x" * MAX_SOURCE_CHARS, [("user", "hi")]) == "x" * MAX_SOURCE_CHARS


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_a_request_can_not_replace_the_tokens_of_the_model(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        ours("{{ bos_token }}", [("user", "hi")], **{name: "x"})


@pytest.mark.parametrize(
    ("source", "content", "adds_bos"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "hi", True),
        ("{{ messages[0].content }}", "hi", False),
        ("{{ messages[0].content }}", "<s>hi", False),
        ("{{ bos_token }}{{ messages[0].content }}", "<s>hi", True),
    ],
)
def test_adds_bos_says_whether_the_template_wrote_the_first_token(
    source: str, content: str, adds_bos: bool
) -> None:
    template = ChatTemplate(source, bos_token="<s>")
    assert template.render([Message("user", content)], control_tokens=["<s>"]).adds_bos is adds_bos


def test_a_model_without_bos_never_adds_one_and_leaves_it_undefined() -> None:
    prompt = ChatTemplate("{{ bos_token is defined }}").render([Message("user", "hi")])
    assert (prompt.text, prompt.adds_bos) == ("False", False)


def test_a_template_is_not_changed_by_rendering_it() -> None:
    template = ChatTemplate(CHATML)
    messages = [Message("user", "hi")]
    assert [template.render(messages) for _ in range(3)] == [template.render(messages)] * 3


def test_a_speakers_name_reaches_the_template_only_where_there_is_one() -> None:
    source = "{% for m in messages %}{{ m.name if m.name is defined else '-' }}:{{ m.content }};{% endfor %}"
    messages = [Message("user", "hi", "Ada"), Message("user", "ho")]
    assert ChatTemplate(source).render(messages).text == "Ada:hi;-:ho;"
