"""The fit of sigma: formulas on made-up grids, settings against the optimizer's own learning rates, the study small."""

import itertools

import numpy as np
import pytest

from experiments.studies import sigma
from minifork import config as configs
from minifork.statistics import law as laws
from minifork.storage.files import read_json
from minifork.training.loop import schedule
from tests.helpers.starts import Starts


def grid(noise: float) -> list[dict]:
    """Checkpoints whose sigma is 2 sqrt(epochs) lr / traces, up to noise in its logarithm."""
    rng, rows = np.random.default_rng(0), []
    for traces, lr, epochs, pair in itertools.product((500, 1000), (0.001, 0.002), (1, 4, 16), (0, 1)):
        value = 2 * np.sqrt(epochs) * lr * np.exp(rng.normal(0, noise))
        name = f"{sigma.GRID}{traces} {lr}"
        rows.append({"run": name, "pair": pair, "epochs": epochs, "lr": lr, "traces": traces, "sigma": value})
    return rows


def test_a_formula_is_judged_on_settings_that_it_has_not_seen():
    exact = sigma.held_out_fit(grid(0.0), "epochs, learning rate")
    assert exact["median"] == exact["quantile_90"] == 0
    assert [float(value) for value in exact["constants"].split()] == pytest.approx([np.log(2), 0.5, 1], abs=1e-3)
    without_lr = sigma.held_out_fit(grid(0.0), "epochs, traces")
    assert without_lr["median"] > 0.3  # learning rates differ by log 2 = .69
    assert 0 < sigma.held_out_fit(grid(0.1), "epochs, learning rate")["median"] < 0.15


def test_the_range_and_the_spread_between_pairs():
    rows = sigma.epoch_rows(grid(0.1))
    assert [row["epochs"] for row in rows] == [1, 4, 16] and all(row["runs"] == 8 for row in rows)
    assert all(0.02 < row["between_pairs"] < 0.2 for row in rows)
    assert all(row["smallest"] <= row["median"] <= row["largest"] for row in rows)
    single = sigma.epoch_rows([row for row in grid(0.1) if row["pair"] == 0])
    assert [row["between_pairs"] for row in single] == [None] * 3


def test_settings_sum_the_learning_rates_of_the_steps_before_a_checkpoint():
    config = configs.load_config("star", ["sft.traces=64", "sft.batch=16", "sft.epochs=4", "sft.lr=0.01"])
    values = sigma.settings(config, 2)
    assert values["steps"] == 8 and values["traces"] == 64
    assert values["lr_sum"] == pytest.approx(0.01 * sum(schedule(step, 16, config.sft.warmup) for step in range(8)))


def test_sigma(copy, monkeypatch, capsys):
    """The study with two entries: the runs that it makes, one row a checkpoint, numbers of the records."""
    starts, pipeline = Starts(monkeypatch), copy("base", "fork1", measured=True)
    entries = [{"as": "grid: {sft.lr}", "sft.lr": [0.001, 0.002]}, {"as": "wrong", "sft.wrong_forks": 0.5}]
    monkeypatch.setattr("experiments.study.read_study", lambda name: entries)
    monkeypatch.setattr(laws, "MIN_R", 0.0)
    assert pipeline("sigma") == 0 and set(starts.commands) == {"sft"}
    written, rows = (read_json(pipeline.folder / f"sigma{part}.json") for part in ("", "-rows"))
    assert {row["run"] for row in rows["rows"]} == {"grid: 0.001", "grid: 0.002", "wrong"}
    record = pipeline.view()["records"][-1]
    matching = [row for row in rows["rows"] if row["sigma"] == record["fork"]["sigma"]]
    assert len(matching) == 1 and matching[0]["train_sigma"] == record["fork_train"]["sigma"]
    assert [fit["formula"] for fit in written["formulas"]] == [*sigma.FORMULAS]
    assert "quantile_90" in capsys.readouterr().out
