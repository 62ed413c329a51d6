"""Evaluation: exact pass@k of every run of a task, what it is made of, and a check by rollouts.

Reads the runs in runs/<task>/, writes eval.json (one record a checkpoint) and eval.npz (p_i of every
problem) there, and prints a table. All runs are measured on the same test problems and all intervals
use the same resamples, so differences between runs are paired.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_gen import star, streams, verifier
from data_gen.star import MODES, Problems, Star
from minifork import passk, runs
from minifork.config import Config
from minifork.exact import exact, force
from minifork.model import GPT, Prompts
from minifork.rollout import rollout
from minifork.stages import load_run, pick_device, sft_data

CHECK_LEVEL = 1e-3  # chance that a correct evaluation reports any disagreement


@dataclass(frozen=True)
class ProblemSet:
    """Problems as tensors: prompts [n, P], automata [n, S, V], fork prefix [n, 2], branches [n, d], right first."""

    prompts: Tensor
    dfa: Tensor
    fork: Tensor
    branches: Tensor


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights to measure: where it lies, its run's meta and config, its epoch (None for a base)."""

    path: Path
    meta: dict
    config: Config
    epoch: int | None
    final: bool


def evaluate(config: Config) -> int:
    """Measure every finished run of the task; returns 1 when rollouts disagree with the exact values."""
    folder, task, device = runs.task_folder(config), config.data, pick_device(config)
    checkpoints = find_checkpoints(config)
    ks = powers_of_two(config.eval.max_k)
    weights = passk.resamples(config.eval.problems, config.eval.bootstrap)
    test = {0.0: streams.test_problems(task, config.eval.problems)}
    records, checks, arrays, sets = [], [], {}, {}
    sampling_seconds = 0.0

    print(f"evaluating {len(checkpoints)} checkpoints on {config.eval.problems} test problems", flush=True)
    for checkpoint in tqdm(checkpoints, desc="eval", unit="checkpoint", disable=None):
        model = load_run(checkpoint.path, checkpoint.config).to(device)
        trained_on = training_forks(checkpoint, config.eval.problems)
        for cue_rate in sorted({0.0, cue_of(checkpoint)}):
            if cue_rate not in sets:
                test.setdefault(cue_rate, streams.test_problems(task, config.eval.problems, cue_rate))
                sets[cue_rate] = problem_set(task, test[cue_rate], device)
            prompts = model_prompts(model, sets[cue_rate])
            sinks = {mode: sink_probabilities(model, task, prompts, sets[cue_rate], mode) for mode in (None, *MODES)}
            record = describe(checkpoint, cue_rate, ks, sinks, weights)
            at_fork = branch_probabilities(model, prompts, sets[cue_rate])
            arrays[array_key(record, "fork")] = at_fork
            record["fork"] = fork_statistics(at_fork)
            record["mode"] = mode_statistics(task, prompts)
            record["fork_train"] = None
            if trained_on is not None:
                train_set = problem_set(task, trained_on, device)
                seen = branch_probabilities(model, model_prompts(model, train_set), train_set)
                arrays[array_key(record, "fork_train")] = seen
                record["fork_train"] = fork_statistics(seen)
            record["fork"]["train_p_right"] = record["fork_train"] and record["fork_train"]["p_right"]
            records.append(record)
            for mode, values in sinks.items():
                arrays[array_key(record, mode)] = values[:, 0]
            if checkpoint.final and cue_rate == 0.0:
                started = time.monotonic()
                checks.append(check_by_rollouts(config, model, prompts, sets[cue_rate], sinks[None], record))
                sampling_seconds += time.monotonic() - started

    for check in checks:
        check["agrees"] = check["ks_p"] * len(checks) >= CHECK_LEVEL
    result = {
        "schema": 1,
        "task": config.task,
        "engine": "exact",
        "policy": "temperature 1",
        "grading": "steps",
        "split": "test",
        "n_problems": config.eval.problems,
        "data_hash": streams.data_hash(star.prompts(task, test[0.0])),
        "records": records,
        "checks": checks,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    runs.write_atomically(folder / "eval.npz", lambda file: file.write(buffer.getvalue()))
    runs.write_json(folder / "eval.json", result)
    print(table(records))
    print(check_lines(checks))
    print(f"sampled {sum(c['problems'] * c['n'] for c in checks) / sampling_seconds:,.0f} rollouts/s")
    print(f"all {len(records)} records: {folder / 'eval.json'}; p of every problem: {folder / 'eval.npz'}")
    return 0 if all(check["agrees"] for check in checks) else 1


def find_checkpoints(config: Config) -> list[Checkpoint]:
    """Every checkpoint of the finished runs of this task and data, bases first, then by name and epoch.

    Raises ValueError when there is none. Runs that cannot be compared are named and left out.
    """
    found: list[Checkpoint] = []
    folder = runs.task_folder(config)
    for path in sorted(folder.glob("*/meta.json")):
        run, meta = path.parent, runs.read_json(path)
        try:
            run_config = runs.read_config(run)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        if not meta.get("complete"):
            print(f"{run}: left out, unfinished")
        elif run_config.data != config.data:
            print(f"{run}: left out, its data section differs from this config's")
        elif meta["stage"] == "base":
            found.append(Checkpoint(run / "ckpt.pt", meta, run_config, None, True))
        else:
            epochs = sorted(int(p.stem[1:]) for p in run.glob("epochs/e*.pt") if p.stem[1:].isdigit())
            for epoch in epochs:
                path = run / "epochs" / f"e{epoch}.pt"
                found.append(Checkpoint(path, meta, run_config, epoch, epoch == epochs[-1]))
    if not found:
        raise ValueError(f"{folder}: no finished run to evaluate; make one with `minifork pretrain` and `minifork sft`")
    return sorted(found, key=lambda c: (c.meta["stage"] != "base", c.path.parts[: len(folder.parts) + 1], c.epoch or 0))


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to ``largest``."""
    return [2**i for i in range(largest.bit_length())]


def cue_of(checkpoint: Checkpoint) -> float:
    """The share of cued problems in a run's training mixture, 0 for a base."""
    return checkpoint.config.sft.cue_rate if checkpoint.meta["stage"] == "sft" else 0.0


def problem_set(task: Star, problems: Problems, device: str) -> ProblemSet:
    """The tensors of a batch of problems."""
    dfa = verifier.star_dfa(task, problems).next.astype(np.int64)
    arrays = star.prompts(task, problems), dfa, star.fork_prefix(task, problems), star.children(task, problems)
    return ProblemSet(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays))


def training_forks(checkpoint: Checkpoint, most: int) -> Problems | None:
    """The (first) training problems whose trace passed the fork, None if there are none."""
    if checkpoint.meta["stage"] == "base":
        return None
    data = sft_data(checkpoint.config, 0)
    crossed = (data.forward & data.problems.forked).nonzero()[0][:most]
    return data.problems[crossed] if len(crossed) else None


@torch.no_grad()
def model_prompts(model: GPT, problems: ProblemSet) -> Prompts:
    """Encode the prompts of a set once."""
    return model.prefill(problems.prompts)


def sink_probabilities(model: GPT, task: Star, prompts: Prompts, problems: ProblemSet, mode: str | None) -> np.ndarray:
    """float64[n, sinks], free (mode None) or with the mode token forced."""
    forced = None
    if mode is not None:
        forced = torch.full((len(prompts), 1), task.mode_token(mode), device=problems.dfa.device)
    return exact(model, prompts, problems.dfa, len(verifier.SINKS), task.trace_len, forced).cpu().numpy()


@torch.no_grad()
def branch_probabilities(model: GPT, prompts: Prompts, problems: ProblemSet) -> np.ndarray:
    """float64[n, d]: probability of each branch at the fork under forced FWD, renormalised, right one first."""
    _, logits = force(model, prompts, problems.fork.shape[1], problems.fork)
    return torch.softmax(logits.double().gather(1, problems.branches), dim=1).cpu().numpy()


def fork_statistics(branch: np.ndarray) -> dict:
    """What a model does at the fork, from float64[n, d] with the right branch first; entropies in nats."""
    statistics = {}
    for name, (value, where) in fork_quantities(branch).items():
        statistics[name] = float(value[where].mean()) if where.any() else None
    return {**statistics, "n": len(branch)}


def fork_quantities(branch: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The per-problem values [n] behind each fork statistic, and the problems bool[n] it averages over."""
    top, right, everywhere = branch.max(axis=1), branch.argmax(axis=1) == 0, np.ones(len(branch), dtype=bool)
    return {
        "p_right": (branch[:, 0], everywhere),
        "accuracy": (right.astype(float), everywhere),
        "entropy": (-np.sum(branch * np.log(np.maximum(branch, 1e-300)), axis=1), everywhere),
        "confidence_right": (top, right),
        "confidence_wrong": (top, ~right),
        "wrong_commit": ((branch[:, 0] < 0.05).astype(float), everywhere),
    }


def mode_statistics(task: Star, prompts: Prompts) -> dict:
    """Mean probability of FWD among the modes, and the mean entropy (nats) of the choice."""
    tokens = [task.mode_token(mode) for mode in MODES]
    modes = torch.softmax(prompts.logits[:, tokens].double(), dim=1).cpu().numpy()
    entropy = -np.sum(modes * np.log(np.maximum(modes, 1e-300)), axis=1)
    return {"p_forward": float(modes[:, 0].mean()), "entropy": float(entropy.mean())}


def describe(checkpoint: Checkpoint, cue_rate: float, ks: list[int], sinks: dict, weights: np.ndarray) -> dict:
    """The record of one checkpoint on one test set, without what needs the model again (fork, mode)."""
    meta = checkpoint.meta
    free = coverage(sinks[None][:, 0], ks, weights)
    return {
        "run": meta["name"],
        "stage": meta["stage"],
        "base_seed": meta["base_seed"],
        "seed": meta["seed"],
        "fork_rate": meta.get("fork_rate"),
        "variant": meta["variant"],
        "epoch": checkpoint.epoch,
        "test_cue_rate": cue_rate,
        "config_hash": meta["config_hash"],
        "n": None,
        **free,
        "forced": {mode: coverage(sinks[mode][:, 0], ks, weights) for mode in MODES},
        "errors": dict(zip(verifier.ERRORS, sinks[None].mean(axis=0)[1:].tolist(), strict=True)),
    }


def coverage(p: np.ndarray, ks: list[int], weights: np.ndarray) -> dict:
    """pass@k with 95 % bootstrap intervals, J_k, polarisation index and rho of one p [n]."""
    solved = passk.solve_rate(p[:, None], ks)
    passed = solved.mean(axis=0)
    loss, index = passk.polarisation(p.mean(), passed, ks)
    low, high = passk.interval(weights @ solved)

    def by_k(values: np.ndarray) -> dict:
        return {str(k): float(v) for k, v in zip(ks, values, strict=True)}

    return {
        "pass_at": by_k(passed),
        "pass_at_lo": by_k(passed),
        "pass_at_hi": by_k(passed),
        "ci95": {str(k): [float(a), float(b)] for k, a, b in zip(ks, low, high, strict=True)},
        "J": by_k(loss),
        "index": by_k(index),
        "rho": passk.rho(p),
    }


def array_key(record: dict, what: str | None) -> str:
    """The name of an array of a record in eval.npz: run/epoch/test set/what.

    what: None or a mode for p float64[n], free or forced; "fork" or "fork_train" for the branch
    probabilities float64[n, d] on test or training problems.
    """
    epoch = "base" if record["epoch"] is None else f"e{record['epoch']}"
    return f"{record['run']}/{epoch}/cue{record['test_cue_rate']:g}/{what or 'free'}"


def check_by_rollouts(
    config: Config, model: GPT, prompts: Prompts, problems: ProblemSet, sinks: np.ndarray, record: dict
) -> dict:
    """Sample rollouts on the first problems and test that their counts follow the exact p (randomised PIT)."""
    count, n = config.eval.check_problems, config.eval.check_rollouts
    counts = rollout(model, prompts[:count], problems.dfa[:count], sinks.shape[1], config.data.trace_len, n, seed=0)
    correct, p = counts[:, 0].cpu().numpy(), sinks[:count, 0]
    k = min(16, n)
    pit = passk.randomised_pit(correct, n, p, np.random.default_rng(0))
    return {
        "run": record["run"],
        "epoch": record["epoch"],
        "k": k,
        "exact": float(passk.pass_at_k(p, [k])[0]),
        "rollouts": float(passk.unbiased(correct, n, k).mean()),
        # folded, the test also sees errors that push some problems up and others down
        "ks_p": min(1.0, 2 * min(passk.ks_uniform(pit), passk.ks_uniform(np.abs(2 * pit - 1)))),
        "problems": count,
        "n": n,
    }


def table(records: list[dict]) -> str:
    """The final checkpoint of every run, one line each."""
    last: dict[tuple, dict] = {}
    for record in records:
        last[record["run"], record["test_cue_rate"]] = record
    ks = [k for k in ("1", "4", "16", "64", "1024") if k in records[0]["pass_at"]]
    head = "".join(f"{'pass@' + k:>10}" for k in ks)
    lines = [f"{'run':<28}{'epoch':>6}{head}{'rho':>7}{'P(FWD)':>8}{'fork test':>11}{'train':>7}{'entropy':>9}"]
    for (run, cue_rate), record in last.items():
        name = run + (f" (cued test {cue_rate:g})" if cue_rate else "")
        passed = "".join(f"{record['pass_at'][k]:>10.3f}" for k in ks)
        train = record["fork_train"]
        lines.append(
            f"{name:<28}{record['epoch'] or '-':>6}{passed}{record['rho']:>7.3f}{record['mode']['p_forward']:>8.3f}"
            f"{record['fork']['accuracy']:>11.3f}{train['accuracy'] if train else float('nan'):>7.3f}"
            f"{record['fork']['entropy']:>9.3f}".replace("nan", "  -")
        )
    return "\n".join(lines)


def check_lines(checks: list[dict]) -> str:
    """What the rollouts said of the exact values."""
    worst = min(checks, key=lambda check: check["ks_p"])
    lines = [
        f"cross-check: {c['run']}: exact pass@{c['k']} {c['exact']:.4f}, rollouts {c['rollouts']:.4f}, "
        f"KS p {c['ks_p']:.2g}: DISAGREE"
        for c in checks
        if not c["agrees"]
    ]
    verdict = "disagree" if lines else "agree"
    lines.append(
        f"cross-check: exact and {worst['n']} rollouts on {worst['problems']} problems {verdict} for "
        f"{len(checks)} checkpoints (smallest KS p {worst['ks_p']:.2g}; false alarms <= {CHECK_LEVEL:g} an evaluation)"
    )
    return "\n".join(lines)
