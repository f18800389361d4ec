"""Look of the report: no script, no resource from elsewhere."""

from __future__ import annotations

CSS = """
:root { --ink: #2b2f36; --faint: #6d7684; --line: #e3e7ed; --accent: #3366cc; --paper: #ffffff; --ground: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 12px; }
.sub { color: var(--faint); margin: 0 0 20px; overflow-wrap: anywhere; }
section { padding: 18px 20px; margin: 16px 0;
  background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card .name { color: var(--faint); font-size: 12.5px; }
.card .value { font-size: 23px; font-weight: 600; letter-spacing: -0.01em; }
.card .note { color: var(--faint); font-size: 12px; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
video { max-width: 100%; display: block; margin: 0 auto; border-radius: 6px; background: #000; }
figure { margin: 0 0 14px; }
figcaption, .note-text { color: var(--faint); font-size: 13px; margin-top: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 500; font-size: 12.5px; }
th:first-child, td:first-child { text-align: left; }
td .range { color: var(--faint); font-size: 12px; margin-left: 5px; }
tr.best td { background: #eef4ff; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px;
  vertical-align: -1px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 0; font-size: 14px; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 6px; padding: 10px; overflow: auto;
  font-size: 12.5px; max-height: 420px; }
footer { color: var(--faint); font-size: 13px; margin-top: 22px; }
"""
