"""One self-contained HTML file: which claims hold, the figures, and an explorer of single problems.

The page loads no other file: figures are inline SVG, data and script are in the file. Its template is report.html.
"""

import html
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from experiments import figures
from experiments.drawing import default_settings
from experiments.estimates import pairs_text
from experiments.explorer import explorer
from experiments.results import load_results
from experiments.verdicts import HOLDS, NOT_RUN, REFUTED, UNDECIDED, ends_text, verdicts_file
from minifork import runs
from minifork.decoding import policy
from minifork.schema import Config
from minifork.storage.files import is_sealed, read_json, write_atomically

TEMPLATE = Path(__file__).parent / "report.html"
NO_CLAIMS = "<p>No verdicts: there are no claims about this study, or <code>make claims</code> was not run yet.</p>"
COMPUTED = "Its pass@k is computed, not estimated."
SAMPLED = "Its pass@k is an unbiased estimate from samples."
CAPTIONS = {
    "crossing": "pass@k against k. Where two lines cross, the model that is worse at small k is better at large k.",
    "epochs": "pass@k over epochs. The horizontal lines without markers are the base model.",
    "dose": "Coverage shrinkage and polarisation against FORK_RATE, the share of traces that pass through the fork.",
    "fork": "Confidence at the fork, where the model is right and where it is wrong, on test and training problems.",
}


def report(config: Config) -> None:
    """Write runs/<task>/report.html, and runs/index.html with links to all reports.

    Raises ValueError when a measurement that it needs is missing.
    """
    results = load_results(config)
    pairs = results.complete_pairs()
    drawings, page_data = figures.draw_all(results, pairs), explorer(config, results, pairs[0])
    texts = {
        "task": config.task,
        "pairs": pairs_text(len(pairs)),
        "made": "{machine}, config {config_hash}".format_map(runs.made_by(config)),
        "decoder": str(policy.parse_policy(config.eval.policy)),
        "measured": COMPUTED if all(record["n"] is None for record in results.records) else SAMPLED,
    }
    parts = {name: html.escape(text) for name, text in texts.items()} | {
        "claims": verdicts(config, results.fingerprint) or NO_CLAIMS,
        "figures": "".join(figure_block(name, figure) for name, figure in drawings.items()),
        "data": json.dumps(page_data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    content = page.encode(errors="surrogateescape")  # folder names may hold bytes that are not UTF-8
    path = runs.task_folder(config) / "report.html"
    write_atomically(path, content)
    print(f"{path}: {len(content) / 1e6:.1f} MB")
    write_index(Path(config.runs))


def write_index(folder: Path) -> None:
    """Write index.html, with a link to every report in a folder."""
    links = []
    for path in sorted(folder.glob("**/report.html")):
        place = path.relative_to(folder)
        links.append(f'<li><a href="{quote(os.fsencode(place))}">{html.escape(str(place.parent))}</a></li>')
    style = "<style>:root { color-scheme: light dark; } body { font: 16px/1.8 system-ui; margin: 2rem; }</style>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>minifork: reports</title>{style}'
    page = f"{head}<h1>minifork</h1><p>Reports by study:</p><ul>{''.join(links)}</ul></html>"
    write_atomically(folder / "index.html", page.encode(errors="surrogateescape"))


def verdicts(config: Config, current: str) -> str:
    """The verdicts of all studies in the config's runs folder, this config's first, as HTML.

    Those of this config are marked unless they are about the results with the fingerprint ``current``. Raises
    ValueError naming a file that lacks a key.
    """
    first, tables = verdicts_file(config), []
    for path in dict.fromkeys([first, *sorted(Path(config.runs).glob("**/claims-*.json"))]):
        if path.exists():
            result = read_json(path, "study", "seeds", "wanted", "claims", "of")
            if not is_sealed(result):
                raise ValueError(f"{path}: edited after it was written; run `minifork claims` again")
            tables.append(claims_table(path.parent, result, path != first or result["of"] == current))
    return "".join(tables)


def claims_table(folder: Path, result: dict, current: bool) -> str:
    """The verdicts of one study as an HTML table; current: true if they are about the present results."""
    rows = []
    for row in result["claims"]:
        mark = {HOLDS: "✓", REFUTED: "✗", UNDECIDED: "?", NOT_RUN: "–"}[row["verdict"]]
        cells = f'<td class="{row["verdict"].replace(" ", "-")}">{mark} {row["verdict"]}</td>'
        cells += f"<td>{html.escape(row['says'])}</td><td>{html.escape(row['by'])}</td>"
        if row["effect"] is None:
            cells += f'<td colspan="3">{html.escape(row["why"])}</td>'
        else:
            cells += f'<td class="number">{row["effect"]:+.3f}</td><td class="number">{ends_text(row)}</td>'
            cells += f'<td class="number">{100 * row["level"]:g} %</td>'
        rows.append(f"<tr>{cells}<td>{html.escape(row['rule'])}</td></tr>")
    head = (
        "<tr><th>verdict<th>claim<th>claimed by<th>effect<th>interval<th>level<th>holds if the whole interval is</tr>"
    )
    too_few = len(result["seeds"]) < result["wanted"]
    provisional = f"; provisional, {result['wanted']} pairs are needed" if too_few else ""
    stale = "" if current else "; OUT OF DATE: the runs were evaluated again, run `minifork claims`"
    title = html.escape(f"{result['study']} ({folder}; {pairs_text(len(result['seeds']))}{provisional}{stale})")
    table = f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def figure_block(name: str, figure: Figure) -> str:
    """A figure as inline SVG with its caption; text stays text."""
    buffer = io.BytesIO()
    with default_settings({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture, caption = buffer.getvalue().decode(), html.escape(CAPTIONS.get(name, name))
    picture = picture[picture.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    picture = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", picture)  # an id must be unique on the page
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
