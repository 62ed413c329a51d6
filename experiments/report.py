"""One self-contained HTML file: which claims hold, the figures, and an explorer of single problems.

The page asks for nothing: figures are inline SVG, data and script are in the file. Its template is report.html.
"""

import html
import io
import json
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments import figures
from experiments.claims import interval
from experiments.explorer import explorer
from experiments.results import load
from minifork import runs
from minifork.decoding import policy
from minifork.schema import Config
from minifork.storage.files import read_json, write_atomically

TEMPLATE = Path(__file__).parent / "report.html"
NO_CLAIMS = "<p>No verdicts: none are made about this study, or <code>make claims</code> was not run yet.</p>"
COMPUTED, SAMPLED = "Its pass@k is computed, not estimated.", "Its pass@k is estimated from samples, without bias."
CAPTIONS = {
    "crossing": "pass@k against k. Where lines cross, more samples from the lower model on the left win on the right.",
    "epochs": "pass@k over epochs. The plain horizontal lines are the base model.",
    "dose": "How much coverage is lost against how often traces pass through the fork, and how polarised p is.",
    "fork": "At the fork: how sure the model is where it is right and wrong, on test and training problems.",
}


def report(config: Config) -> None:
    """Write runs/<task>/report.html; raises ValueError when something it needs was not measured."""
    results = load(config)
    pairs = results.complete_pairs()
    parts = {
        "task": config.task,
        "pairs": f"{len(pairs)} pair{'s' * (len(pairs) > 1)} of seeds",
        "claims": "".join(claims_block(*verdicts) for verdicts in all_verdicts(config, results.fingerprint))
        or NO_CLAIMS,
        "figures": "".join(figure_block(name, figure) for name, figure in figures.drawn(results, pairs).items()),
        "made": "{machine}, config {config_hash}".format_map(runs.made_by(config)),
        "decoder": f"{policy.parse(config.eval.policy)}",
        "measured": COMPUTED if all(record["n"] is None for record in results.records) else SAMPLED,
        "data": json.dumps(explorer(config, results, pairs[0]), separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = TEMPLATE.read_text()
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text if name in ("claims", "figures", "data") else html.escape(text))
    path = runs.task_folder(config) / "report.html"
    write_atomically(path, lambda file: file.write(page.encode()))
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB")


def all_verdicts(config: Config, current: str) -> list[tuple[Path, dict, bool]]:
    """The verdicts of every study that has some below the config's runs folder, this config's own first.

    With the file they lie in, and whether they are about the results that lie there now: those of this config have the
    fingerprint ``current``, others are taken as they are. Raises ValueError naming a file that holds none.
    """
    own = runs.task_folder(config) / "claims.json"
    verdicts = []
    for path in dict.fromkeys([own, *sorted(Path(config.runs).glob("**/claims.json"))]):
        if path.exists():
            claims = read_json(path, "study", "pairs", "wanted", "claims", "of")
            verdicts.append((path, claims, path != own or claims["of"] == current))
    return verdicts


def claims_block(path: Path, found: dict, current: bool) -> str:
    """The verdicts of one study as an HTML table; raises ValueError naming a file that `claims` did not write so."""
    try:
        return claims_table(path.parent, found, current)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{path}: damaged or edited; run `minifork claims` again") from None


def claims_table(folder: Path, found: dict, current: bool) -> str:
    """The verdicts of one study as an HTML table."""
    provisional = "" if found["pairs"] >= found["wanted"] else f", provisional: {found['wanted']} are wanted"
    rows = []
    for row in found["claims"]:
        mark = {"holds": "✓", "fails": "✗", "not run": "–"}[row["verdict"]]
        cells = [f'<td class="{row["verdict"].replace(" ", "-")}">{mark} {row["verdict"]}</td>']
        cells += [f"<td>{html.escape(row['says'])}</td><td>{html.escape(row['by'])}</td>"]
        if row["effect"] is None:
            cells += [f'<td colspan="2">{html.escape(row["why"])}</td>']
        else:
            cells += [f'<td class="number">{row["effect"]:+.3f}</td><td class="number">{interval(row)}</td>']
        rows.append(f"<tr>{''.join(cells)}<td>{html.escape(row['rule'])}</td></tr>")
    head = "<tr><th>verdict<th>claim<th>by<th>effect<th>95 % interval<th>holds if all of it is</tr>"
    stale = "" if current else "; OUT OF DATE: evaluated again since, run minifork claims"
    pairs = f"{found['pairs']} pair{'s' * (found['pairs'] > 1)} of seeds{provisional}"
    title = html.escape(f"{found['study']} ({folder}; {pairs}{stale})")
    table = f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def figure_block(name: str, figure: Figure) -> str:
    """A figure as inline SVG with its caption; text stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture, caption = buffer.getvalue().decode(), html.escape(CAPTIONS.get(name, name))
    picture = picture[picture.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    picture = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", picture)  # ids are shared by all of the page
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
