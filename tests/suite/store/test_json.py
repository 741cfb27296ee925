"""The JSON of a store: what is out of the ordinary in it is refused, however fast the ordinary is read."""

from __future__ import annotations

import json

import pytest

from suite.store.foreign import MOST_DEPTH, MOST_DIGITS, parse_json

READ = [
    b'{"a": [1, -2, 3.5, 1e-300, -0.0], "b": {"c": null, "d": true, "": "\\u00e4\\ud83d\\ude00"}}',
    b'{"a": %s}' % (b"9" * MOST_DIGITS),
    b'{"a": 0.123456789012345678901234567890, "b": "%s"}' % (b"1" * 40),
    b'{"a": 1, "a": 2} ',
    b'{"a": %s0%s}' % (b"[" * (MOST_DEPTH - 1), b"]" * (MOST_DEPTH - 1)),
]
REFUSED = {
    b'{"a": %s}' % (b"9" * (MOST_DIGITS + 1)): "a number of it has",
    b'{"a": -%s}' % (b"9" * MOST_DIGITS): "a number of it has",
    b'{"a": 1e400}': "a number of it is 1e400",
    b'{"a": NaN}': "a number of it is NaN",
    b'{"a": "\\ud83d"}': "surrogates",
    b'{"a": "\xff"}': "utf-8",
    b"[1]": "not a JSON object",
    b'{"a": 1,}': "line 1",
    b'{"a": %s0%s}' % (b"[" * MOST_DEPTH, b"]" * MOST_DEPTH): "nested",
    b'{"a": %s' % (b"[" * 100_000): "nested",
}


@pytest.mark.parametrize("data", READ)
def test_what_is_permitted_is_read_as_python_reads_it(data: bytes) -> None:
    assert repr(parse_json(data)) == repr(json.loads(data))


@pytest.mark.parametrize("data", REFUSED)
def test_what_is_out_of_the_ordinary_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED[data]):
        parse_json(data)
