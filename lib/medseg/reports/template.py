"""The jinja2 template of a report page."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
body { margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 36px 0 8px; padding-top: 8px; border-top: 1px solid #e4e4e4; }
p.lead { font-size: 17px; }
nav a { margin-right: 16px; color: #0072B2; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; color: #444; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { background: #f6f6f6; border-bottom: 1px solid #ccc; }
td.best { font-weight: 700; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 12px 0; } img { max-width: 100%; height: auto; }
figcaption, p.caption { font-size: 13px; color: #555; margin: 4px 0 12px; }
summary { cursor: pointer; color: #0072B2; }
</style>
</head>
<body>
{% macro draw(block) %}
{% set what = kind(block) %}
{% if what == "text" %}
<p>{{ block }}</p>
{% elif what == "table" %}
<div class="scroll"><table>
<thead><tr>{% for title in block.header %}<th>{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
{% set number = loop.index0 %}
<tr>
{% for cell in row %}
<td{% if (number, loop.index0) in block.bold %} class="best"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if block.caption %}<p class="caption">{{ block.caption }}</p>{% endif %}
{% elif what == "plot" %}
<figure><img alt="{{ block.caption }}" src="data:image/png;base64,{{ png(block.figure) }}">
{% if block.caption %}<figcaption>{{ block.caption }}</figcaption>{% endif %}</figure>
{% else %}
<details><summary>{{ block.summary }}</summary>{{ draw(block.content) }}</details>
{% endif %}
{% endmacro %}
<h1>{{ page.title }}</h1>
{% if page.lead %}<p class="lead">{{ page.lead }}</p>{% endif %}
{% if page.sections|length > 2 %}
<nav>{% for section in page.sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>{% endfor %}</nav>
{% endif %}
{% if page.facts %}
<dl>{% for name, value in page.facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endif %}
{% for section in page.sections %}
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% for block in section.blocks %}
{{ draw(block) }}
{% endfor %}
{% endfor %}
</body>
</html>
"""
