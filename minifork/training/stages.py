"""The stages that train: pretraining on random walks, fine-tuning on traces, RL. All hand a Job to `train.fit`."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from data_gen import audit, streams, walks
from data_gen.task import PAD
from minifork import runs
from minifork.checkpoints import load, new_model, pick_device
from minifork.config import to_tree
from minifork.gpt import GPT
from minifork.schema import Config
from minifork.storage.files import read_json, write_json
from minifork.training import losses
from minifork.training import reinforce as rl_objectives
from minifork.training.loop import BatchAt, Job, fit, supervised


def pretrain(config: Config, resume: bool) -> None:
    """Train the base model on random walks.

    Raises ValueError for an unfinished run without ``resume``.
    """
    with runs.hold(config, "base", None, resume) as run:
        if run.complete:
            return print(f"{run.folder} is complete: nothing to do")
        task, plan = replace(config.data, branch_order="shuffled"), config.pretrain
        model = new_model(config, config.base_seed)

        def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
            return walks.walk_batch(
                task, config.walks.stop, config.walks.seq_len, config.base_seed, step, plan.batch, config.walks.informed
            )

        print(
            f"{run.name}: pretraining {_count(model):,} parameters on random walks, "
            f"{plan.steps} steps of {plan.batch} x {config.walks.seq_len} tokens"
        )
        device = pick_device(config)
        fit(model, Job(run, supervised(batch_at, losses.parse("cross_entropy"), device), plan.steps, plan), device)


def sft(config: Config, resume: bool) -> None:
    """Fine-tune the base model on traces, with snapshots at epochs 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a base that is missing, and for data that leaks.
    """
    start = runs.require(config, "base").checkpoint(None)
    plan, loss = config.sft, losses.parse(config.sft.loss)
    with runs.hold(config, "sft", start, resume) as run:
        if run.complete:
            return print(f"{run.folder} is complete: nothing to do")
        data = sft_data(config, 0)
        check_leaks(config, data)
        steps = -(-plan.epochs * plan.traces // plan.batch)
        shape = ", ".join(f"{k} {v}" for k, v in to_tree(config)["model"].items())
        print(
            f"{run.name}: from {start.run.name} it inherits the weights, the model ({shape}) and the task; "
            f"optimizer and schedule start afresh: {plan.traces} traces, {plan.epochs} epochs, {steps} steps"
        )
        run.record["data_hash"] = streams.data_hash(data.tokens)
        snapshots = {-(-epoch * plan.traces // plan.batch): runs.snapshot(epoch) for epoch in run.epochs}
        device = pick_device(config)
        job = Job(run, supervised(_sft_batches(config), loss, device), steps, plan, snapshots)
        fit(load(start).train(), job, device)


def rl(config: Config, resume: bool) -> None:
    """Go on from a fine-tuned run's snapshot, or from the base, by rewards; with snapshots at updates 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a start that is missing, and for sft.prefix.
    """
    plan = config.rl
    if config.sft.prefix:
        raise ValueError(f"sft.prefix is {config.sft.prefix}: rl samples traces without a prefix; give 0")
    start = runs.require(config, runs.parent_stage(config, "rl")).checkpoint(plan.epoch or None)
    with runs.hold(config, "rl", start, resume) as run:
        if run.complete:
            return print(f"{run.folder} is complete: nothing to do")
        device = pick_device(config)
        model, reference = load(start), load(start).to(device)
        print(
            f"{run.name}: from {start.path}, {plan.advantage} on {plan.problems} problems, {plan.updates} updates of "
            f"{plan.prompts} problems" + ("" if plan.advantage == "exact" else f" x {plan.group} rollouts")
        )
        learn = rl_objectives.objective(config, reference, device)
        fit(model, Job(run, learn, plan.updates, plan, {epoch: runs.snapshot(epoch) for epoch in run.epochs}), device)


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


def check_leaks(config: Config, data: streams.Examples) -> None:
    """Audit the SFT set once (cached by its hash) and refuse a leaking one unless sft.allow_leak.

    Raises ValueError naming the checks that found the leak.
    """
    path = runs.task_folder(config) / "audits" / f"{streams.data_hash(data.tokens)}.json"
    try:
        leaks = read_json(path, "leaks")["leaks"]
        if not isinstance(leaks, list) or not all(isinstance(name, str) for name in leaks):
            raise ValueError
    except ValueError:  # missing or damaged
        leaks, table = _audit(config, data)
        write_json(path, {"leaks": leaks, "table": table.splitlines()})
    if leaks and not config.sft.allow_leak:
        raise ValueError(f"{_verdict(leaks)} (see {path}); a control meant to leak needs sft.allow_leak=true")
    print(_verdict(leaks) + ("; training all the same (sft.allow_leak=true)" if leaks else ""))


def _audit(config: Config, data: streams.Examples) -> tuple[list[str], str]:
    """The names of the checks that find a leak in an SFT set, and the table of all checks."""
    mixture = config.sft
    checks = audit.audit(config.data, data, mixture.first_share, mode=mixture.mode_names[0])
    return [check.name for check in checks if check.flagged], audit.table(checks)


def _verdict(leaks: list[str]) -> str:
    if leaks:
        return f"leak audit: the branch is given away by {', '.join(leaks)}"
    return "leak audit: nothing on the surface gives the branch away"


def _sft_batches(config: Config) -> BatchAt:
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


def _count(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters())
