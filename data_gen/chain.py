"""The modes with one right trace along a path: FWD, REV, and two rationales, RAT and NAME.

On the problem in `data_gen.star`'s docstring (right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) the right traces are

    FWD 2 3 4 EOS
    REV 4 3 2 EOS
    RAT 4 3 2 3 4 EOS     names the way: back from the goal to the start, then forward
    NAME 3 2 3 4 EOS      names the right branch by its first node, then goes forward

The way back decides RAT's fork. To name the branch is a fork itself, so NAME should not help. It is a control.
"""

import numpy as np


def chain_traces(mode_name: str, path: np.ndarray, mode_token: int, eos: int) -> np.ndarray:
    """int64[..., T]: the traces in a mode along right paths int64[..., l], from the mode to EOS."""
    mode, end = (np.full_like(path[..., :1], token) for token in (mode_token, eos))
    back = path[..., ::-1]
    nodes = {"FWD": [path], "REV": [back], "RAT": [back, path[..., 1:]], "NAME": [path[..., 1:2], path]}
    return np.concatenate([mode, *nodes[mode_name], end], axis=-1)


def chain_kinds(mode_name: str, length: int) -> list[str]:
    """The kinds (see `data_gen.graphs.ERRORS`) of the tokens of such a trace along a path of ``length`` nodes."""
    rest = (length - 2) * ["step"]
    forward, back = ["start", "fork", *rest], ["goal", *rest, "step"]
    kinds = {"FWD": forward, "REV": back, "RAT": back + forward[1:], "NAME": ["fork", *forward]}
    return ["mode", *kinds[mode_name], "end"]
