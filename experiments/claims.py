"""Which claims held: each is a statistic of one pair of seeds against a threshold fixed before the run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experiments.results import Results, load
from minifork import runs
from minifork.config import Config


@dataclass(frozen=True)
class Finding:
    """One claim tested on one pair: what was found, whether it held (None: its runs are missing)."""

    claim: str
    pair: int
    found: str
    holds: bool | None


def claims(config: Config) -> None:
    """Test every claim on every pair, print the verdicts and write runs/<task>/claims.json."""
    results = load(config)
    tested = {"star": star_findings, "arith": arith_findings}
    if config.task not in tested:
        print(f"no claims are made about {config.task}")
        return
    of_task = search_findings if "SEARCH" in config.data.mode_names else tested[config.task]
    findings = [finding for pair in results.pairs() for finding in of_task(results, config, pair)]
    if not findings:
        raise ValueError(f"{runs.eval_file(config)}: no pair of base and fine-tuned run; see `make reproduce`")
    verdicts = {True: "holds", False: "FAILS", None: "not run"}
    for f in findings:
        print(f"{verdicts[f.holds]:<8} pair {f.pair}  {f.claim}: {f.found}")
    held, tested = sum(f.holds is True for f in findings), sum(f.holds is not None for f in findings)
    print(f"{held} of {tested} claims held")
    runs.write_json(runs.task_folder(config) / "claims.json", [vars(f) for f in findings])


def arith_findings(results: Results, config: Config, pair: int) -> Iterator[Finding]:
    """All findings of one pair of seeds on arithmetic chains, which mean something once p(rest | right) >= .9."""
    base, chance = results.base(pair), 1 / config.data.branches
    final = {
        "forward": results.tuned(pair, fork_rate=1.0)[-1:],
        "reverse": results.tuned(pair, fork_rate=0.0)[-1:],
        "rationale": results.tuned(pair, "rationale")[-1:],
        "published": results.tuned(pair, "published", test_set="published")[-1:],
    }
    tests = [
        ("forward: p(rest | right branch) >= .9", "forward", lambda r: _least(r["fork"]["p_rest"], 0.9)),
        ("forward: S_16 >= .15, its interval above 0", "forward", lambda r: _shrinkage(results, base, r, 0.15)),
        ("forward: test fork accuracy within .1 of 1/d", "forward", lambda r: _near(r["fork"]["accuracy"], chance)),
        ("reverse: pass@16 >= .98", "reverse", lambda r: _least(at(r, 16), 0.98)),
        ("published order: fork accuracy >= .99", "published", lambda r: _least(r["fork"]["accuracy"], 0.99)),
        (
            "published order: pass@16 at most .01 below the base's",
            "published",
            lambda r: _least(at(r, 16) - at(base, 16), -0.01),
        ),
    ]
    for claim, which, judge in tests:
        found, holds = judge(final[which][0]) if final[which] else ("its run is missing", None)
        yield Finding(claim, pair, found, holds if holds is None else bool(holds))
    if final["forward"] and final["rationale"]:
        forward, rationale = final["forward"][0], final["rationale"][0]
        lost = at(base, 16) - at(forward, 16)
        recovered = (at(rationale, 16) - at(forward, 16)) / lost if lost >= 0.05 else None
        text = f"pass@1 {at(forward, 1):.3f} to {at(rationale, 1):.3f}, recovered {recovered and f'{recovered:.2f}'}"
        holds = recovered is not None and recovered >= 0.8 and at(rationale, 1) >= at(forward, 1)
        yield Finding("rationale: recovers >= .8 of S_16 at no lower pass@1", pair, text, holds)


def search_findings(results: Results, config: Config, pair: int) -> Iterator[Finding]:
    """All findings of one pair of seeds on star with SEARCH among the modes, which are forced one by one."""
    chance, modes = 1 / config.data.branches, len(config.data.mode_names)
    for variant in ("data", "problem"):
        records = results.tuned(pair, variant)
        if not records:
            yield Finding(f"{variant}-level", pair, "its run is missing", None)
            continue
        forced, entropy = records[-1]["forced"], records[-1]["mode"]["entropy"]
        search, forward = forced["SEARCH"], forced["FWD"]
        price = f"{search['tokens']:.2f} tokens against {forward['tokens']:.2f}, {search['wasted']:.2f} wasted"
        one = at(search, 1)
        yield Finding(f"{variant}-level: forced SEARCH >= .99", pair, f"{one:.4f}, {price}", one >= 0.99)
        found, near = _near(at(forward, 1), chance)
        yield Finding(f"{variant}-level: forced FWD within .1 of 1/d", pair, found, near)
        if variant == "problem":
            yield Finding(
                "problem-level: mode entropy >= .6 nats", pair, f"{entropy:.3f} of ln {modes}", entropy >= 0.6
            )


def _least(value: float, least: float) -> tuple[str, bool]:
    return f"{value:.4f}", value >= least


def _near(value: float, target: float) -> tuple[str, bool]:
    return f"{value:.3f}, chance {target:.3f}", abs(value - target) <= 0.1


def _shrinkage(results: Results, base: dict, tuned: dict, least: float) -> tuple[str, bool]:
    """S_16 with its paired interval."""
    gap = results.solved(base, 16) - results.solved(tuned, 16)
    low, high = results.interval(gap)
    return f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]", gap.mean() >= least and low > 0


def star_findings(results: Results, config: Config, pair: int) -> Iterator[Finding]:
    """All findings of one pair of seeds on star."""
    base = results.base(pair)
    last = {rate: results.tuned(pair, fork_rate=rate)[-1] for rate in results.fork_rates(pair)}

    def final(variant: str, test_set: str = "plain") -> dict | None:
        records = results.tuned(pair, variant, test_set=test_set)
        return records[-1] if records else None

    def test(claim: str, record: dict | None, judge: Callable[[dict], tuple[str, bool]]) -> Finding:
        return Finding(claim, pair, *judge(record)) if record else Finding(claim, pair, "its run is missing", None)

    ideal = config.data.pass_at_1(config.walks.stop)
    one = at(base, 1)
    text = f"pass@1 {one:.3f}, closed form {ideal:.3f}"
    yield Finding(
        "base: pass@1 <= .40, within .03 of its closed form", pair, text, one <= 0.4 and abs(one - ideal) <= 0.03
    )
    yield test("base: pass@64 >= .99", base, lambda r: (f"{at(r, 64):.4f}", at(r, 64) >= 0.99))
    forward = base["mode"]["p_forward"]
    yield Finding("base: picks FWD with probability .3 to .7", pair, f"{forward:.3f}", 0.3 <= forward <= 0.7)

    forked = last.get(1.0)
    for k, least in ((1, 0.15), (16, -0.30), (64, -0.20)):
        way = f"at least {abs(least):.2f} {'above' if least > 0 else 'below'}"

        def judge(r: dict, k: int = k, least: float = least) -> tuple[str, bool]:
            change = at(r, k) - at(base, k)
            low, high = results.interval(results.solved(r, k) - results.solved(base, k))
            return f"{change:+.3f} [{low:+.3f}, {high:+.3f}]", change >= least if least > 0 else change <= least

        yield test(f"r = 1: pass@{k} {way} the base's", forked, judge)
    yield test("r = 0: pass@64 >= .99", last.get(0.0), lambda r: (f"{at(r, 64):.4f}", at(r, 64) >= 0.99))
    yield test("problem-level: pass@16 >= .98", final("problem"), lambda r: (f"{at(r, 16):.4f}", at(r, 16) >= 0.98))

    def keeps_modes(r: dict) -> tuple[str, bool]:
        return f"{r['mode']['entropy']:.3f}", r["mode"]["entropy"] >= 0.6

    def loses_modes(r: dict) -> tuple[str, bool]:
        return f"{r['mode']['entropy']:.3f}", r["mode"]["entropy"] < 0.2

    yield test("problem-level: mode entropy >= .6 nats", final("problem"), keeps_modes)
    yield test("r = 0.5, data-level: mode entropy < .2 nats", last.get(0.5), loses_modes)

    rates = sorted(last)
    for lower, higher in zip(rates, rates[1:], strict=False):
        gap = results.solved(last[lower], 16) - results.solved(last[higher], 16)
        low, high = results.interval(gap)
        index = last[higher]["forced"]["FWD"]["index"]["16"]
        text = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]; forced-FWD index at r = {higher:g}: {index:.2f}"
        yield Finding(f"S_16 rises from r = {lower:g} to {higher:g}", pair, text, low > 0)

    yield test("fresh traces: pass@64 >= .99", final("fresh"), lambda r: (f"{at(r, 64):.4f}", at(r, 64) >= 0.99))
    matched = final("cued", test_set="cue1")
    yield test("cued: >= .99 at every k on cued problems", matched, lambda r: (f"{at(r, 1):.4f}", at(r, 1) >= 0.99))

    def memorised(r: dict) -> tuple[str, bool]:
        seen, test = r["fork_train"]["accuracy"], r["fork"]["accuracy"]
        chance = 1 / config.data.branches
        return f"train {seen:.3f}, test {test:.3f}, chance {chance:.3f}", seen >= 0.95 and abs(test - chance) <= 0.1

    yield test("r = 1: fork accuracy >= .95 on training problems, within .1 of 1/d on test", forked, memorised)


def at(record: dict, k: int) -> float:
    """pass@k of a record."""
    return record["pass_at"][str(k)]
