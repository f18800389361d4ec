"""Pieces of the report: numbers as text, and small HTML blocks; text is escaped here, and only here."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any


def section(title: str, body: str) -> str:
    """Return a titled block around HTML."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def figure(png: bytes, caption: str) -> str:
    """Return an embedded picture with its caption."""
    source = base64.b64encode(png).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{source}"><figcaption>{text}</figcaption></figure>'


def video(mp4: bytes, caption: str) -> str:
    """Return an embedded film with its caption."""
    source = f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"
    player = f'<video controls loop muted playsinline src="{source}"></video>'
    return f"<figure>{player}<figcaption>{html.escape(caption)}</figcaption></figure>"


def note(text: str) -> str:
    """Return a small remark."""
    return f'<p class="note-text">{html.escape(text)}</p>'


def card(name: str, value: str, remark: str) -> str:
    """Return a tile with one number."""
    parts = (("name", name), ("value", value), ("note", remark))
    return f'<div class="card">{"".join(f"<div class={key}>{html.escape(text)}</div>" for key, text in parts)}</div>'


def definitions(facts: Mapping[str, Any]) -> str:
    """Return names and values as a list of two columns."""
    rows = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def cell(value: Any, as_percent: bool) -> str:
    """Return the content of a table cell: a number, with its interval if it has one."""
    if value is None:
        return "-"
    span = f'<span class="range">{interval(value, as_percent)}</span>' if isinstance(value, Mapping) else ""
    return show(value, as_percent) + span


def mean_of(value: Any) -> float:
    """Return the number, or the mean of an interval; 0 where there is none."""
    if value is None:
        return 0.0
    return float(value["mean"] if isinstance(value, Mapping) else value)


def show(value: Any, as_percent: bool = False) -> str:
    """Return a number, or the mean of an interval, as text."""
    plain = mean_of(value)
    if as_percent:
        return f"{100 * plain:.1f} %"
    return f"{plain:,.0f}" if abs(plain) >= 1000 else f"{plain:.3g}"


def interval(value: Mapping[str, Any], as_percent: bool = False) -> str:
    """Return the bounds of an interval as text."""
    if as_percent:
        return f"{100 * value['low']:.0f} to {100 * value['high']:.0f} %"
    return f"{show(value['low'])} to {show(value['high'])}"


def count(value: int) -> str:
    """Return a large whole number, shortened."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def duration(seconds: float) -> str:
    """Return a time span as text."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def flat(value: Any) -> Any:
    """Return a mapping as one line; other values as they are."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value
