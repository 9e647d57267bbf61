"""One HTML page of a run, complete in itself: no other file, no network; what the run holds can only become text.

Its policy (Content-Security-Policy) lets a browser run the one script and use the one style whose digests it names,
show images that are in the page, and fetch nothing.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from recipe.reporting.contents import Contents, finite, sweep_for_page

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = f"default-src 'none'; img-src data:; style-src {_digest(STYLE)}; script-src {_digest(SCRIPT)}; base-uri 'none'"


def page(contents: Contents) -> str:
    """The HTML of a run's page."""
    sections = [
        ("curves", "Curves", _curves(contents)),
        ("samples", "Samples over time", _grids(contents)),
        ("sweeps", "Sweeps", _sweeps(contents)),
        ("data", "Data", _facts(contents)),
        ("files", "Snapshots and checkpoints", _files(contents)),
        ("configuration", "Configuration", _config(contents)),
    ]
    there = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in there)
    notes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in contents.notes)
    bodies = "\n".join(f'<section><h2 id="{key}">{title}</h2>\n{body}\n</section>' for key, title, body in there)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="edm2-recipe report">
<link rel="icon" href="data:,">
<title>{escape(contents.name)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(contents.name)}</h1>
<p class="quiet">{escape(contents.address)}</p>
<dl class="notes">{notes}</dl>
<nav>{links}</nav>
<noscript><p class="remark">Curves, samples and sweeps need JavaScript.</p></noscript>
{bodies}
</main>
<script type="application/json" id="drawn">{_json(_data(contents))}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _data(contents: Contents) -> Mapping[str, Any]:
    """What the script draws."""
    curves = [
        {"tag": tag, "x": curve.steps, "y": [finite(mean) for mean in curve.means]}
        for tag, curve in contents.curves.items()
    ]
    grids = [
        {"nimg": grid.nimg, "kind": grid.kind, "png": base64.b64encode(grid.png).decode()} for grid in contents.grids
    ]
    return {"curves": curves, "grids": grids, "sweeps": [sweep_for_page(*sweep) for sweep in contents.sweeps]}


def _json(tree: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in, nor begin a comment there."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)  # ASCII alone
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _remarks(contents: Contents, section: str) -> str:
    return "".join(f'<p class="remark">{escape(remark)}</p>' for remark in contents.remarks.get(section, []))


def _curves(contents: Contents) -> str:
    remarks = _remarks(contents, "curves")
    if not contents.curves:
        return remarks and remarks + '<p class="quiet">There are no curves.</p>'
    control = '<div class="controls"><label><input type="checkbox" id="log"> logarithmic</label></div>'
    return f'{remarks}{control}<div id="charts"></div>'


def _grids(contents: Contents) -> str:
    remarks = _remarks(contents, "grids")
    if not contents.grids:
        return remarks
    slider = '<input type="range" id="time" min="0" step="1" aria-label="images seen">'
    return (
        f'{remarks}<div class="controls" id="kinds"></div>'
        f'<div class="controls">{slider}<span id="grid-said"></span></div><img id="grid" alt="">'
    )


def _sweeps(contents: Contents) -> str:
    parts = [_remarks(contents, "sweeps")]
    for number, (name, settings, results) in enumerate(contents.sweeps):
        summary = f"<summary>{len(results)} points, each measured with these settings</summary>"
        details = f"<details>{summary}{_table(settings.items())}</details>"
        parts.append(f'<h3>{escape(name)}</h3>{details}<div id="sweep-{number}"></div>')
    return "".join(parts)


def _facts(contents: Contents) -> str:
    facts = {} if contents.facts is None else contents.facts.to_json()
    rows = [(name, _fact(value)) for name, value in facts.items() if value is not None]
    return _remarks(contents, "data") + (_table(rows) if rows else "")


def _fact(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 600 else f"{text[:600]} ... ({len(text):,} characters)"


def _files(contents: Contents) -> str:
    if not contents.files:
        return _remarks(contents, "files")
    head = "".join(f"<th>{name}</th>" for name in ("kind", "images seen", "sigma_rel", "MB", "modified"))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in contents.files)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return _remarks(contents, "files") + table


def _config(contents: Contents) -> str:
    return f"<pre>{escape(contents.config)}</pre>" if contents.config else ""


def _table(rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="plain"><tbody>{body}</tbody></table></div>'
