"""JSON of a model folder: plain objects are read, what two readers could read in two ways is refused."""

import os
from pathlib import Path

import pytest

from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.formats.strict_json import parse_object, read_object


def test_an_object_is_read_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '{"a": [1, 2.5, null, true], "é": {"b": "\\u00e9"}, "big": 1000000000000000019884624838656}'
    )
    assert read_object(path) == {
        "a": [1, 2.5, None, True],
        "é": {"b": "é"},
        "big": 1000000000000000019884624838656,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a JSON object is expected"),
        (b"null", "holds None"),
        (b'{"a":1,"a":1}', "'a' occurs twice"),
        (b'{"x":{"a":1,"b":2,"a":3}}', "'a' occurs twice"),
        (b'{"a":NaN}', "NaN is no number"),
        (b'{"a":-Infinity}', "-Infinity is no number"),
        (b'{"a":' + b"1" * 41 + b"}", "41 digits"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not valid JSON"),
        (b'{"a":1}{"b":2}', "not valid JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_anything_else_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_object(data, "a.json")
    assert str(caught.value).startswith("a.json")


def test_a_file_is_bounded_and_regular(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ModelNotFoundError, match="no file"):
        read_object(path)
    path.write_text('{"a": 1}')
    assert read_object(path, 8) == {"a": 1}
    with pytest.raises(FormatError, match="more than 7 bytes"):
        read_object(path, 7)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a regular file"):
        read_object(tmp_path / "fifo")
