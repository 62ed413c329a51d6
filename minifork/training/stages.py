"""The stages that train: pretraining on random walks, fine-tuning on traces, RL.

Each hands a TrainingJob to `minifork.training.loop.fit`.
"""

from functools import lru_cache

import numpy as np

from data_gen import audit, audit_rows, streams, walks
from data_gen.task import PAD
from minifork import runs
from minifork.gpt import GPT
from minifork.models import new_model, pick_device
from minifork.runs import Checkpoint, Run
from minifork.schema import Config, parse_anchor
from minifork.storage.files import read_json, write_json
from minifork.training import losses, reinforce
from minifork.training.anchoring import anchored
from minifork.training.loop import BatchAt, Objective, TrainingJob, fit, supervised

ALLOW = "a control meant to leak needs sft.allow_leak=true"


def train(config: Config, stage: str, resume: bool) -> Run:
    """The run of the stage base, sft or rl, trained from its parent's weights or from where it stopped.

    A base is trained on random walks from scratch. Fine-tuning on traces and RL keep snapshots at epochs or updates
    1, 2, 4, ... Raises ValueError for an unfinished run without ``resume``, for a parent that is missing, for data that
    leaks, and as `check_rl` does.
    """
    parent, epoch = runs.parent_stage(config, stage), config.rl.epoch if stage == "rl" else 0
    start = runs.require_run(config, parent).checkpoint(epoch or None) if parent else None
    with runs.hold_run(config, stage, start, resume) as run:
        return train_to_end(run, start)


def train_to_end(run: Run, start: Checkpoint | None) -> Run:
    """The run, trained from ``start`` (a base: from scratch) or from where it stopped."""
    if run.complete:
        run.say(f"{run.folder} is complete: nothing to do")
    elif start is None:
        _pretrain(run)
    elif run.stage == "sft":
        _fine_tune(run, start)
    else:
        _reinforce(run, start)
    return run


def _pretrain(run: Run) -> None:
    config, settings = run.config, run.config.pretrain
    model, device = new_model(config, config.base_seed), pick_device(config)
    size = sum(p.numel() for p in model.parameters())
    batch = f"{settings.batch} x {config.walks.seq_len} tokens"
    run.say(f"{run.name}: {size:,} parameters, {settings.steps} steps of {batch}")
    objective = supervised(walk_batches(config), losses.parse_loss("cross_entropy"), device)
    fit(model, TrainingJob(run, objective, settings.steps, settings), device)


def _fine_tune(run: Run, start: Checkpoint) -> None:
    config, settings, device = run.config, run.config.sft, pick_device(run.config)
    data = sft_data(config, 0)
    check_traces(run, data)
    run.record["data_hash"] = streams.data_hash(data.tokens)

    total = sft_steps(config, settings.epochs)
    run.say(f"{run.name}: from {start.path}, {settings.traces} traces, {settings.epochs} epochs, {total} steps")
    snapshots = {sft_steps(config, epoch): runs.snapshot(epoch) for epoch in run.epochs}
    job = TrainingJob(run, sft_objective(run, start, device), total, settings, snapshots)
    fit(start.model().train(), job, device)


def sft_steps(config: Config, epochs: int) -> int:
    """The number of steps of so many epochs, rounded up to whole batches."""
    return -(-epochs * config.sft.traces // config.sft.batch)


def sft_objective(run: Run, start: Checkpoint, device: str) -> Objective:
    """The objective of fine-tuning: `sft.loss`, and with `sft.anchor` the anchored one once its reference exists."""
    config, batch_at = run.config, sft_batches(run.config)
    plain = supervised(batch_at, losses.parse_loss(config.sft.loss), device)
    anchor = parse_anchor(config.sft.anchor)
    if anchor is None:
        return plain
    first_step, file = sft_steps(config, anchor.epoch), runs.snapshot(anchor.epoch)

    def reference() -> GPT:
        model = start.model()
        if anchor.epoch:
            if not run.has(file):
                raise ValueError(f"{run.folder / file}: sft.anchor needs this snapshot; remove the run, make it again")
            model.load_state_dict(run.read(file)["model"])
        return model.to(device)

    late = anchored(batch_at, anchor, reference, device)
    return lambda model, step: (late if step >= first_step else plain)(model, step)


def _reinforce(run: Run, start: Checkpoint) -> None:
    config, settings, device = run.config, run.config.rl, pick_device(run.config)
    check_rl(config)
    if settings.advantage == "exact":
        rollouts, objective = "", reinforce.exact_objective(config, device)
    else:
        rollouts = f" x {settings.group} rollouts"
        objective = reinforce.group_objective(config, start.model().to(device), device)
    run.say(f"{run.name}: from {start.path}, {settings.updates} updates of {settings.prompts} problems{rollouts}")
    snapshots = {update: runs.snapshot(update) for update in run.epochs}
    fit(start.model(), TrainingJob(run, objective, settings.updates, settings, snapshots), device)


def sft_data(config: Config, epoch: int) -> streams.Examples:
    """The examples of an epoch under the config's mixture."""
    return streams.sft_examples(config.data, config.sft, config.seed, config.sft.traces, epoch)


# the leak audit


def audit_command(config: Config) -> int:
    """Print the leak audit of the config's SFT set; returns 1 when something gives the branch away."""
    data = sft_data(config, 0)
    leaks, table = _audit(config, data)
    print(table)
    print(_verdict(leaks), f"({len(data.tokens)} traces, false alarms <= {audit.FALSE_ALARM_RATE:g} an audit)")
    return 1 if leaks else 0


def check_traces(run: Run, data: streams.Examples) -> None:
    """Raise ValueError naming what gives the branch away in the SFT set of a run, unless sft.allow_leak.

    Runs on disk keep the audit of each set beside them, by the set's hash, and do not repeat it.
    """
    path = run.folder.parent / "audits" / f"{streams.data_hash(data.tokens)}.json"
    if run.memory is None and path.exists():
        leaks = read_json(path, "leaks")["leaks"]
    else:
        leaks, table = _audit(run.config, data)
        if run.memory is None:
            write_json(path, {"leaks": leaks, "table": table.splitlines()})
    if leaks and not run.config.sft.allow_leak:
        raise ValueError(f"{_verdict(leaks)}; {ALLOW}")
    run.say(_verdict(leaks))


def check_rl(config: Config) -> None:
    """Raise ValueError for what RL cannot use: rl.epoch, rl.policy, rl.source, sft.prefix, leaks, too many traces.

    rl.epoch must be 0 or an epoch whose weights are kept. rl.source=sft needs a fine-tuned start with at least
    rl.problems problems. Prompts are checked for RL from the base only, unless sft.allow_leak. Right traces are counted
    for advantage exact.
    """
    settings, count = config.rl, config.sft.problem_count
    reinforce.rollout_policy(config)
    if settings.epoch not in (epochs := [0, *runs.epochs_of(config, "sft")]):
        raise ValueError(
            f"rl.epoch is {settings.epoch}: there are weights of {', '.join(map(str, epochs))} (0: the base)"
        )
    if settings.source == "sft" and settings.epoch == 0:
        raise ValueError("rl.source is 'sft': RL from the base (rl.epoch=0) has no fine-tuning, give fresh")
    if settings.source == "sft" and settings.problems > count:
        there = f"rl.source=sft, and fine-tuning has {count} distinct problems"
        raise ValueError(f"rl.problems is {settings.problems}: {there}; lower it or raise sft.traces")
    if config.sft.prefix:
        raise ValueError(f"sft.prefix is {config.sft.prefix}: rl samples traces without a prefix; give 0")
    if settings.epoch == 0 and config.data.branch_order != "shuffled" and not config.sft.allow_leak:
        raise ValueError(f"data.branch_order gives the right branch away; {ALLOW}")
    if settings.advantage == "exact":
        reinforce.right_traces(config, streams.training_problems(config.data, config.seed, settings.prompts))


def _audit(config: Config, data: streams.Examples) -> tuple[list[str], str]:
    """The names of the checks that find a leak in an SFT set, and the table of all checks."""
    mixture = config.sft
    checks = audit.audit(config.data, data, mixture.first_share, mode_name=mixture.mode_names[0])
    return [check.name for check in checks if check.flagged], audit_rows.table(checks)


def _verdict(leaks: list[str]) -> str:
    if leaks:
        return f"leak audit: the branch is given away by {', '.join(leaks)}"
    return "leak audit: nothing on the surface gives the branch away"


# batches


def walk_batches(config: Config) -> BatchAt:
    """The batches of pretraining: random walks on the task's graphs."""
    task, settings, seed, batch = config.data.walk_task, config.walks, config.base_seed, config.pretrain.batch
    return lambda step: walks.walk_batch(task, settings.stop, settings.seq_len, seed, step, batch, settings.informed)


def sft_batches(config: Config) -> BatchAt:
    """Batches cut from an endless row of shuffled epochs, so that all have the same shape.

    Loss is on the trace only; of the prompt, only its last token predicts anything. With ``sft.prefix`` a random
    integer, drawn anew whenever an example is shown, stands between prompt and trace, as the prompt's last token.
    """
    settings, prompt_len = config.sft, config.data.prompt_len + bool(config.sft.prefix)
    fixed = None if settings.fresh else _tokens_and_labels(config, 0)

    @lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        examples = _tokens_and_labels(config, epoch) if fixed is None else fixed
        return examples[:, streams.generator(config.seed, "train", epoch, "shuffle").permutation(settings.traces)]

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        epochs, rows = np.divmod(np.arange(step * settings.batch, (step + 1) * settings.batch), settings.traces)
        examples = [shuffled(int(epoch))[:, rows[epochs == epoch]] for epoch in np.unique(epochs)]
        tokens, labels = np.concatenate(examples, axis=1)
        if settings.prefix:
            rng = streams.generator(config.seed, "train", step, "prefix")
            integers = rng.integers(settings.prefix, size=settings.batch)
            tokens, labels = (np.insert(part, config.data.prompt_len, integers, axis=1) for part in (tokens, labels))
        targets = labels[:, 1:].copy()  # PAD, which fills short traces, equals IGNORE
        targets[:, : prompt_len - 1] = walks.IGNORE
        return np.where(tokens == PAD, config.data.eos, tokens)[:, :-1], targets

    return batch_at


def _tokens_and_labels(config: Config, epoch: int) -> np.ndarray:
    """int64[2, traces, T]: the tokens of an epoch's examples, and the same as labels to learn.

    A share sft.wrong_forks of the traces that pass the fork has a wrong branch as its label there.
    """
    task, data = config.data, sft_data(config, epoch)
    labels = data.tokens.copy()
    if config.sft.wrong_forks:
        fork, children = task.fork_prefix(data.problems), task.children(data.problems)
        if fork is None or children is None:
            raise ValueError(f"sft.wrong_forks is {config.sft.wrong_forks}: task {config.task} has no fork, give 0")
        place = task.prompt_len + fork.shape[1]
        crossing = task.crosses(data.problems, data.tokens[:, task.prompt_len :])
        rng = streams.generator(config.seed, "train", epoch if config.sft.fresh else 0, "labels")
        wrong = 1 + (rng.random(len(labels)) * ((children != PAD).sum(axis=1) - 1)).astype(int)
        chosen = crossing & (rng.random(len(labels)) < config.sft.wrong_forks)
        labels[chosen, place] = children[chosen, wrong[chosen]]
    return np.stack([data.tokens, labels])
