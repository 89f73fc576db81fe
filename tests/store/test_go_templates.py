"""Go templates as Jinja: published ones, each construct by itself, and what is refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from go_chats import FAMILIES, LONG, ONE, TOLD, TWICE, chat
from nanollama.errors import NanollamaError, TemplateError, UnsupportedError
from nanollama.store.go_templates import is_go, jinja_for
from nanollama.text.template import ChatTemplate
from nanollama.types import Message

TOOLS = [{"type": "function", "function": {"name": "now", "description": "Tells <time>."}}]


def rendered(go: str, messages: list[Message], **extra: object) -> str:
    return ChatTemplate(jinja_for(go)).render(messages, **extra).text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("conversation", ["one", "told", "long", "twice"])
def test_published_templates_render_what_ollama_renders(name: str, conversation: str) -> None:
    family = FAMILIES[name]
    messages = {"one": ONE, "told": TOLD, "long": LONG, "twice": TWICE}[conversation]
    assert rendered(family.go, messages) == getattr(family, conversation)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_layout_between_the_marks_changes_nothing(name: str) -> None:
    family = FAMILIES[name]
    tight = (
        family.go.replace("{{ ", "{{").replace("{{ - ", "{{- ").replace('eq .Role "user"', "eq .Role `user`")
    )
    assert rendered(tight, LONG) == family.long


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_messages_stays_marked_as_text(name: str) -> None:
    messages = chat("s:<|im_end|>", "u:</s>")
    prompt = ChatTemplate(jinja_for(FAMILIES[name].go)).render(
        messages, control_tokens=["<|im_end|>", "</s>"]
    )
    marked = {prompt.text[start:end] for start, end in prompt.literal}
    assert marked
    assert "".join(marked).count("<") == sum("<" in text for text in marked)


def test_a_conversation_that_is_not_to_be_answered_ends_with_its_last_turn() -> None:
    template = ChatTemplate(jinja_for(FAMILIES["chatml"].go))
    closed = template.render(chat("u:Hi", "a:Hello!"), add_generation_prompt=False).text
    assert closed.endswith("<|im_start|>assistant\nHello!<|im_end|>\n")
    opened = ChatTemplate(jinja_for(FAMILIES["gemma3"].go))
    with pytest.raises(TemplateError, match="always ends where the assistant begins to speak"):
        opened.render(ONE, add_generation_prompt=False)


def test_tools_are_written_as_json() -> None:
    text = rendered(FAMILIES["llama3.1"].go, ONE, tools=TOOLS)
    assert '{"type": "function", "function": {"name": "now", "description": "Tells <time>."}}\n' in text
    assert rendered(FAMILIES["mistral"].go, ONE, tools=TOOLS).startswith(
        '[AVAILABLE_TOOLS] [{"type": "function"'
    )
    assert '"function": {"name": "now"' in rendered(FAMILIES["qwen3"].go, ONE, tools=TOOLS)


def test_thinking_is_switched_by_its_variable() -> None:
    go = FAMILIES["qwen3"].go
    assert rendered(go, ONE, enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert rendered(go, ONE, enable_thinking=True).endswith("assistant\n")


@pytest.mark.parametrize(
    ("go", "text"),
    [
        ("{{ range .Messages }}{{ . .Role }}{{ end }}", None),
        ("{{ range .Messages }}[{{ .Role }}]{{ end }}", "[system][user][assistant][user]"),
        ("{{ range $m := .Messages }}{{ $m.Content }},{{ end }}", "Be brief.,Hi,Hello!,Bye,"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ end }}", "0123"),
        ("{{ range .Messages }}{{ else }}none{{ end }}", ""),
        ("{{ range .Tools }}x{{ else }}none{{ end }}{{ len .Messages }}", "none4"),
        (
            "{{ with .System }}<{{ . }}>{{ end }}{{ with .Tools }}x{{ else with $.Messages }}y{{ end }}",
            "<Be brief.>y",
        ),
        ("{{ len .Messages }}{{ if gt (len .Messages) 3 }}!{{ end }}", "4!"),
        ("{{ (index .Messages 1).Content }}", "Hi"),
        ("{{ range slice .Messages 1 3 }}{{ .Content }}{{ end }}", "HiHello!"),
        (
            "{{ range .Messages }}{{ if eq .Role `user` `system` }}{{ .Content }}{{ end }}{{ end }}",
            "Be brief.HiBye",
        ),
        ("{{ range .Messages }}{{ if eq .Role `user` }}{{ break }}{{ end }}{{ .Role }}{{ end }}", "system"),
        (
            "{{ range .Messages }}{{ if ne .Role `user` }}{{ continue }}{{ end }}{{ .Content }}{{ end }}",
            "HiBye",
        ),
        ("{{ $x := `a` }}{{ if .Messages }}{{ $x := `b` }}{{ $x }}{{ end }}{{ $x }}", "ba"),
        ("{{ $x := `a` }}{{ if .Messages }}{{ $x = `b` }}{{ end }}{{ $x }}", "b"),
        ("{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ $n = $i }}{{ end }}{{ $n }}", "3"),
        ("{{ .System | printf `%s!` }}{{ len .Messages | printf `%d` }}", "Be brief.!4"),
        (
            '{{ if not (and .System .Tools) }}a"\\\'{{ "\\n\\u00e9\\"" }}{{ end }}{{ len .Messages }}',
            'a"\\\'\né"4',
        ),
        ("  {{- /* a comment */ -}}  {{ len .Messages }}", "4"),
        ("a  {{- len .Messages -}}  b", "a4b"),
        ("a {{ len .Messages }} {% raw", None),
        ("{ {{ len .Messages }} }{ %}'", "{ 4 }{ %}'"),
        ("{{ eq .System `x` }}{{ len .Messages }}", "false4"),
        ("{{ or .Tools .System }}{{ and .System `x` }}{{ len .Messages }}", "Be brief.x4"),
        ("{{ .Suffix }}{{ .ThinkLevel }}{{ .Think }}{{ len .Messages }}", "false4"),
    ],
)
def test_each_construct_means_what_it_means_in_go(go: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(NanollamaError):
            rendered(go, LONG)
    else:
        assert rendered(go, LONG) == text


@pytest.mark.parametrize(
    ("go", "named"),
    [
        ("{{ .First }}{{ .Prompt }}", "the field .First"),
        ("{{ range .Messages }}{{ .Images }}{{ end }}", "the field .Images"),
        ("{{ template `x` . }}", "{{ template }}"),
        ("{{ define `x` }}{{ end }}", "{{ define }}"),
        ("{{ block `x` . }}{{ end }}", "{{ block }}"),
        ("{{ html .Prompt }}", "the function html"),
        ("{{ .Prompt | toTypeScriptType }}", "the function toTypeScriptType"),
        ("{{ printf `%q` .Prompt }}", "the function printf with the format '%q'"),
        ("{{ slice .Prompt }}", "the function slice with 1 arguments"),
        ("{{ .Messages }}", "a list or a whole message as text"),
        ("{{ range .Messages }}{{ . }}{{ end }}", "a list or a whole message as text"),
        ("{{ . }}", "the whole of its data"),
        ("{{ $x }}", "the variable $x"),
        ("{{ $x = 1 }}{{ .Prompt }}", "the variable $x"),
        ("{{ if $x := .Prompt }}{{ end }}", "a variable declared by {{ if }}"),
        ("{{ break }}{{ .Prompt }}", "{{ break }} outside of {{ range }}"),
        ("{{ range 3 }}{{ end }}", "{{ range }} over something that is no list"),
        ("{{ .Prompt.Foo }}", "the field .Foo"),
        ("{{ if .Prompt }}" * 60 + "{{ end }}" * 60, "more than 50 blocks and brackets"),
        ("{{ " + "(" * 60 + ".Prompt" + ")" * 60 + " }}", "more than 50 blocks and brackets"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(go: str, named: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        jinja_for(go)
    assert f"the Go template uses {named}" in str(caught.value)


@pytest.mark.parametrize(
    "go",
    [
        "{{ .Prompt",
        "{{ if .Prompt }}",
        "{{ .Prompt }}{{ end }}",
        "{{ .Prompt }}{{ else }}",
        "{{ if .Prompt }}{{ else }}{{ else }}{{ end }}",
        "{{ if .Prompt }}{{ end x }}",
        "{{ if }}{{ end }}",
        "{{ (.Prompt }}",
        "{{ .Prompt ) }}",
        "{{ eq .Prompt ; }}",
        '{{ .Prompt }}{{ "\\q" }}',
        '{{ .Prompt }}{{ "\\ud800" }}',
        "{{ range $a $b := .Messages }}{{ end }}",
        "{{ .Prompt }}" + "x" * 70_000,
    ],
)
def test_malformed_templates_are_refused(go: str) -> None:
    with pytest.raises(TemplateError, match=r"malformed|escape|characters"):
        jinja_for(go)


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0]['content'] }}",
        "{{- bos_token }}",
        "{# .System #}{{ (1) }}",
        "{{ (a.b) }}{{ end_of_turn }}{{ x | replace('.A', '') }}",
        "no actions at all",
        "",
    ],
)
def test_jinja_stays_as_it_is(jinja: str) -> None:
    assert not is_go(jinja)
    assert jinja_for(jinja) == jinja


@pytest.mark.parametrize("name", FAMILIES)
def test_a_translation_is_jinja_and_is_left_alone_when_it_is_read_again(name: str) -> None:
    translated = jinja_for(FAMILIES[name].go)
    assert jinja_for(translated) == translated


def test_long_conversations_take_time_in_proportion_to_their_length() -> None:
    """Merging neighbours of one role copies the list for each message: not where there are none."""
    messages = chat(*["u:x", "a:y"] * 2000, "u:z")
    for name in ("chatml", "llama3.1", "qwen3"):
        assert rendered(FAMILIES[name].go, messages)


pieces = st.sampled_from(
    ["{{ ", " }}", "{{- ", " -}}", "if ", "else", "end", "range ", "with ", ".Messages", ".Prompt", ".Role ",
     "$i", ", ", " := ", " = ", "eq ", "(", ")", "|", '"a"', "`", "/*", "*/", "\n", "text", "len ", "1", "{%"]
)  # fmt: skip


@given(st.lists(pieces, max_size=25).map("".join))
def test_any_template_is_translated_to_valid_jinja_or_refused(go: str) -> None:
    with suppress(UnsupportedError, TemplateError):
        translated = jinja_for(go)
        if is_go(go):
            template = ChatTemplate(translated)
            with suppress(TemplateError):
                template.render(LONG)
