"""The reference page of Modelfiles: the tables of instructions and parameters in, Markdown out."""

from nanollama.store.modelfile import UNSUPPORTED
from nanollama.store.parameters import DEPRECATED, PARAMETERS, Parameter, expected

_INTRODUCTION = '''\
# Modelfiles

This page is generated from the tables in `src/nanollama/store/parameters.py` and `modelfile.py` by
`scripts/generate_reference.py`.

A Modelfile makes a model out of another one: `nanollama create NAME -f Modelfile`. The language is Ollama's.

    FROM smollm2
    PARAMETER temperature 0.3
    PARAMETER stop "###"
    SYSTEM """
    You answer in one sentence.
    """
    MESSAGE user Is the sky blue?
    MESSAGE assistant Yes, by day.

`nanollama show --modelfile NAME` prints one that creates the model again.

| instruction | value | if repeated |
| --- | --- | --- |
| `FROM` | a name, a `.gguf` file or a folder of safetensors; what exists as a path is one | an error |
| `PARAMETER` | a name and a value, see below | the last counts; `stop` adds up |
| `TEMPLATE` | the chat template, Jinja or Go | the last counts |
| `SYSTEM` | the system prompt of conversations that have none | the last counts |
| `MESSAGE` | `system`, `user` or `assistant`, and a text: the beginning of every conversation | adds up |
| `LICENSE` | a text | adds up |
| `ADAPTER` | a path, recorded; a model that has one can't be run | an error |
| `REQUIRES` | a version of Ollama, recorded; it means nothing here | the last counts |
'''

_RULES = '''
Names of instructions can be in any case. A line that begins with `#` is a comment; a `#` further on belongs
to the value. A value ends with its line, without the blanks around it; one that begins with `"` or `"""` goes
on to the next line that ends with the same quotes, which are no part of it. There are no escapes. Paths are
relative to the Modelfile. Mistakes are errors with the number of the line.

What a Modelfile leaves open comes from the recipe of its base, if that has one, then from the weights. What a
caller sets wins over the Modelfile; `stop` texts add up. The messages of the recipe stay when a conversation
outgrows the context and its oldest turns go.

A template with Go's actions, as in Ollama's library, is translated to Jinja: texts and trim marks, `if`,
`else`, `range`, `with`, `break`, `continue`, variables, pipelines, the fields of a chat (`.System`,
`.Prompt`, `.Response`, `.Messages`, `.Tools`, `.Think` and those of a message or tool), and the functions
`and`, `or`, `not`, `eq`, `ne`, `lt`, `le`, `gt`, `ge`, `len`, `slice`, `index`, `json`, `currentDate` and
`printf` with `%s`, `%d` and `%v`. Anything else is refused by name.

`--quantize TYPE` writes the weights of a GGUF file or a folder of safetensors in a smaller type
into the store, as GGUF.
'''


def modelfile_page() -> str:
    """The whole page."""
    lines = [_INTRODUCTION.rstrip("\n")]
    lines += [f"| `{name}` | refused: {why} | |" for name, why in UNSUPPORTED.items()]
    lines += [_RULES, "## Parameters\n"]
    lines += ["| parameter | value | Ollama's default | here |", "| --- | --- | --- | --- |"]
    for name, row in PARAMETERS.items():
        lines.append(f"| `{name}` | {_value(row)} | {_default(row)} | {_meaning(row)} |")
    deprecated = ", ".join(f"`{name}`" for name in sorted(DEPRECATED))
    lines.append(f"\nDeprecated, and left out with a warning: {deprecated}. Any other name is an error.")
    return "\n".join(lines) + "\n"


def _value(row: Parameter) -> str:
    return f"{row.minimum:g}" if row.minimum == row.maximum else expected(row)


def _default(row: Parameter) -> str:
    return "" if row.default in (None, ()) else f"`{row.default}`"


def _meaning(row: Parameter) -> str:
    if row.setting is None:
        return f"no effect: {row.why}"
    unset = " or ".join(map(str, row.unset))
    notes = "; ".join(part for part in (row.why, f"{unset} leaves it open" if unset else "") if part)
    return f"`{row.setting}`" + (f" ({notes})" if notes else "")
