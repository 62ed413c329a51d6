"""Runs of version 0.1, which had a config.yaml and a meta.json instead of a record."""

from pathlib import Path
from typing import Any

from minifork import config as configs
from minifork.storage import files

RECORD = "meta.json"


def read(folder: Path) -> dict[str, Any]:
    """What a folder's meta.json and config.yaml say, as a record without identity and hashes of weights.

    Raises ValueError naming the file that is missing, damaged or of another project.
    """
    path = folder / RECORD
    meta, tree = files.read_json(path, "schema", "stage", "complete"), _tree(folder)
    if meta["stage"] not in ("base", "sft", "rl") or not isinstance(tree.get("rl"), dict):
        raise ValueError(f"{path}: not of a minifork run; move it elsewhere")
    tree.pop("reproduce", None)  # it decides nothing, and its keys and limits are others now
    _take_start(folder, meta, tree)
    try:
        if "weight" in meta:
            tree["wise"] = {"weights": f"{float(meta['weight']):g}", "early": meta.get("early", 0)}
        return {
            "stage": "wise" if "weight" in meta else meta["stage"],
            "config": tree,
            "parent": _parent(meta, tree),
            "weights": {},
            "legs": [{"from": 0, "to": meta["step"]} | {key: meta.get(key) for key in ("machine", "torch", "threads")}],
            "step": int(meta["step"]),
            "steps": int(meta["steps"]),
            "complete": bool(meta["complete"]),
            "seconds": float(meta["seconds"]),
        }
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: damaged; remove its folder and run it again") from None


def _tree(folder: Path) -> dict:
    """What a run's config.yaml says."""
    path = folder / "config.yaml"
    try:
        tree = configs.read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; remove the folder and run it again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("sft"), dict):
        raise ValueError(f"{path}: damaged; remove the folder and run it again")
    return tree


def _take_start(folder: Path, meta: dict, tree: dict) -> None:
    """Give RL from a run that `rl.start` named that run's sft section, which its config left out.

    Raises ValueError for a start that no config of this version asks for.
    """
    start = tree["rl"].pop("start", "")
    if meta["stage"] != "rl" or not start or not tree["rl"].get("epoch"):
        return
    tuned, other = _tree(folder.parent / start), files.read_json(folder.parent / start / RECORD)
    if tuned.get("seed") != tree.get("seed") or other.get("stage") != "sft" or "weight" in other:
        raise ValueError(f"{folder / RECORD}: started from {start}, as no run of this version can; move it elsewhere")
    tree["sft"] = tuned["sft"]


def _parent(meta: dict, tree: dict) -> dict[str, str] | None:
    """What the run started from, as a record says it."""
    if "weight" in meta:
        last = f"epochs/e{tree['sft']['epochs']}.pt"
        return {"run": meta["tuned"], "file": last, "weights": meta["tuned_hash"]}
    if meta["stage"] == "base":
        return None
    run, _, file = meta.get("start", f"{meta.get('base')}/ckpt.pt").partition("/")
    return {"run": run, "file": file, "weights": meta["start_hash"]}
