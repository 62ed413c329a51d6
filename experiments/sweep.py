"""Many runs: a YAML grid expanded, one process a core, finished runs skipped, unfinished and killed ones continued.

A sweep is a list of mappings, each of which says what a run changes in the config:

    - {sft.fork_rate: [0, 0.5, 1]}                              # three fine-tunings
    - {stage: rl, rl.mode: FWD, name: "mine-seed{pair}"}        # one RL run

Every run is made for every pair of seeds; words may hold {pair}, {runs} (the config's) and any key of the mapping, as
in {model.width}. Bases use all cores one after the other, the rest run side by side with one core each: what a run
gives does not depend on how many run at once.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minifork import config as configs
from minifork import losses, runs
from minifork.cli import COMMANDS
from minifork.config import fingerprint, read_yaml, to_tree
from minifork.evaluate import require_policy
from minifork.schema import Config

FOLDER = Path(__file__).parent / "sweeps"
STAGES = ("sft", "wise", "rl")  # in this order: each may start from those before
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ATTEMPTS = 3  # of a run that is killed
INTERRUPTED = (130, -signal.SIGINT)  # by Ctrl-C, which may come before the command line is there to meet it


@dataclass(frozen=True)
class Job:
    """One run: its stage and what it changes in the config, as "key=value"."""

    stage: str
    overrides: tuple[str, ...]


def read(config: Config, pairs: Iterable[int]) -> list[Job]:
    """The jobs of the config's sweep, a file or the name of one in experiments/sweeps/, for pairs of seeds.

    Raises ValueError naming the file and the entry that is not what a sweep holds.
    """
    name = config.reproduce.sweep
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    try:
        entries = read_yaml(path)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ValueError(f"{path}: no such sweep; reproduce.sweep is a YAML file or one of {known}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: a sweep is a list of mappings, such as - {{sft.fork_rate: [0, 1]}}")
    jobs = []
    for pair in pairs:
        for entry in entries:
            try:
                found = expand(entry, pair, config.runs)
                for job in found:
                    losses.parse(configs.changed(config, job.overrides, f"entry {entry}").sft.loss)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            jobs += found
    return jobs


def expand(entry: dict, pair: int, folder: str) -> list[Job]:
    """The jobs of one entry, the product of its values, for a pair of seeds and a runs folder.

    Raises ValueError naming what cannot be filled in, for a stage that is none and for an empty list.
    """
    entry = {"stage": "sft", **entry}
    stage = entry.pop("stage")
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}: choose {', '.join(STAGES)}")
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    if [] in values:
        raise ValueError(f"entry {entry}: an empty list makes no run")
    jobs = []
    for chosen in itertools.product(*values):
        own = dict(zip(entry, chosen, strict=True))
        overrides = (f"{key}={_word(value, own | {'pair': pair, 'runs': folder})}" for key, value in own.items())
        jobs.append(Job(stage, (f"seed={pair}", f"base_seed={pair}", *overrides)))
    return jobs


def _word(value: object, words: dict[str, object]) -> str:
    """A YAML value as an override's text, with what is in braces filled in."""

    def fill(found: re.Match) -> str:
        if found[1] not in words:
            raise ValueError(f"{value!r}: {found[0]!r} is neither pair, runs nor a key of its entry")
        return _word(words[found[1]], {})

    if isinstance(value, str):
        return re.sub(r"\{([^}]*)\}", fill, value)
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else f"{value}"


def start(config: Config) -> Path:
    """Write the config for further stages to read, under a name of its own; returns its path.

    Raises ValueError when the config names a run, as a sweep makes many, and for what its evaluation would refuse.
    """
    if config.name:
        raise ValueError(f"name is {config.name!r}: a sweep makes many runs, leave the name out")
    require_policy(config)
    source = runs.task_folder(config) / "configs" / f"{fingerprint(to_tree(config))}.yaml"
    runs.write_config(source, config)
    return source


def sweep(config: Config, source: Path, jobs: list[Job]) -> None:
    """Make the bases that the jobs need, then the jobs, stage after stage.

    Raises ValueError for jobs that share a folder or need different bases in one, and naming the runs that failed,
    after all others of their stage are done.
    """
    needed, planned = {}, {}
    for job in jobs:
        own = configs.changed(config, job.overrides)
        losses.parse(own.sft.loss)
        folder = runs.run_folder(own, job.stage)
        other = planned.setdefault(folder if job.stage != "wise" else job, (job.stage, own))
        if other[0] != job.stage or runs.identity(other[1], job.stage) != runs.identity(own, job.stage):
            raise ValueError(f"two runs of a sweep share the folder {folder}; give them names")
        alone = tuple(override for override in job.overrides if not override.startswith("name="))
        base = configs.changed(config, alone)
        first = needed.setdefault(runs.base_folder(base), Job("base", alone))
        if runs.identity(configs.changed(config, first.overrides), "base") != runs.identity(base, "base"):
            raise ValueError(
                f"two runs of a sweep need different bases in {runs.base_folder(base)}; give them runs=..."
            )
    for base in needed.values():
        if not finished(config, base):
            run(source, "pretrain", *base.overrides)
    for stage in STAGES:
        todo = {_log(config, job): job for job in jobs if job.stage == stage and not finished(config, job)}
        if todo:
            side_by_side(config, source, list(todo.values()))


def finished(config: Config, job: Job) -> bool:
    """Whether a job's run is complete; raises ValueError when its folder holds a run of another config, or one that
    started from other weights than lie there now."""
    planned = configs.changed(config, job.overrides)
    folder = runs.run_folder(planned, job.stage)
    if job.stage == "wise" or runs.state_of(folder, planned, job.stage, resume=True) != "complete":
        return False
    if job.stage != "base":
        runs.require_start(folder, folder.parent / runs.start_file(runs.read_json(folder / "meta.json", "stage")))
    return True


def side_by_side(config: Config, source: Path, jobs: list[Job]) -> None:
    """Run jobs with one core each, `reproduce.workers` at a time; what they print goes to runs/<task>/logs/.

    Raises ValueError naming the runs that failed, after all others are done.
    """
    workers, failed = config.reproduce.workers or os.cpu_count() or 1, []
    began = time.monotonic()
    with (
        tqdm(total=len(jobs), unit="run", disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        waiting = {pool.submit(_attempt, source, job, _log(config, job)): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                log, code = _log(config, waiting[future]), future.result()
                if code in INTERRUPTED:
                    raise KeyboardInterrupt
                failed += [log] if code else []
                bar.set_postfix_str(log.stem)
                bar.update()
                if bar.disable:
                    spent = (time.monotonic() - began) / 60
                    state = "FAILED" if code else "done"
                    print(f"[{done}/{len(jobs)}] {log.stem}: {state} ({spent:.1f} minutes so far)", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run get the same Ctrl-C and save
            raise
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(map(_last_line, failed))}")


def run(source: Path, stage: str, *overrides: str) -> None:
    """Run one stage in a process on all cores; raises ValueError with its command when it fails."""
    command = _command(source, stage, overrides)
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same Ctrl-C, and saves
            raise
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"a stage failed (see above): {' '.join(command[1:])}")


def _attempt(source: Path, job: Job, log: Path) -> int:
    """Run a job on one core, again when it is killed; its last exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    code = 0
    for _ in range(ATTEMPTS):
        with log.open("ab") as file:
            command = _command(source, job.stage, job.overrides)
            code = subprocess.run(command, env={**os.environ, **ONE_CORE}, stdout=file, stderr=file).returncode
        if code >= 0 or code in INTERRUPTED:
            break
    return code


def _command(source: Path, stage: str, overrides: Iterable[str]) -> list[str]:
    resume = ["--resume"] if COMMANDS[stage][1] else []
    return [sys.executable, "-m", "minifork", stage, "--config", str(source), *resume, *overrides]


def _log(config: Config, job: Job) -> Path:
    """Where a job's output goes."""
    planned = configs.changed(config, job.overrides)
    name = runs.run_folder(planned, "sft" if job.stage == "wise" else job.stage).name
    kind = f"-wise{planned.wise.weights}-early{planned.wise.early}" if job.stage == "wise" else ""
    return runs.task_folder(planned) / "logs" / f"{name}{kind}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{log}: {lines[-1] if lines else 'no output'}"
