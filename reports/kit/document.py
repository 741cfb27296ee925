"""One HTML file that needs no other: its style, scripts and data stand in it, and it may neither load nor send anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

WEB = Path(__file__).with_name("web")
NAME = "linear-rnn-suite"
"""The name of the meta element by which a page of this suite is known."""


def document(template: str, scripts: Sequence[str], data: Mapping[str, Any], about: Mapping[str, Any], **parts: str) -> str:
    """The page of a template of reports/kit/web. scripts: its files, run in this order. parts: what the template names, as HTML.

    data: what the scripts read. about: what an index of pages reads. Nothing but our own script runs, known by its digest.
    """
    script = "".join((WEB / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((WEB / template).read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        name=NAME,
        about=html.escape(json.dumps(about)),
        style=(WEB / "look.css").read_text(encoding="utf-8"),
        dialog=(WEB / "dialog.html").read_text(encoding="utf-8"),
        data=inert_json(data),
        script=script,
        **parts,
    )


def inert_json(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and begins no other markup, whatever its texts say."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half a character of a pair can't be written to a file.
    return text.encode(errors="backslashreplace").decode()
