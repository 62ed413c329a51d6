"""`make capitals`: pass@k of a language model on "What is the capital of ...?", and what the first word does to it.

The questions and the accepted spellings are in experiments/capitals.csv. An answer is accepted as soon as it names the
capital as a word of its own. It is *begun* as "The capital of France is" and must go on with the capital, or it is
*free* within 24 tokens. Free answers are also begun with one of OPENERS, as arXiv 2605.17026 forces the first token of
reasoning models. Begun answers are computed with certified bounds, free ones by the remainder engine.
"""

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.drawing import RUN_STYLES, default_settings, panels, save_figure
from experiments.estimates import table
from experiments.studies.steps import print_minutes
from minifork import library as mf
from minifork.decoding.traces import accepted_share
from minifork.language.patterns import any_of
from minifork.measuring.quantities import pass_statistics
from minifork.runs import made_with
from minifork.statistics.agreement import randomised_pit, two_sample_pit, uniform_p, whole_counts
from minifork.storage.files import fingerprint, read_json, write_json, write_sealed_json
from minifork.storage.weights import hash_of

if TYPE_CHECKING:
    from minifork.language.causal_lm import CausalLM
    from minifork.language.questions import Questions

FILE = Path(__file__).parents[1] / "capitals.csv"
FOLDER = Path("runs") / "capitals"
OPENERS = ("Okay", "Alright", "Let", "To")
SENTENCE, FREE = "begun", "free"
KS = [2**i for i in range(11)]
WIDTH = 1e-6  # of the bounds of begun answers
PREFIXES, ROLLOUTS = 16, 16  # of each question with a free answer: decoded in the search, sampled after it
MAX_NEW = 24
CHECKS = {SENTENCE: 4, FREE: 20}  # questions, of which each has SAMPLES samples by `generate`
SAMPLES, CHECK_ROLLOUTS = 512, 512
LEVEL = 1e-3  # the probability of a false alarm of the check


@dataclass(frozen=True)
class Way:
    """A way to answer: start is SENTENCE, FREE, or one of OPENERS."""

    start: str
    temperature: float

    @property
    def name(self) -> str:
        return f"{self.start}, T={self.temperature:g}"

    @property
    def policy(self) -> str:
        return f"temperature={self.temperature:g}"


def capitals(model: str) -> int:
    """Measure every way to answer, compare with `generate`, print the table, write and draw everything.

    model: a folder, or a name on the hub. What is finished is kept in runs/capitals/<model>/ and not repeated. Returns
    1 when `generate` contradicts the bounds. Raises ValueError for a model that cannot be used.
    """
    with print_minutes("capitals"):
        lm, folder = mf.language_model(model), FOLDER / Path(model).name
        key = fingerprint([hash_of(lm.model.state_dict()), countries(), PREFIXES, ROLLOUTS, MAX_NEW])
        rows = [load_or_make(folder / f"{way.name} {key}.json", partial(measure, lm, way)) for way in ways()]
        checks = [
            load_or_make(folder / f"generate, {start} {key}.json", partial(compare_with_generate, lm, start))
            for start in CHECKS
        ]
        print(*map(check_text, checks), sep="\n")
        table_rows = [cells(row) for row in rows]
        print(table([{name: text(value) for name, value in row.items()} for row in table_rows]))
        result = made_with(key) | {"table": table_rows, "ways": rows, "checks": checks}
        write_sealed_json(folder / "capitals.json", result)
        save_figure(draw(rows), folder / "capitals.png")
        return int(any(check["p_value"] < LEVEL or check["contradicted"] for check in checks))


def ways() -> list[Way]:
    """All ways to answer."""
    return [*(Way(start, 1.0) for start in (SENTENCE, FREE, *OPENERS)), Way(SENTENCE, 0.6), Way(FREE, 0.6)]


def load_or_make(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file, which is made and written first if it is missing."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def countries() -> list[tuple[str, list[str]]]:
    """Every country with the accepted spellings of its capital."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [(row["country"], row["capital"].split("|")) for row in rows]


def pose(lm: "CausalLM", start: str) -> "Questions":
    """The questions of all countries, with the answers that are accepted after a start."""
    listed = countries()
    texts = [f"What is the capital of {country}?" for country, _ in listed]
    names = [any_of(spellings) for _, spellings in listed]
    if start == SENTENCE:
        openings = [f"The capital of {country} is" for country, _ in listed]
        return mf.ask(lm, texts, [f" {name}" for name in names], openings, max_new=MAX_NEW)
    within = [rf"(?:(?s:.)*\PL)?{name}" for name in names]
    return mf.ask(lm, texts, within, "" if start == FREE else start, max_new=MAX_NEW)


def measure(lm: "CausalLM", way: Way, count: int | None = None, rollouts: int = ROLLOUTS) -> dict[str, Any]:
    """The statistics of one way to answer the first ``count`` questions, and p of every question with its bounds."""
    questions, started = pose(lm, way.start)[:count], time.perf_counter()
    if way.start == SENTENCE:
        result = mf.exact(lm, questions, way.policy, width=WIDTH)
    else:
        result = mf.remainder(lm, questions, PREFIXES * len(questions), rollouts, policy=way.policy)
    accepted, seconds = result.outcomes[:, 0], time.perf_counter() - started
    row = {"start": way.start, "temperature": way.temperature, "questions": len(questions), "seconds": seconds}
    row |= {"evaluated": result.evaluated, "largest_width": float(result.unknown.max())}
    row |= {"mean_width": float(result.unknown.mean())}
    row |= {"tokens_to_the_answer": float(result.tokens[:, 0].sum() / accepted.sum())}
    row |= pass_statistics(result, KS)
    row |= {name: getattr(result, name).tolist() for name in ("p", "p_lo", "p_hi")}
    print(f"{way.name}: pass@1 {result.p.mean():.3f}, {result.evaluated:,} prefixes in {seconds:.0f} s", flush=True)
    return row


def precision(row: dict[str, Any]) -> float | None:
    """(Standard error of pass@1)^2 x decoded tokens, over the same of plain samples; None if p was computed.

    Both are estimated from the row. A plain sample decodes every token of its trace but the last.
    """
    if row["n"] is None:
        return None
    p, low, high = (np.array(row[name]) for name in ("p", "p_lo", "p_hi"))
    q = (accepted_share(p, low, high) * row["n"] + 0.5) / (row["n"] + 1)  # so that 0 of n does not count as certain
    p = low + (high - low) * q
    ours = ((high - low) ** 2 * q * (1 - q) / row["n"]).sum() * row["evaluated"]
    return float(ours / ((p * (1 - p)).sum() * (row["tokens"] - 1) * len(p)))


def compare_with_generate(lm: "CausalLM", start: str) -> dict[str, Any]:
    """How transformers' `generate` agrees with an engine at T = 1 on the first questions, and how long both take.

    p_value: uniform if it draws with the probabilities that were computed or estimated. contradicted: the questions
    whose accepted samples the certified bounds exclude, at LEVEL over all. precision: that of the engine with
    CHECK_ROLLOUTS. seconds: of a question. Begun answers are computed for all questions, as they share batches.
    """
    way, count = Way(start, 1.0), CHECKS[start]
    row, started = measure(lm, way, None if start == SENTENCE else count, CHECK_ROLLOUTS), time.perf_counter()
    counts = generated(lm, pose(lm, start)[:count], SAMPLES)
    seconds = {"engine": row["seconds"] / row["questions"], "generate": (time.perf_counter() - started) / count}
    check = {"way": way.name, "questions": count, "samples": SAMPLES, "precision": precision(row), "seconds": seconds}
    return check | agreement(counts, SAMPLES, row)


def agreement(counts: np.ndarray, samples: int, row: dict[str, Any]) -> dict[str, Any]:
    """The check of a row by the accepted ones int64[B] of samples of its first B questions."""
    p, low, high = (np.array(row[name][: len(counts)]) for name in ("p", "p_lo", "p_hi"))
    n, rng = row["n"], np.random.default_rng(0)
    if n is None:
        pits = randomised_pit(counts, samples, p, rng)
    else:
        correct = np.rint(accepted_share(p, low, high) * n).astype(np.int64)
        pits = two_sample_pit(counts, samples, whole_counts(correct, n, low, high - low, n, rng), n, rng)
    level = LEVEL / (2 * len(counts))
    below, above = (randomised_pit(counts, samples, bound, rng) for bound in (low, high))
    return {"p_value": uniform_p(pits), "contradicted": int(((below < level) | (above > 1 - level)).sum())}


def generated(lm: "CausalLM", questions: "Questions", n: int) -> np.ndarray:
    """The accepted ones int64[B] of n samples of each question by `generate`, at T = 1."""
    automata, counts = questions.automata(lm.vocabulary), []
    torch.manual_seed(0)
    for i, prompt in enumerate(questions.prompts):
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_return_sequences": n}
        texts = lm.model.generate(torch.tensor([prompt]), max_new_tokens=questions.max_new, **options)
        problem, state = torch.full((n,), i), torch.zeros(n, dtype=torch.int64)
        for token in texts[:, len(prompt) :].T:
            state = automata.step(problem, state, token)
        counts.append(int((state == automata.first_outcome).sum()))
    return np.array(counts)


def check_text(check: dict[str, Any]) -> str:
    """A line about how `generate` agrees with an engine, and about their speed."""
    ours, theirs = check["seconds"]["engine"], check["seconds"]["generate"]
    return (
        f"{check['way']}: {check['samples']:,} samples by generate for each of {check['questions']} questions: "
        f"p-value {check['p_value']:.3f}, bounds contradicted by {check['contradicted']} questions; "
        f"{theirs:.1f} s a question, {theirs / ours:.0f} times those of the engine"
    )


def text(value: float | str | None) -> str:
    """A value as the printed table has it."""
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def cells(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of the printed table."""
    at = {f"pass@{k}": row["pass_at"].get(str(k)) for k in (1, 4, 16)}
    return {
        "answer": row["start"],
        "T": f"{row['temperature']:g}",
        **at,
        "pass@1024 >=": row["pass_at_lo"]["1024"],
        "rho": row["rho"],
        "tokens": row["tokens_to_the_answer"],
        "unknown": row["mean_width"],
        "se^2 x tokens": precision(row),
        "seconds": round(row["seconds"]),
    }


@default_settings()
def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """pass@k of every way to answer, and how p is spread over the questions, both with 95 % intervals at T = 1."""
    figure, (curves, spread) = panels(2, 10, 4)
    styles = dict(zip(dict.fromkeys(row["start"] for row in rows), RUN_STYLES, strict=False))
    for row in rows:
        (colour, marker), is_first = styles[row["start"]], row["temperature"] == 1
        label = f"{row['start']}, T = {row['temperature']:g}"
        line = {"color": colour, "marker": marker, "linestyle": "-" if is_first else ":", "markersize": 4}
        ks = [int(k) for k in row["pass_at"]]
        curves.plot(ks, [*row["pass_at"].values()], label=label, **line)
        if is_first:
            curves.fill_between(ks, *np.array([*row["ci95"].values()]).T, color=colour, alpha=0.15, linewidth=0)
            p = np.sort(row["p"])
            spread.plot(p, (np.arange(len(p)) + 1) / len(p), label=label, markevery=len(p) // 8 or 1, **line)
    curves.set_xscale("log", base=2)
    curves.set(xlabel="k (samples)", ylabel="pass@k", ylim=(0, 1.02), title="What is the capital of ...?")
    spread.set(
        xlabel="p (probability that one sample is right)", ylabel="share of questions with at most p", ylim=(0, 1.02)
    )
    curves.legend(fontsize=7, ncol=2)
    spread.legend(fontsize=7)
    return figure
