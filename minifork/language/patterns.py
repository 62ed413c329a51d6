"""Regular expressions as automata over the bytes of a text, which is UTF-8.

The syntax is that of Rust's regex crate (`(?s:.)` is any character, `\\PL` one that is no letter). outlines-core builds
the automaton of a vocabulary of the 256 bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

END = "\U0010ffff"  # stands for the end of the text in the expression; this noncharacter occurs in no text
NON_LETTER = r"\PL"  # what may follow an answer by default
ASCII = 128


@dataclass(frozen=True)
class Pattern:
    """An automaton over bytes: next int32[S + 2, 256] and accepts_end bool[S + 2].

    Of the S live states 0 is the start. State S accepts whatever follows, and state S + 1 rejects it. accepts_end: if
    the text may end there.
    """

    next: np.ndarray
    accepts_end: np.ndarray

    @property
    def live(self) -> int:
        """The number S of live states, which is the accepting state."""
        return len(self.next) - 2


def any_of(texts: Iterable[str]) -> str:
    """The expression that matches these texts and no other; raises ValueError without any."""
    if not (alternatives := [re.escape(text) for text in texts]):
        raise ValueError("there is no accepted text: give one or more")
    return f"(?:{'|'.join(alternatives)})"


def compile_pattern(answer: str, follow: str | None = NON_LETTER) -> Pattern:
    """The automaton of texts that begin with a match of ``answer`` and then go on as ``follow`` allows.

    follow: an expression for what comes right after the answer, where the text does not end there. After it anything
    may come. None: the text must end with the answer. Raises ValueError for an expression that is none, that no text
    matches or that every text matches.
    """
    expression = f"(?:{answer})(?:{END if follow is None else f'{follow}|{END}'})"
    next_state, final, start = _byte_automaton(answer, expression)
    everything = f"pattern {answer!r} accepts every text: nothing is left to measure"
    if start in final:
        raise ValueError(everything)
    live = [start, *(state for state in next_state if state not in final | {start})]
    number = np.full(max([*next_state, *final]) + 1, len(live), dtype=np.int32)  # final states are one
    number[live] = np.arange(len(live))
    table = np.full((len(live) + 2, 256), len(live) + 1, dtype=np.int32)
    table[len(live)] = len(live)
    for i, state in enumerate(live):
        table[i, [*next_state[state]]] = number[[*next_state[state].values()]]
    at_end = np.arange(len(table))
    for byte in END.encode():
        at_end = table[at_end, byte]
    pattern = Pattern(table, at_end == len(live))
    if _accepts_every_text(pattern):
        raise ValueError(everything)
    return pattern


def _byte_automaton(answer: str, expression: str) -> tuple[dict[int, dict[int, int]], set[int], int]:
    """The states after each byte by state (of final ones also after 256, the end), the final states, and the start."""
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise ValueError("patterns need the package outlines_core: pip install 'minifork[hf]'") from None
    end_of_text = 256
    try:
        index = Index(expression, Vocabulary(end_of_text, {bytes([byte]): [byte] for byte in range(256)}))
    except ValueError as error:
        if "no transitions" in str(error):
            raise ValueError(f"pattern {answer!r} accepts no text") from None
        raise ValueError(f"pattern {answer!r} is no expression in the syntax of Rust's regex crate") from None
    return index.get_transitions(), index.get_final_states(), index.get_initial_state()


def _accepts_every_text(pattern: Pattern) -> bool:
    """True if every text of ASCII characters is accepted."""
    reached = np.zeros(len(pattern.next), dtype=bool)
    reached[0] = True
    for _ in range(len(reached)):
        new = np.zeros_like(reached)
        new[pattern.next[reached, :ASCII]] = True
        if (new <= reached).all():
            break
        reached |= new
    return bool((pattern.accepts_end | (np.arange(len(reached)) == pattern.live))[reached].all())
