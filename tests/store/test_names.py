import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.errors import FormatError, UsageError
from nanollama.store.names import Digest, ModelName

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("smollm2", (None, "library", "smollm2", "latest"), "smollm2:latest"),
        ("smollm2:135m", (None, "library", "smollm2", "135m"), "smollm2:135m"),
        ("SmolLM2:135M", (None, "library", "smollm2", "135m"), "smollm2:135m"),
        ("library/smollm2", (None, "library", "smollm2", "latest"), "smollm2:latest"),
        ("me/my-model:v1.2_b", (None, "me", "my-model", "v1.2_b"), "me/my-model:v1.2_b"),
        ("hub.example.org/me/m:q4", ("hub.example.org", "me", "m", "q4"), "hub.example.org/me/m:q4"),
        ("localhost:8000/me/m", ("localhost:8000", "me", "m", "latest"), "localhost:8000/me/m:latest"),
        ("localhost/library/m:x", ("localhost", "library", "m", "x"), "localhost/library/m:x"),
        ("registry.ollama.ai/library/m:x", (None, "library", "m", "x"), "m:x"),
        ("a" * 80, (None, "library", "a" * 80, "latest"), "a" * 80 + ":latest"),
    ],
)
def test_a_name_is_split_into_its_parts_and_shown_in_its_shortest_form(text, expected, shown):
    name = ModelName.parse(text)
    assert (name.host, name.namespace, name.model, name.tag) == expected
    assert str(name) == shown
    assert ModelName.parse(shown) == name


HOSTILE_NAMES = [
    *("", ".", "..", "/", ":", "a:", ":a", "a/", "/a", "a//b", "a:b:c", "a/b/c/d", "~", "-a", "a-/.", "_a"),
    *("../a", "a/..", "a/../b", "a:..", "a:../../b", "a..b", ".a", "a.", "a:b.", "a ", " a", "a b", "a\tb"),
    *(
        "a\\b",
        "a:b/c",
        "..\\a",
        "%2e%2e/a",
        "a\0b",
        "a\n",
        "a:b\n",
        "a:b\r",
        "a\u202eb",
        "\u0430",
        "\uff11",
        "\u00e9",
    ),
    *("con", "CON", "a:nul", "aux.gguf", "com1/a", "lpt9", "C:\\a", "c:/a", "file:///etc/passwd"),
    *(
        "http://169.254.169.254/x",
        "[::1]/a/b",
        "127.1/a/b:80:1",
        "user@host.x/a/b",
        "-x.y/../b",
        "h.x:999999/a/b",
    ),
    *(
        "a" * 81,
        "a:" + "b" * 300,
        "a" * 1_000_000,
        "h" * 64 + ".x/a/b",
        "a/" * 300,
        "$(id)",
        "a;b",
        "a*",
        "a?",
    ),
]


@pytest.mark.parametrize("text", HOSTILE_NAMES, ids=lambda text: ascii(text[:20]))
def test_what_is_not_a_name_is_refused_in_one_short_sentence(text):
    with pytest.raises(UsageError, match="is not a model name") as caught:
        ModelName.parse(text)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@given(st.text(alphabet="aZ0.-_:/\\~%\0\n \u0131é", max_size=20) | st.text(max_size=20))
def test_a_parsed_name_has_only_parts_that_are_safe_path_components(text):
    try:
        name = ModelName.parse(text)
    except UsageError:
        return
    for part in (name.namespace, name.model, name.tag):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?", part)
        assert ".." not in part
    assert ModelName.parse(str(name)) == name


def test_a_digest_gives_its_hex_and_its_short_form():
    digest = Digest(f"sha256:{HEX}")
    assert digest.hex == HEX
    assert digest.short == "0123456789ab"


HOSTILE_DIGESTS = [
    *("", "sha256:", HEX, f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"sha256-{HEX}", f"sha256:{HEX.upper()}"),
    *(f"SHA256:{HEX}", f" sha256:{HEX}", f"sha256:{HEX}\n", f"sha256:{HEX}\0", f"sha256:../{HEX[3:]}"),
    *(f"sha256:..\\{HEX[3:]}", f"sha256:%2e%2e%2f{HEX[9:]}", f"sha256:/{HEX[1:]}", f"md5:{HEX[:32]}"),
    *(
        "sha256:" + "\u0660" * 64,
        "sha256:" + "\uff11" * 64,
        "sha256:" + "a" * 1_000_000,
        "sha256:" + "g" * 64,
    ),
]


@pytest.mark.parametrize("text", HOSTILE_DIGESTS, ids=lambda text: ascii(text[:20]))
def test_what_is_not_a_digest_is_refused(text):
    with pytest.raises(FormatError, match="is not a digest"):
        Digest(text)


@given(st.text(alphabet="0123456789abcdefABCDEFg:/.sh \n", max_size=80) | st.text(max_size=80))
def test_only_exactly_64_lower_case_hex_digits_after_sha256_are_a_digest(text):
    is_digest = re.match(r"\Asha256:[0-9a-f]{64}\Z", text) is not None
    try:
        Digest(text)
    except FormatError:
        assert not is_digest
    else:
        assert is_digest
