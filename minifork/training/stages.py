"""The stages that train: pretraining on random walks, fine-tuning on traces, RL. All hand a Job to `loop.fit`."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from data_gen import audit, streams, walks
from data_gen.task import PAD
from minifork import runs
from minifork.checkpoints import new_model, pick_device
from minifork.config import to_tree
from minifork.runs import Checkpoint, Run
from minifork.schema import Config
from minifork.storage.files import read_json, write_json
from minifork.training import losses, reinforce
from minifork.training.loop import BatchAt, Job, fit, supervised


def pretrain(config: Config, resume: bool) -> Run:
    """The base model that a config asks for, trained on random walks as far as it is not yet.

    Raises ValueError for an unfinished run without ``resume``.
    """
    with runs.hold(config, "base", None, resume) as run:
        return complete(run, None)


def sft(config: Config, resume: bool) -> Run:
    """The base model fine-tuned on traces, with snapshots at epochs 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a base that is missing, and for data that leaks.
    """
    start = runs.require_run(config, "base").checkpoint()
    with runs.hold(config, "sft", start, resume) as run:
        return complete(run, start)


def rl(config: Config, resume: bool) -> Run:
    """A fine-tuned run's snapshot, or the base, trained on by rewards, with snapshots at updates 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a start that is missing, and for sft.prefix.
    """
    start = runs.require_run(config, "sft" if config.rl.epoch else "base").checkpoint(config.rl.epoch or None)
    with runs.hold(config, "rl", start, resume) as run:
        return complete(run, start)


def complete(run: Run, start: Checkpoint | None) -> Run:
    """The run, trained from ``start`` (a base: from scratch) or from where it stopped."""
    if run.complete:
        run.say(f"{run.folder} is complete: nothing to do")
        return run
    if start is None:
        _pretrain(run)
    elif run.stage == "sft":
        _fine_tune(run, start)
    else:
        _reinforce(run, start)
    return run


def _pretrain(run: Run) -> None:
    config = run.config
    plan = config.pretrain
    model, device = new_model(config, config.base_seed), pick_device(config)
    parameters = sum(p.numel() for p in model.parameters())
    run.say(
        f"{run.name}: pretraining {parameters:,} parameters on random walks, "
        f"{plan.steps} steps of {plan.batch} x {config.walks.seq_len} tokens"
    )
    objective = supervised(walk_batches(config), losses.parse_loss("cross_entropy"), device)
    fit(model, Job(run, objective, plan.steps, plan), device)


def _fine_tune(run: Run, start: Checkpoint) -> None:
    config, plan, loss = run.config, run.config.sft, losses.parse_loss(run.config.sft.loss)
    data = sft_data(config, 0)
    check_leaks(run, data)
    steps = -(-plan.epochs * plan.traces // plan.batch)
    shape = ", ".join(f"{k} {v}" for k, v in to_tree(config)["model"].items())
    run.say(
        f"{run.name}: from {start.run.name} it inherits the weights, the model ({shape}) and the task; "
        f"optimizer and schedule start afresh: {plan.traces} traces, {plan.epochs} epochs, {steps} steps"
    )
    run.record["data_hash"] = streams.data_hash(data.tokens)
    snapshots = {-(-epoch * plan.traces // plan.batch): runs.snapshot(epoch) for epoch in run.epochs}
    device = pick_device(config)
    fit(start.model().train(), Job(run, supervised(sft_batches(config), loss, device), steps, plan, snapshots), device)


def _reinforce(run: Run, start: Checkpoint) -> None:
    config, plan = run.config, run.config.rl
    if config.sft.prefix:
        raise ValueError(f"sft.prefix is {config.sft.prefix}: rl samples traces without a prefix; give 0")
    if plan.epoch == 0 and config.data.branch_order != "shuffled" and not config.sft.allow_leak:
        raise ValueError(
            "data.branch_order gives the right branch away; a control meant to leak needs sft.allow_leak=true"
        )
    device = pick_device(config)
    run.say(
        f"{run.name}: from {start.path}, {plan.advantage} on {plan.problems} problems, {plan.updates} updates of "
        f"{plan.prompts} problems" + ("" if plan.advantage == "exact" else f" x {plan.group} rollouts")
    )
    learn = reinforce.objective(config, start.model().to(device), device, run.say)
    snapshots = {update: runs.snapshot(update) for update in run.epochs}
    fit(start.model(), Job(run, learn, plan.updates, plan, snapshots), device)


def sft_data(config: Config, epoch: int) -> streams.Examples:
    """The examples of an epoch under the config's mixture."""
    return streams.sft_examples(config.data, config.sft, config.seed, config.sft.traces, epoch)


def audit_command(config: Config) -> int:
    """Print the leak audit of the config's SFT set; returns 1 when something gives the branch away."""
    data = sft_data(config, 0)
    leaks, table = _audit(config, data)
    print(table)
    print(_verdict(leaks), f"({len(data.tokens)} traces, false alarms <= {audit.FALSE_ALARM_RATE:g} an audit)")
    return 1 if leaks else 0


def check_leaks(run: Run, data: streams.Examples) -> None:
    """Audit the SFT set of a run (on disk once, cached by its hash) and refuse a leaking one unless sft.allow_leak.

    Raises ValueError naming the checks that found the leak.
    """
    path, allowed = run.folder.parent / "audits" / f"{streams.data_hash(data.tokens)}.json", run.config.sft.allow_leak
    leaks = _cached(path) if run.memory is None else None
    if leaks is None:
        leaks, table = _audit(run.config, data)
        if run.memory is None:
            write_json(path, {"leaks": leaks, "table": table.splitlines()})
    if leaks and not allowed:
        where = f" (see {path})" if run.memory is None else ""
        raise ValueError(f"{_verdict(leaks)}{where}; a control meant to leak needs sft.allow_leak=true")
    run.say(_verdict(leaks) + ("; training all the same (sft.allow_leak=true)" if leaks else ""))


def _cached(path: Path) -> list[str] | None:
    """The leaks that an earlier audit wrote down, None where its file is missing or damaged."""
    try:
        leaks = read_json(path, "leaks")["leaks"]
    except ValueError:
        return None
    return leaks if isinstance(leaks, list) and all(isinstance(name, str) for name in leaks) else None


def _audit(config: Config, data: streams.Examples) -> tuple[list[str], str]:
    """The names of the checks that find a leak in an SFT set, and the table of all checks."""
    mixture = config.sft
    checks = audit.audit(config.data, data, mixture.first_share, mode=mixture.mode_names[0])
    return [check.name for check in checks if check.flagged], audit.table(checks)


def _verdict(leaks: list[str]) -> str:
    if leaks:
        return f"leak audit: the branch is given away by {', '.join(leaks)}"
    return "leak audit: nothing on the surface gives the branch away"


def walk_batches(config: Config) -> BatchAt:
    """The batches of pretraining: random walks on the task's graphs."""
    task, plan = config.data.printed("shuffled"), config.walks

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        return walks.walk_batch(
            task, plan.stop, plan.seq_len, config.base_seed, step, config.pretrain.batch, plan.informed
        )

    return batch_at


def sft_batches(config: Config) -> BatchAt:
    """Batches cut from an endless row of shuffled epochs, so that all have the same shape.

    Loss is on the trace only; of the prompt, only its last token predicts anything. With ``sft.prefix`` a random
    integer, drawn anew whenever an example is shown, stands between prompt and trace, as the prompt's last token.
    """
    plan, given = config.sft, config.data.prompt_len + bool(config.sft.prefix)
    fixed = None if plan.fresh else sft_data(config, 0).tokens

    @lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        tokens = sft_data(config, epoch).tokens if fixed is None else fixed
        return tokens[streams.generator(config.seed, "train", epoch, "shuffle").permutation(plan.traces)]

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(step * plan.batch, (step + 1) * plan.batch)
        epochs, rows = np.divmod(index, plan.traces)
        tokens = np.concatenate([shuffled(int(e))[rows[epochs == e]] for e in np.unique(epochs)])
        if plan.prefix:
            drawn = streams.generator(config.seed, "train", step, "prefix").integers(plan.prefix, size=plan.batch)
            tokens = np.insert(tokens, config.data.prompt_len, drawn, axis=1)
        targets = tokens[:, 1:].copy()  # PAD, past the end of a short trace, is IGNORE
        targets[:, : given - 1] = walks.IGNORE
        return np.where(tokens == PAD, config.data.eos, tokens)[:, :-1], targets

    return batch_at
