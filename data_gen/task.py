"""What a task is to the rest of the project: problems as tokens, traces, automata and walks.

The tasks are `data_gen.star.Star`, `data_gen.sizes.Sizes` (stars of several sizes) and `data_gen.arith.Arith`. A
problem is a prompt of ``prompt_len`` tokens; a trace answers it in one of the task's ``modes``, names its mode
first and ends with EOS. Problems come in batches of a type of the task's own that knows its length and can be
indexed and concatenated.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

PAD = -1  # stands in arrays where a trace or a walk is over
GRADINGS = ("steps", "answer")

Problems = Any  # a batch of problems, of a type that belongs to the task (a `Batch`)


@dataclass(frozen=True)
class Batch:
    """Problems as arrays whose first axis is the problem; the fields are a subclass's."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: slice | np.ndarray) -> "Batch":
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


class Task:
    """A task: a frozen dataclass of its config's data section with these members, next to those that it inherits.

    Every method is a pure function; arrays are int64, n is the number of problems. Numbers and words:

        label_key         the config key that says how many labels there are
        label_count       how many labels there are; their tokens are 0, 1, 2, ...
        sinks             the names of the DFA's sinks: accept, the ways to fail, too_long the last
        vocab_size        how many tokens there are, from 0 on
        eos               the token that ends a trace
        prompt_len        tokens of a prompt, the same for all problems
        graph_len         tokens of a prompt that print the graph; the query follows
        trace_len         tokens of the longest trace, mode and EOS included
        shortest_query    tokens of the shortest query with its walk
        graph             the star that all graphs are, where they have one shape

    Methods:

        mode_token(mode)             the token that a trace in this mode begins with
        sample(rng, n)               n problems
        give_cue(problems, cued)     the problems, the branch given away by the printed order where bool[n] ``cued``
        hang_off(problems, forked)   the problems, their decoys on another root, so no fork, where not bool[n]
                                     ``forked``; raises ValueError when no label is left for that root
        identity(problems)           uint64[n]: equal for problems on equal graphs, however printed
        prompts(problems)            [n, prompt_len]
        traces(problems, mode)       [n, trace_len], PAD past EOS; mode [n], an index into ``mode_names`` for each
        dfa(problems)                the automata that accept the right traces
        fork_prefix(problems)        [n, F]: the FWD tokens that end right before the fork
        children(problems)           [n, d]: the first node of every branch, PAD past the last; column 0 is right
        walks(problems, stop, informed, rng, count)    [n, count, Q]: queries and walks, PAD in gaps
        pass_at_1(stop)              closed form of an ideal base model's pass@1
        read_graph(tokens)           prompts as read: parents [n, E], children [n, E] as printed, what else each
                                     edge says [n, E, X], the query [n, 2] (start, goal)
        decode(tokens)               tokens [T] as a readable line

    One whose traces end in an answer also has ``answer_dfa(problems)``, the automata that judge the answer alone, and
    ``guessing_floor``, a guess's chance.
    """

    branch_order: str  # "shuffled", or "published": the right branch printed first
    modes: str  # the names of its modes, with commas between

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of its modes."""
        return tuple(self.modes.split(","))

    def require_words(self, valid: tuple[str, ...]) -> None:
        """Raise ValueError unless ``modes`` lists different ones of ``valid``, FWD among them, and the order is one."""
        names = self.mode_names
        if not set(names) <= set(valid) or len(set(names)) < len(names):
            raise ValueError(f"data.modes is {self.modes!r}: list different ones of {', '.join(valid)}")
        if "FWD" not in names:
            raise ValueError(f"data.modes is {self.modes!r}: FWD, which meets the fork, must be one of them")
        if self.branch_order not in ("shuffled", "published"):
            raise ValueError(f"data.branch_order is {self.branch_order!r}: choose shuffled or published")

    def shapes(self, problems: Problems) -> list[tuple[str, "Task", np.ndarray]]:
        """The problems by the shape of their graph: a name for the shape, a task of that shape, the rows bool[n]."""
        return [("", self, np.ones(len(problems), dtype=bool))]
