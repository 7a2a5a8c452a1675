"""Reports as files: Markdown to keep beside the data, one HTML page to read or send."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from benchmarks.tools.folders import write_whole

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1f2933; --muted: #5f6b7a; --line: #e3e8ee; --wash: #f6f8fa; --accent: #d55e00; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
main {{ max-width: 1320px; margin: 0 auto; padding: 2.5rem clamp(1rem, 2.5vw, 3rem) 4rem;
  background: #fff; min-height: 100vh; }}
h1 {{ font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .5rem; color: var(--muted); }}
p, li {{ max-width: 72ch; }}
ul {{ padding-left: 1.2rem; }}
img {{ display: block; width: 100%; height: auto; margin: .5rem 0 0; }}
p:has(> img) {{ max-width: none; overflow-x: auto; }}
p:has(> img) > img {{ min-width: 640px; }}
p:has(> img) + p {{ color: var(--muted); font-size: .9rem; margin-top: .25rem; }}
.table {{ overflow-x: auto; margin: .5rem 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: .82rem;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .45rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ white-space: normal; color: var(--muted); font-weight: 600; vertical-align: bottom;
  border-bottom: 2px solid var(--line); }}
tbody tr:hover {{ background: var(--wash); }}
th {{ cursor: pointer; }}
th[aria-sort]::after {{ content: " ▲"; font-size: .7em; }}
th[aria-sort=descending]::after {{ content: " ▼"; }}
td strong {{ color: var(--accent); }}
code {{ background: var(--wash); padding: .1em .3em; border-radius: 3px; font-size: .88em; }}
pre {{ overflow-x: auto; }}
pre code {{ display: block; padding: .75rem 1rem; }}
@media (max-width: 640px) {{
  body {{ font-size: 15px; }}
  main {{ padding: 1.25rem 1rem 2.5rem; }}
  h2 {{ margin-top: 2rem; }}
  p, li {{ overflow-wrap: anywhere; }}
  th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
  td:first-child {{ white-space: normal; min-width: 8rem; max-width: 10rem; }}
}}
@media print {{ body {{ background: #fff; }} main {{ padding: 0; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


SORTING = r"""
for (const head of document.querySelectorAll("th")) {
  const number = words => {
    const found = /^(?:Δ |< )?([+-]?[\d.]+(?:e[+-]?\d+)?)([kM]?)/.exec(words.replaceAll(",", ""));
    return found ? Number(found[1]) * ({ k: 1e3, M: 1e6 }[found[2]] || 1) : NaN;
  };
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const text = row => row.cells[head.cellIndex].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [number(text(a)), number(text(b))];
      if (isNaN(x) && isNaN(y)) return sign * text(a).localeCompare(text(b));
      return isNaN(x) ? 1 : isNaN(y) ? -1 : sign * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
  };
  head.tabIndex = 0;
  head.title = "Sort by this column";
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
"""
"""A click on a heading sorts its table by that column; again, the other way round."""


def opening(asked: str, done: str, came: str, *, first: str = "What was wrong") -> str:
    """What a report says before all else, in plain words."""
    told = {first: asked, "What was done": done, "What came of it": came}
    return "\n".join(f"- **{title}:** {words}" for title, words in told.items())


def write_page(folder: Path, text: str) -> None:
    """Writes `report.md`, and `report.html` which needs no other file, into `folder`."""
    write_whole(folder / "report.md", text)
    write_whole(folder / "report.html", _page(text, folder))


def _page(text: str, folder: Path) -> str:
    """The report as one HTML page, its pictures inside."""
    unbroken = text.replace(" %", "\u00a0%")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(unbroken)
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")

    def inline(match: re.Match[str]) -> str:
        picture = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    body = re.sub(r'src="([\w.-]+\.png)"', inline, body)
    title = text.partition("\n")[0].lstrip("# ")
    return PAGE.format(title=html.escape(title), body=body, script=SORTING)
