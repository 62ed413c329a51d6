"""The stages that train: pretraining on random walks, fine-tuning on traces, RL. All hand a Job to `train.fit`."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data_gen import audit, streams, walks
from data_gen.task import PAD
from minifork import losses, runs
from minifork import rl as rl_objectives
from minifork.config import differences, to_tree
from minifork.model import GPT
from minifork.schema import Config
from minifork.train import BatchAt, Job, fit, load_model, supervised


def pick_device(config: Config) -> str:
    """ "cuda" or "cpu"; raises ValueError when CUDA is asked for and missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no CUDA device here; use device=auto")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def new_model(config: Config, seed: int) -> GPT:
    """A freshly initialised model of the config's shape."""
    torch.manual_seed(seed)
    return GPT(config.model, config.data.vocab_size, config.context)


def load_run(path: Path, config: Config) -> GPT:
    """The model saved at ``path``, in evaluation mode on the CPU."""
    model = new_model(config, 0)
    load_model(model, runs.load_weights(path), path)
    return model.eval()


def pretrain(config: Config, resume: bool) -> None:
    """Train the base model on random walks into its run folder.

    Raises ValueError for a folder that holds another run, or an unfinished one without ``resume``.
    """
    folder = runs.run_folder(config, "base")
    if runs.state_of(folder, config, "base", resume) == "complete":
        print(f"{folder} is complete: nothing to do")
        return
    task, plan = replace(config.data, branch_order="shuffled"), config.pretrain
    model = new_model(config, config.base_seed)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        return walks.walk_batch(
            task, config.walks.stop, config.walks.seq_len, config.base_seed, step, plan.batch, config.walks.informed
        )

    print(
        f"{folder.name}: pretraining {_count(model):,} parameters on random walks, "
        f"{plan.steps} steps of {plan.batch} x {config.walks.seq_len} tokens"
    )
    learn = supervised(batch_at, losses.parse("cross_entropy"), pick_device(config))
    job = Job(folder, learn, plan.steps, plan, config.save_every, meta=_meta(config, "base", folder.name))
    _fit(model, job, config, resume)


def sft(config: Config, resume: bool) -> None:
    """Fine-tune the base model on traces into the run's folder, with snapshots at epochs 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a base that is missing or of another config, and for data that leaks.
    """
    base = runs.base_folder(config)
    folder = runs.run_folder(config, "sft")
    if not runs.is_complete(base):
        raise ValueError(
            f"{base}: no finished base model; make it with `minifork pretrain base_seed={config.base_seed}`"
        )
    require_alike(base, config, "base")
    runs.require_start(folder, base / "ckpt.pt")
    plan, loss = config.sft, losses.parse(config.sft.loss)
    if runs.state_of(folder, config, "sft", resume) == "complete":
        print(f"{folder} is complete: nothing to do")
        return
    data = sft_data(config, 0)
    check_leaks(config, data)

    model = load_run(base / "ckpt.pt", config)
    model.train()
    steps = -(-plan.epochs * plan.traces // plan.batch)
    shape = ", ".join(f"{k} {v}" for k, v in to_tree(config)["model"].items())
    print(
        f"{folder.name}: from {base.name} it inherits the weights, the model ({shape}) and the task; "
        f"optimizer and schedule start afresh: {plan.traces} traces, {plan.epochs} epochs, {steps} steps"
    )
    meta = _meta(config, "sft", folder.name)
    meta |= {
        "base": base.name,
        "start_hash": runs.weights_hash(base / "ckpt.pt"),
        "fork_rate": plan.fork_rate,
        "data_hash": streams.data_hash(data.tokens),
        "epochs": plan.epochs,
    }
    learn = supervised(_sft_batches(config), loss, pick_device(config))
    _fit(model, Job(folder, learn, steps, plan, config.save_every, snapshots(config), meta), config, resume)


def rl(config: Config, resume: bool) -> None:
    """Go on from a fine-tuned run's snapshot, or from the base, by rewards; with snapshots at updates 1, 2, 4, ...

    Raises ValueError where `pretrain` does, for a start that is missing or of another config, and for sft.prefix.
    """
    plan, folder = config.rl, runs.run_folder(config, "rl")
    if config.sft.prefix:
        raise ValueError(f"sft.prefix is {config.sft.prefix}: rl samples traces without a prefix; give 0")
    if runs.state_of(folder, config, "rl", resume) == "complete":
        runs.require_start(folder, runs.task_folder(config) / runs.start_file(runs.read_json(folder / "meta.json")))
        print(f"{folder} is complete: nothing to do")
        return
    start = start_of(config)
    runs.require_start(folder, start)
    model, reference = load_run(start, config), load_run(start, config).to(pick_device(config))
    print(
        f"{folder.name}: from {start}, {plan.advantage} on {plan.problems} problems, {plan.updates} updates of "
        f"{plan.prompts} problems" + ("" if plan.advantage == "exact" else f" x {plan.group} rollouts")
    )
    learn = rl_objectives.objective(config, reference, pick_device(config))
    kept = {update: f"epochs/e{update}.pt" for update in doublings(plan.updates)}
    meta = _meta(config, "rl", folder.name) | {"fork_rate": config.sft.fork_rate}
    meta |= {"start": str(start.relative_to(runs.task_folder(config))), "start_hash": runs.weights_hash(start)}
    _fit(model, Job(folder, learn, plan.updates, plan, config.save_every, kept, meta), config, resume)


def start_of(config: Config) -> Path:
    """The weights that RL starts from: snapshot rl.epoch of the run rl.start (of this config's fine-tuned run where
    none is named), or the base for epoch 0.

    Raises ValueError naming the file when it is missing or was made with another config.
    """
    plan = config.rl
    if plan.epoch and plan.start:
        folder, path = runs.task_folder(config) / plan.start, f"epochs/e{plan.epoch}.pt"
    elif plan.epoch:
        folder, path = runs.run_folder(replace(config, name=""), "sft"), f"epochs/e{plan.epoch}.pt"
    else:
        folder, path = runs.base_folder(config), "ckpt.pt"
    if not (folder / path).exists() or not runs.is_complete(folder):
        raise ValueError(
            f"{folder / path}: no such weights to start from; make them with `minifork pretrain` and `sft`"
        )
    alike = "sft" if plan.epoch and not plan.start else "base"  # a run that is named may be tuned otherwise
    require_alike(folder, config, alike)
    tuned = runs.read_config(folder).sft
    if plan.epoch and tuned.prefix:
        raise ValueError(f"{folder} was tuned with sft.prefix={tuned.prefix}: rl samples traces without a prefix")
    if plan.epoch and tuned.fork_rate != config.sft.fork_rate:  # the run's name and records say it
        raise ValueError(f"{folder} has FORK_RATE {tuned.fork_rate:g}: give sft.fork_rate={tuned.fork_rate:g}")
    return folder / path


def require_alike(folder: Path, config: Config, stage: str) -> None:
    """Raise ValueError naming the keys in which a run differs from the config, in what decides a run of this stage."""
    changed = differences(runs.identity(runs.read_config(folder), stage), runs.identity(config, stage))
    if changed:
        raise ValueError(f"{folder} was made with another config ({'; '.join(changed[:3])}); use its values")


def sft_data(config: Config, epoch: int) -> streams.Examples:
    """The examples of an epoch under the config's mixture."""
    return streams.sft_examples(config.data, config.sft.mixture, config.seed, config.sft.traces, epoch)


def snapshots(config: Config) -> dict[int, str]:
    """The steps at which epochs 1, 2, 4, ... and the last are over, and the file each is kept in."""
    plan = config.sft
    return {-(-epoch * plan.traces // plan.batch): f"epochs/e{epoch}.pt" for epoch in doublings(plan.epochs)}


def planned_epochs(config: Config, meta: dict) -> set[int]:
    """The epochs (RL: updates) after which a finished run of this config and meta.json has kept a snapshot."""
    last = config.rl.updates if meta["stage"] == "rl" else config.sft.epochs
    return {epoch for epoch in doublings(last) if epoch > (meta.get("early") or 0)}


def doublings(last: int) -> list[int]:
    """1, 2, 4, ... below ``last``, and ``last``."""
    return sorted({2**i for i in range(last.bit_length())} | {last})


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
        leaks = runs.read_json(path, "leaks")["leaks"]
        if not isinstance(leaks, list) or not all(isinstance(name, str) for name in leaks):
            raise ValueError
    except ValueError:  # missing or damaged
        leaks, table = _audit(config, data)
        runs.write_json(path, {"leaks": leaks, "table": table.splitlines()})
    if leaks and not config.sft.allow_leak:
        raise ValueError(f"{_verdict(leaks)} (see {path}); a control meant to leak needs sft.allow_leak=true")
    print(_verdict(leaks) + ("; training all the same (sft.allow_leak=true)" if leaks else ""))


def _audit(config: Config, data: streams.Examples) -> tuple[list[str], str]:
    """The names of the checks that find a leak in an SFT set, and the table of all checks."""
    mixture = config.sft.mixture
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


def _fit(model: GPT, job: Job, config: Config, resume: bool) -> None:
    with runs.locked(job.folder):
        state = runs.state_of(job.folder, config, job.meta["stage"], resume)  # may have changed before the lock
        if state == "complete":
            return
        if state == "new":  # a run that failed before its first checkpoint may have left snapshots
            for path in runs.snapshots_in(job.folder).values():
                path.unlink()
        runs.write_config(job.folder / "config.yaml", config)
        fit(model, job, pick_device(config), state == "resume", config.compile)


def _count(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters())


def _meta(config: Config, stage: str, name: str) -> dict:
    return {
        "schema": runs.META_SCHEMA,
        "stage": stage,
        "name": name,
        "variant": runs.variant(config, stage),
        "task": config.task,
        "seed": None if stage == "base" else config.seed,
        "base_seed": config.base_seed,
        "config_hash": runs.config_hash(config, {"stage": stage}),
        "machine": runs.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
