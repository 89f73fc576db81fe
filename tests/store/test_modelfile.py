"""Modelfiles: what is read, what is refused and where, and that printing and reading are inverse."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.errors import NanollamaError, TemplateError, UnsupportedError, UsageError
from nanollama.store.modelfile import Modelfile, decode, modelfile_of, modelfile_text, parse
from nanollama.store.names import ModelName
from nanollama.store.parameters import PARAMETERS
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record
from nanollama.types import Message


def test_a_whole_modelfile() -> None:
    text = '''
# A comment, and an empty line before it

  FROM smollm2:135m
parameter temperature 0.3
PARAMETER stop "<|im_end|>"
Parameter\tstop   AI assistant:
PARAMETER seed 1
PARAMETER seed 2
TEMPLATE """{% for m in messages %}{{ m.content }}
{% endfor %}"""
SYSTEM you are a cat
SYSTEM You are "Mario". # this is no comment
MESSAGE user Is Toronto in Canada?
MESSAGE assistant "yes
and no"
LICENSE MIT
LICENSE """
Some terms
"""
ADAPTER ./lora.gguf
REQUIRES 0.14.0
'''
    assert parse(text) == Modelfile(
        "smollm2:135m",
        Recipe(
            template="{% for m in messages %}{{ m.content }}\n{% endfor %}",
            system='You are "Mario". # this is no comment',
            parameters={"temperature": 0.3, "stop": ("<|im_end|>", "AI assistant:"), "seed": 2},
            messages=(Message("user", "Is Toronto in Canada?"), Message("assistant", "yes\nand no")),
            licences=("MIT", "\nSome terms\n"),
            adapters=("./lora.gguf",),
            requires="0.14.0",
        ),
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("plain  text ", "plain  text"),
        ('"quoted"', "quoted"),
        ('" spaces "', " spaces "),
        ('""', ""),
        ('""""""', ""),
        ('"""three"""', "three"),
        ('"""a "quoted" word"""', 'a "quoted" word'),
        ('"""ends in "quotes""""', 'ends in "quotes"'),
        ("'single'", "'single'"),
        (r'"no \n escape"', r"no \n escape"),
        ('"two\nlines"', "two\nlines"),
        ('"a" b\nc "d"', 'a" b\nc "d'),
        ('"""a" b\n\n"c"\n"""', 'a" b\n\n"c"\n'),
        ('"""x"""   ', "x"),
        ('"""x""" y\n"""', 'x""" y\n'),
        ('"', None),
        ('"""open', None),
        ('"""""', None),
        ('"a" b', None),
        ("# no comment", "# no comment"),
        ("zero\u200dwidth and \u00a0", "zero\u200dwidth and"),
        ('"line\r\nend"', "line\r\nend"),
    ],
)
def test_values_are_read_as_ollama_reads_them(written: str, value: str | None) -> None:
    text = f"FROM a\nSYSTEM {written}\n"
    if value is None:
        with pytest.raises(UsageError, match=r"line 2: the text after SYSTEM begins with .* and doesn't end"):
            parse(text)
    else:
        assert parse(text).recipe.system == value


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_a_line(newline: str) -> None:
    text = newline.join(["FROM a", "", "# c", "SYSTEM hi", "MESSAGE user x", "PARAMETER top_k x"])
    with pytest.raises(UsageError, match="line 6: top_k is 'x'"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", UsageError, "the Modelfile has no FROM line"),
        ("# FROM a", UsageError, "the Modelfile has no FROM line"),
        ("FROM a\nFORM b", UsageError, "line 2: 'FORM' is not an instruction; expected one of FROM"),
        ("FROM", UsageError, "line 1: FROM has no value"),
        ("FROM\nSYSTEM x", UsageError, "line 1: FROM has no value"),
        ('FROM ""', UsageError, "line 1: FROM is empty; expected a name or a path"),
        ("FROM a\nFROM b", UnsupportedError, "line 2: there is a second FROM"),
        ("FROM a\nADAPTER x\nADAPTER y", UnsupportedError, "line 3: there is a second ADAPTER"),
        ("FROM a\n\n# x\nPARAMETER temprature 1", UsageError, "line 4: unknown parameter 'temprature': did"),
        ("FROM a\nPARAMETER temperature", UsageError, "line 2: 'temperature' has no value"),
        ("FROM a\nPARAMETER temperature hot", UsageError, "line 2: temperature is 'hot'; expected a number"),
        ("FROM a\nMESSAGE User hi", UsageError, "line 2: a message's role is 'User'; expected system, user"),
        ("FROM a\nMESSAGE user", UsageError, "line 2: 'user' has no value"),
        ("FROM a\nREQUIRES soon", UsageError, "line 2: REQUIRES is 'soon'; expected a version"),
        ("FROM a\nDRAFT b", UnsupportedError, "line 2: DRAFT can't be honoured"),
        ("FROM a\nRENDERER qwen3", UnsupportedError, "the checkpoint's own template does its work"),
        ("FROM a\nparser qwen3", UnsupportedError, "line 2: PARSER can't be honoured"),
        ("FROM a\nSYSTEM \"\"\"x\ny\n\nPARAMETER z 1", UsageError, "line 2: the text after SYSTEM"),
        ("FROM a\nTEMPLATE {{ .Prompt", TemplateError, "line 2: the Go template is malformed in line 1"),
        ("FROM a\nTEMPLATE {{ .Foo }}", UnsupportedError, "line 2: the Go template uses the field .Foo"),
        ("FROM a\n" + "PARAMETER stop x\n" * 17, UsageError, "line 18: there are more than 16 texts"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(text: str, error: type[NanollamaError], message: str) -> None:
    with pytest.raises(error) as caught:
        parse(text)
    assert message in str(caught.value)


def test_deprecated_parameters_are_left_out_with_a_warning() -> None:
    read = parse("FROM a\nPARAMETER mirostat 2\nPARAMETER f16_kv anything")
    assert read.recipe.parameters == {}
    assert [warning.split()[2] for warning in read.warnings] == ["mirostat", "f16_kv"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_are_decoded_with_or_without_a_mark(encoding: str) -> None:
    assert parse(decode("FROM a\nSYSTEM é".encode(encoding))).recipe.system == "é"


def test_a_file_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="byte 5 is 0xff"):
        decode(b"FROM \xff")


def test_a_file_of_many_lines_is_read() -> None:
    """Each line once cost a copy of the rest of the file: minutes for one like this."""
    text = "FROM a\n" + "# c\n\n" * 80_000 + 'LICENSE """' + 'a "b"\n \n' * 80_000 + '"""'
    assert parse(text).recipe.licences[0].count("\n") == 160_000


def parameter(name: str) -> st.SearchStrategy[tuple[str, object]]:
    row = PARAMETERS[name]
    low, high = max(row.minimum, -(2**70)), min(row.maximum, 2**70)
    value: st.SearchStrategy[object]
    match row.kind:
        case "int":
            value = st.integers(int(low), int(high))
        case "float":
            value = st.floats(low, high)
        case "bool":
            value = st.booleans()
        case _:
            value = st.lists(st.text(alphabet, min_size=1, max_size=9), min_size=1, max_size=3).map(tuple)
    return value.map(lambda drawn: (name, drawn))


alphabet = st.characters(codec="utf-8") | st.sampled_from('"# \t\n\r\u00a0\u2028\v')
texts = st.text(alphabet, max_size=30)
paths = st.text(alphabet, min_size=1, max_size=20)
modelfiles = st.builds(
    Modelfile,
    from_=paths,
    recipe=st.builds(
        Recipe,
        template=st.none() | texts.map("{%% if x %%}%s{%% endif %%}".__mod__),
        system=st.none() | texts,
        parameters=st.lists(st.sampled_from(sorted(PARAMETERS)).flatmap(parameter), max_size=5).map(dict),
        messages=st.lists(
            st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=3
        ).map(tuple),
        licences=st.lists(texts, max_size=2).map(tuple),
        adapters=st.lists(paths, max_size=1).map(tuple),
        requires=st.none() | st.from_regex(r"[0-9]{1,3}\.[0-9]\.[0-9](-rc[0-9])?", fullmatch=True),
    ),
)


@given(modelfiles)
def test_what_is_printed_is_read_back(modelfile: Modelfile) -> None:
    recipe = modelfile.recipe
    written = [modelfile.from_, recipe.template, recipe.system, *recipe.licences, *recipe.adapters]
    written += [message.content for message in recipe.messages]
    written += [each for value in recipe.parameters.values() if isinstance(value, tuple) for each in value]
    if any('"' in each for each in written if each):
        with suppress(UsageError):  # some of these have no form in the language
            assert parse(modelfile_text(modelfile)) == modelfile
    else:
        assert parse(modelfile_text(modelfile)) == modelfile


@given(st.text(st.characters(codec="utf-8") | st.sampled_from('"\n \tFROMSYSTEM'), max_size=60))
def test_any_text_is_read_or_refused_with_a_sentence(text: str) -> None:
    with suppress(NanollamaError):
        parse("FROM a\n" + text)


@pytest.mark.parametrize("value", ['a"""\nb', 'x"\ny"""\nz'])
def test_a_text_without_a_form_in_the_language_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="SYSTEM has a text that a Modelfile can't express"):
        modelfile_text(Modelfile("a", Recipe(system=value)))


def test_a_record_is_printed_as_a_modelfile_that_makes_it_again() -> None:
    recipe = Recipe(None, "Be brief.", {"stop": ("a", "b"), "use_mmap": True}, (Message("user", " x\n"),))
    path = Path("/models/with a space.gguf")
    record = Record(
        ModelName.parse("mario"), "gguf", path, 1, None, 0.0, False, recipe=recipe, parent="smollm2:135m"
    )
    text = modelfile_of(record)
    assert text == (
        "# The recipe of mario:latest, as 'nanollama show --modelfile' prints it.\n"
        "# To begin a new one with this model, write FROM mario:latest instead.\n"
        "FROM /models/with a space.gguf\n"
        "SYSTEM Be brief.\n"
        "PARAMETER stop a\n"
        "PARAMETER stop b\n"
        "PARAMETER use_mmap true\n"
        'MESSAGE user """ x\n"""\n'
    )
    assert parse(text) == Modelfile(str(path), recipe)
