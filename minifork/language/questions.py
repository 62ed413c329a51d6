"""Questions to a language model: a prompt, an expression for the accepted answers, and a length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from minifork.decoding.policy import Policy
from minifork.decoding.traces import Result, Traces, TraceTree
from minifork.language.automata import TokenAutomata, token_automata
from minifork.language.causal_lm import CausalLM
from minifork.language.patterns import NON_LETTER, compile_pattern
from minifork.language.vocabulary import Vocabulary

AT_ONCE = 16  # questions that share a batch: their first tokens alone have some megabytes a question


@dataclass(frozen=True)
class Questions:
    """B questions to one model.

    prompts: the tokens of each. answers: an expression for each (`minifork.language.patterns.compile_pattern`), with
    ``follow`` for what may come after it. max_new: the longest answer in tokens. numbers: the global number of each.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[str]
    follow: str | None
    max_new: int
    numbers: range

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: slice) -> "Questions":
        return replace(self, prompts=self.prompts[index], answers=self.answers[index], numbers=self.numbers[index])

    def automata(self, vocabulary: Vocabulary) -> TokenAutomata:
        """What accepts the answers, over the tokens of a vocabulary."""
        compiled = {answer: compile_pattern(answer, self.follow) for answer in set(self.answers)}
        return token_automata([compiled[answer] for answer in self.answers], vocabulary)


def ask(
    lm: CausalLM, questions: Sequence[str], answers: Sequence[str], opening: str | Sequence[str] = "",
    follow: str | None = NON_LETTER, max_new: int = 24,
) -> Questions:  # fmt: skip
    """Questions in the model's chat format, if it has one, each with an expression for its accepted answers.

    opening: how the model's answers begin, one text or one a question; the expressions are matched after it. Raises
    ValueError naming a question that is too long for the model's context.
    """
    opening = [opening] * len(questions) if isinstance(opening, str) else opening
    if not questions:
        raise ValueError("there are no questions: give one or more")
    if not len(questions) == len(answers) == len(opening):
        raise ValueError(f"there are {len(questions)} questions, {len(answers)} answers and {len(opening)} beginnings")
    texts = [_in_chat_format(lm, question) + start for question, start in zip(questions, opening, strict=True)]
    prompts = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    room = lm.context - max_new + 1
    for question, prompt in zip(questions, prompts, strict=True):
        if not 0 < len(prompt) <= room:
            raise ValueError(
                f"question {question[:60]!r} has {len(prompt)} tokens: "
                f"the model's context has room for 1 to {room}, with max_new={max_new}"
            )
    return Questions(prompts, answers, follow, max_new, range(len(prompts)))


def _in_chat_format(lm: CausalLM, question: str) -> str:
    """The text of a question and of the beginning of the model's turn."""
    if lm.tokenizer.chat_template is None:
        return question
    turns = [{"role": "user", "content": question}]
    return lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def trace_tree(lm: CausalLM, questions: Questions, policy: Policy) -> TraceTree:
    """The traces of a model on these questions."""
    prompts, ids = lm.prefill(questions.prompts), torch.tensor(questions.numbers, device=lm.device)
    return TraceTree(lm, prompts, questions.automata(lm.vocabulary), questions.max_new, policy, ids=ids)


def run_by_parts(
    lm: CausalLM, questions: Questions, policy: Policy, engine: Callable[[TraceTree, float], Result]
) -> Result:
    """The result of an engine on AT_ONCE questions at a time. What was looked up for them is dropped before the next.

    engine: called with the tree of each part, and with its share of the questions.
    """
    starts = range(0, len(questions), AT_ONCE)
    parts = (questions[start : start + AT_ONCE] for start in starts)
    return joined([engine(trace_tree(lm, part, policy), len(part) / len(questions)) for part in parts])


def joined(results: Sequence[Result]) -> Result:
    """One result from those of one engine on parts of the problems.

    Parts for which a budget sufficed were not sampled. Nothing is unknown there, so rollouts would change nothing.
    """
    sampled = next((result for result in results if result.n is not None), results[0])

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(result, name) for result in results])

    traces = [result.traces for result in results if result.traces is not None]
    return replace(
        sampled,
        outcomes=all_of("outcomes"),
        unknown=all_of("unknown"),
        evaluated=sum(result.evaluated for result in results),
        tokens=all_of("tokens"),
        explored=None if sampled.explored is None else all_of("p_lo"),
        traces=Traces(*(torch.cat([getattr(part, name) for part in traces]) for name in ("tokens", "logp", "outcome")))
        if traces
        else None,
    )
