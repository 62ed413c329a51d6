"""Problems, streams, walks and verifiers, checked against graphs rebuilt from the tokens by plain Python.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each of about 40 statistics:
below 3e-4 for the whole file if the seeds were drawn anew.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import star, streams, verifier, walks
from data_gen.star import Problems, Star
from data_gen.streams import Mixture

TINY = Star(nodes=8, branches=2, length=3)
REFERENCE = Star(nodes=16, branches=2, length=4)
PLAIN = Mixture("FWD,REV", 0.5, 0.0, False, "data", False)
Z = 4.5

hypothesis_settings = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@st.composite
def tasks(draw, min_branches: int = 1) -> Star:
    """Small star tasks with at least one spare label, for the second root."""
    branches, length = draw(st.integers(min_branches, 3)), draw(st.integers(2, 5))
    order = draw(st.sampled_from(["shuffled", "published"]))
    return Star(branches * (length - 1) + 2 + draw(st.integers(0, 4)), branches, length, order)


@st.composite
def tasks_with_problems(draw, n: int = 6) -> tuple[Star, Problems]:
    """A task and n of its problems, some with decoys on a second root."""
    task = draw(tasks())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return task, task.hang_off(task.sample(rng, n), rng.random(n) < 0.7)


class Graph:
    """What a reader sees in a prompt: children and parent of each node, the start and the goal."""

    def __init__(self, task: Star, prompt: np.ndarray):
        tokens = [int(t) for t in prompt]
        assert len(tokens) == task.prompt_len and tokens[-1] == task.sep
        self.start, self.goal = tokens[-3:-1]
        self.edges = list(zip(tokens[:-3:2], tokens[1:-3:2], strict=True))
        self.parent = {v: u for u, v in self.edges}
        self.children = {u: [v for w, v in self.edges if w == u] for u, _ in self.edges}

    def chain(self) -> list[int]:
        """The nodes from the start to the goal, found by climbing from the goal."""
        nodes = [self.goal]
        while nodes[-1] in self.parent:
            nodes.append(self.parent[nodes[-1]])
        return nodes[::-1]


def grade(task: Star, graph: Graph, answer) -> str:
    """An independent grader: follows the answer edge by edge; "live" when the answer is not finished."""
    if len(answer) == 0:
        return "live"
    if answer[0] not in (task.fwd, task.rev):
        return "malformed"
    forward, here = answer[0] == task.fwd, None
    first, last = (graph.start, graph.goal) if forward else (graph.goal, graph.start)
    for token in answer[1:]:
        if token == task.eos:
            return "accept" if here == last else "early_stop"
        if token >= task.nodes:
            return "malformed"
        if here is None:
            if token != first:
                return "malformed" if forward else "wrong_goal"
        elif here == last:
            return "too_long"
        elif forward:
            if token not in graph.children.get(here, []):
                return "invalid_edge"
            if token not in graph.chain():
                return "wrong_branch"
        elif graph.parent.get(here) != token:
            return "invalid_edge"
        here = token
    return "live"


def verdict(dfa: verifier.DFA, problem: int, answer) -> str:
    state = dfa.run(problem, answer) - dfa.first_sink
    return star.SINKS[state] if state >= 0 else "live"


def z_score(hits: int, trials: int, rate: float) -> float:
    assert trials > 0
    return (hits - trials * rate) / math.sqrt(trials * rate * (1 - rate))


# The literal examples of the docstrings.


def test_star_docstring():
    problems = streams.problems(TINY, 0, "train", 1)
    assert TINY.prompts(problems).tolist() == [[2, 1, 1, 7, 3, 4, 2, 3, 2, 4, 10]]
    assert TINY.traces(problems, 1 - np.array([True])).tolist() == [[8, 2, 3, 4, 11]]
    assert TINY.traces(problems, 1 - np.array([False])).tolist() == [[9, 4, 3, 2, 11]]
    assert TINY.fork_prefix(problems).tolist() == [[8, 2]]
    assert TINY.children(problems).tolist() == [[3, 1]]
    assert TINY.decode(TINY.prompts(problems)[0]) == "2 1 1 7 3 4 2 3 2 4 SEP"


def test_streams_docstring():
    examples = streams.sft_examples(TINY, PLAIN, seed=0, n=2)
    assert examples.tokens.tolist() == [
        [2, 1, 1, 7, 3, 4, 2, 3, 2, 4, 10, 8, 2, 3, 4, 11],
        [2, 0, 4, 7, 4, 2, 7, 3, 4, 0, 10, 9, 0, 2, 4, 11],
    ]


def test_walks_docstring():
    inputs, targets = walks.walk_batch(TINY, stop=0.3, seq_len=24, seed=0, step=1, n=1)
    assert inputs.tolist() == [[7, 0, 7, 1, 1, 6, 0, 5, 6, 1, 10, 9, 1, 7, 11, 7, 1, 10, 8, 7, 0, 5, 11, 7]]
    learned = "REV 1 7 EOS FWD 7 0 5 EOS"
    assert TINY.decode(targets[targets != walks.IGNORE]) == learned
    assert np.flatnonzero(targets[0] != walks.IGNORE).tolist() == [10, 11, 12, 13, 17, 18, 19, 20, 21]


def test_verifier_docstring():
    problems = Problems(np.array([[3, 7, 1, 4, 2, 0]]), np.array([[0, 1, 2, 3]]), np.array([True]))
    dfa = TINY.dfa(problems)
    fwd, rev, sep, eos = TINY.fwd, TINY.rev, TINY.sep, TINY.eos
    for answer, expected in [
        ([fwd, 3, 7, 1, eos], "accept"),
        ([rev, 1, 7, 3, eos], "accept"),
        ([fwd, 3, 4], "wrong_branch"),
        ([fwd, 3, eos], "early_stop"),
        ([rev, 2], "wrong_goal"),
        ([fwd, 3, 5], "invalid_edge"),
        ([sep], "malformed"),
        ([fwd, 3, 7, 1, 2], "too_long"),
    ]:
        assert verdict(dfa, 0, answer) == expected


# star


@hypothesis_settings
@given(tasks_with_problems())
def test_prompts_and_traces_describe_one_graph(given_problems):
    task, problems = given_problems
    prompts, path = task.prompts(problems), task.path(problems)
    forward_traces, reverse_traces = (task.traces(problems, 1 - np.full(6, f)) for f in (True, False))
    for i in range(len(problems)):
        graph = Graph(task, prompts[i])
        assert len(set(graph.edges)) == len(graph.parent) == task.edges
        assert all(0 <= token < task.nodes for edge in graph.edges for token in edge)
        chain = graph.chain()
        assert chain[0] == graph.start and chain == path[i].tolist() and len(chain) == task.length
        assert forward_traces[i].tolist() == [task.fwd, *chain, task.eos]
        assert reverse_traces[i].tolist() == [task.rev, *chain[::-1], task.eos]
        assert forward_traces.shape[1] == task.trace_len
        roots = {u for u in graph.children if u not in graph.parent}
        degrees = sorted(len(graph.children[root]) for root in roots)
        if problems.forked[i]:
            assert set(graph.children[graph.start]) == set(task.children(problems)[i].tolist())
            assert degrees == [task.branches]
        else:
            assert len(graph.children[graph.start]) == 1
            assert degrees == [1, task.branches - 1][: task.branches]
        assert all(len(v) == 1 for u, v in graph.children.items() if u not in roots)


def test_problems_are_uniform():
    """Label of the start, label of the goal, printed place of the first right edge: each cell as likely."""
    problems = streams.problems(REFERENCE, 3, "train", 6000)
    cells = [(problems.labels[:, node], 16) for node in (0, 3, 6)]
    cells.append((np.argsort(problems.order, axis=1)[:, 0], 6))
    for values, classes in cells:
        counts = np.bincount(values, minlength=classes)
        chi_square = ((counts - 6000 / classes) ** 2 / (6000 / classes)).sum()
        # Wilson and Hilferty: the cube root of a chi-square variable is nearly normal.
        spread = 2 / (9 * (classes - 1))
        assert ((chi_square / (classes - 1)) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < Z


@hypothesis_settings
@given(tasks(), st.integers(0, 2**32))
def test_published_order_prints_the_right_branch_first(task, seed):
    published = Star(task.nodes, task.branches, task.length, "published")
    for prompt in published.prompts(published.sample(np.random.default_rng(seed), 5)):
        graph = Graph(published, prompt)
        chain = graph.chain()
        right_edges = set(zip(chain, chain[1:], strict=False))
        assert set(graph.edges[: task.length - 1]) == right_edges


@hypothesis_settings
@given(tasks(min_branches=2), st.integers(0, 2**32))
def test_give_cue(task, seed):
    rng = np.random.default_rng(seed)
    problems = Star(task.nodes, task.branches, task.length).sample(rng, 8)
    cued = rng.random(8) < 0.5
    after = task.give_cue(problems, cued)
    assert (after.order[~cued] == problems.order[~cued]).all()
    for prompt in task.prompts(after)[cued]:
        graph = Graph(task, prompt)
        first_child = graph.children[graph.start][0]
        assert first_child == graph.chain()[1]
    # Nothing else moves: the same labels, the same edges, edges of the same depth in the same places.
    assert (after.labels == problems.labels).all()
    assert (task.identity(after) == task.identity(problems)).all()
    assert (after.order % (task.length - 1) == problems.order % (task.length - 1)).all()
    assert (np.sort(after.order, axis=1) == np.arange(task.edges)).all()


def test_the_cue_keeps_the_places_of_the_first_edges():
    """Where the earlier first edge is printed: P(place) = (5 - place) / 15 with and without the cue."""
    problems = streams.problems(REFERENCE, 9, "train", 4000)
    for cued in (False, True):
        order = REFERENCE.give_cue(problems, np.full(4000, cued)).order
        place = np.argmax(order % 3 == 0, axis=1)
        assert all(abs(z_score((place == p).sum(), 4000, (5 - p) / 15)) < Z for p in range(5))


@hypothesis_settings
@given(tasks_with_problems())
def test_identity_ignores_the_printed_order(given_problems):
    task, problems = given_problems
    shuffled = np.random.default_rng(0).permuted(problems.order, axis=1)
    same = Problems(problems.labels, shuffled, problems.forked)
    assert (task.identity(same) == task.identity(problems)).all()
    drawn = task.hang_off(problems, np.ones(len(problems), dtype=bool))
    assert (task.identity(drawn) == task.identity(problems)).all()
    graphs = {frozenset(Graph(task, prompt).edges) for prompt in task.prompts(drawn)}
    assert len(set(task.identity(problems).tolist())) == len(graphs)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((16, 0, 4), "data.branches"),
        ((16, 2, 1), "data.length"),
        ((6, 2, 4), "data.nodes"),
        ((16, 2, 4, "sorted"), "data.branch_order"),
    ],
)
def test_star_names_the_key(arguments, key):
    with pytest.raises(ValueError, match=key):
        Star(*arguments)


def test_hang_off_needs_a_spare_label():
    task = Star(7, 2, 4)
    problems = task.sample(np.random.default_rng(0), 2)
    assert len(task.hang_off(problems, np.array([True, True]))) == 2
    with pytest.raises(ValueError, match="data.nodes.*second root"):
        task.hang_off(problems, np.array([True, False]))


# verifier


@hypothesis_settings
@given(tasks_with_problems())
def test_dfa_agrees_with_the_grader_everywhere(given_problems):
    """Every answer is a live prefix, a token, and a rest that no longer matters: all cases are covered."""
    task, problems = given_problems
    dfa = task.dfa(problems)
    assert dfa.next.dtype == np.uint8 and (dfa.next < dfa.next.shape[1]).all()
    sinks = np.arange(dfa.first_sink, dfa.next.shape[1])
    assert (dfa.next[:, sinks, :] == sinks[:, None]).all()
    for i, prompt in enumerate(task.prompts(problems)):
        graph, live, reached = Graph(task, prompt), [[]], set()
        while live:
            prefix = live.pop()
            reached.add(dfa.run(i, prefix))
            for token in range(task.vocab_size):
                answer = [*prefix, token]
                outcome = grade(task, graph, answer)
                assert verdict(dfa, i, answer) == outcome, task.decode(np.array(answer))
                if outcome == "live":
                    live.append(answer)
        assert reached == set(range(dfa.first_sink))


@hypothesis_settings
@given(tasks_with_problems())
def test_shortest_counts_the_tokens_to_acceptance(given_problems):
    """Along a right trace they count down to 0; from every state they are 1 + the least of its successors."""
    task, problems = given_problems
    dfa = task.dfa(problems)
    fewest, never = dfa.shortest(), dfa.next.shape[1]
    for i, trace in enumerate(task.traces(problems, np.arange(len(problems)) % len(task.mode_names))):
        states = [dfa.run(i, trace[:length]) for length in range(len(trace) + 1)]
        assert fewest[i, states].tolist() == list(range(len(trace), -1, -1))
        for state in range(dfa.first_sink):
            assert fewest[i, state] == 1 + min(fewest[i, dfa.next[i, state]])
        assert (fewest[i, dfa.first_sink + 1 :] > never).all() and fewest[i, dfa.first_sink] == 0


@hypothesis_settings
@given(tasks_with_problems(), st.data())
def test_dfa_agrees_with_the_grader_on_mutated_traces(given_problems, data):
    task, problems = given_problems
    dfa, rng = task.dfa(problems), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    prompts, right = task.prompts(problems), task.traces(problems, 1 - (rng.random(6) < 0.5))
    for i, trace in enumerate(right):
        assert verdict(dfa, i, trace) == "accept"
        for _ in range(20):
            answer = trace.tolist()
            at, other = rng.integers(len(answer), size=2)
            token = int(rng.integers(task.vocab_size))
            mutation = rng.integers(6)
            if mutation == 0:
                answer[at] = token
            elif mutation == 1:
                answer.insert(at, token)
            elif mutation == 2:
                del answer[at]
            elif mutation == 3:
                answer[at], answer[other] = answer[other], answer[at]
            elif mutation == 4:
                answer[0] = task.fwd + task.rev - answer[0]
            else:
                answer = rng.integers(task.vocab_size, size=len(answer)).tolist()
            assert verdict(dfa, i, answer) == grade(task, Graph(task, prompts[i]), answer)


def test_dfa_rows():
    problems = streams.problems(REFERENCE, 0, "test", 5)
    dfa = REFERENCE.dfa(problems)
    assert (dfa[2:4].next == REFERENCE.dfa(problems[2:4]).next).all()


# streams


@hypothesis_settings
@given(st.integers(0, 2**40), st.sampled_from(list(streams.STREAMS)), st.integers(0, 1000), st.integers(1, 300))
def test_streams_are_pure_and_nested(seed, stream, step, n):
    long = TINY.prompts(streams.problems(TINY, seed, stream, n + 40, step))
    short = streams.problems(TINY, seed, stream, n, step)
    assert (long[:n] == TINY.prompts(short)).all()
    assert (streams.stream_of(TINY, short) == streams.STREAMS[stream]).all()


def test_streams_differ_and_are_disjoint():
    prompts, identities = {}, {}
    for seed in range(3):
        for stream in streams.STREAMS:
            problems = streams.problems(TINY, seed, stream, 400, step=seed)
            prompts[seed, stream] = TINY.prompts(problems)
            identities.setdefault(stream, set()).update(TINY.identity(problems).tolist())
    assert len({p.tobytes() for p in prompts.values()}) == len(prompts)
    assert sum(map(len, identities.values())) == len(set().union(*identities.values()))
    steps = [TINY.prompts(streams.problems(TINY, 0, "train", 50, step)).tobytes() for step in range(3)]
    assert len(set(steps)) == 3


def test_streams_share_the_graphs_evenly():
    problems = REFERENCE.sample(np.random.default_rng(1), 8000)
    counts = np.bincount(streams.stream_of(REFERENCE, problems), minlength=4)
    assert all(abs(z_score(count, 8000, 0.25)) < Z for count in counts)


def test_too_few_graphs():
    task = Star(2, 1, 2)
    identities = task.identity(task.sample(np.random.default_rng(0), 50))
    empty = next(name for name, k in streams.STREAMS.items() if not (identities % np.uint64(4) == k).any())
    with pytest.raises(ValueError, match="data.nodes"):
        streams.problems(task, 0, empty, 1)


@hypothesis_settings
@given(st.integers(1, 200), st.integers(0, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_fork_shares_are_exact(n, twentieths, in_graph, fresh, seed):
    rate = twentieths / 20
    examples = streams.sft_examples(TINY, Mixture("FWD,REV", rate, 0.0, in_graph, "data", fresh), seed, n, epoch=3)
    crossing = 0
    for row, forward in zip(examples.tokens, examples.mode == 0, strict=True):
        graph = Graph(TINY, row[: TINY.prompt_len])
        answer = row[TINY.prompt_len :].tolist()
        assert grade(TINY, graph, answer) == "accept"
        assert (answer[0] == TINY.fwd) == forward
        crossing += forward and len(graph.children[graph.start]) == 2
    assert crossing == round(rate * n) and abs(crossing - rate * n) <= 0.5 + 1e-9


@hypothesis_settings
@given(st.integers(1, 60), st.integers(0, 99))
def test_problem_allocation_gives_both_modes(n, seed):
    examples = streams.sft_examples(TINY, Mixture("FWD,REV", 0.5, 0.0, False, "problem", False), seed, 2 * n)
    prompt, mode = examples.tokens[:, : TINY.prompt_len], examples.tokens[:, TINY.prompt_len]
    assert (prompt[::2] == prompt[1::2]).all()
    assert (mode[::2] == TINY.fwd).all() and (mode[1::2] == TINY.rev).all()
    odd = streams.sft_examples(TINY, Mixture("FWD,REV", 0.5, 0.0, False, "problem", False), seed, 2 * n - 1)
    assert (odd.tokens == examples.tokens[:-1]).all()


def test_epochs_repeat_unless_fresh():
    def tokens(fresh: bool, epoch: int, seed: int = 0) -> bytes:
        return streams.sft_examples(
            TINY, Mixture("FWD,REV", 0.5, 0.0, False, "data", fresh), seed, 50, epoch
        ).tokens.tobytes()

    assert tokens(False, 0) == tokens(False, 7) == tokens(True, 0)
    assert len({tokens(True, epoch) for epoch in range(4)} | {tokens(False, 0, seed=1)}) == 5


def test_cue_rate_is_a_share_of_the_same_problems():
    """About half of the uncued problems print the right first edge first by chance."""
    uncued, cued = (streams.test_problems(REFERENCE, 1000, cue_rate=rate) for rate in (0.0, 1.0))
    assert (REFERENCE.identity(uncued) == REFERENCE.identity(cued)).all()
    half = streams.sft_examples(REFERENCE, Mixture("FWD,REV", 1.0, 0.5, False, "data", False), 0, 2000).problems

    def first(problems: Problems) -> int:
        order = np.argsort(problems.order, axis=1)
        return int((order[:, 0] < order[:, 3]).sum())

    assert first(cued) == 1000 and abs(z_score(first(uncued), 1000, 0.5)) < Z
    assert abs(z_score(first(half) - 1000, 1000, 0.5)) < Z


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fork_rate": 1.5}, "sft.fork_rate"),
        ({"fork_rate": float("nan")}, "sft.fork_rate"),
        ({"fork_rate": 1.0, "cue_rate": -0.1}, "sft.cue_rate"),
        ({"cue_rate": 0.5}, "sft.cue_rate needs sft.fork_rate=1"),
        ({"allocation": "both"}, "sft.allocation"),
        ({"allocation": "problem", "fork_rate": 0.25}, "sft.allocation=problem"),
        ({"allocation": "problem", "fork_in_graph": True}, "sft.fork_in_graph=false"),
    ],
)
def test_mixture_names_the_key(change, key):
    with pytest.raises(ValueError, match=key):
        Mixture(**{**vars(PLAIN), **change})


def test_data_hash_sees_values_shape_and_type():
    a = np.arange(6)
    variants = [(a,), (a.reshape(2, 3),), (a.astype(np.int32),), (a[::-1],), (a, a), (a[:3], a[3:])]
    hashes = [streams.data_hash(*arrays) for arrays in variants]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 12 for h in hashes)
    assert streams.data_hash(a) == streams.data_hash(np.arange(12)[::2] // 2)


# walks


def parse(task: Star, inputs: np.ndarray, targets: np.ndarray, count: int) -> tuple[Graph, list]:
    """The graph of one sequence and its first ``count`` queries as (origin, other, forward, walk)."""
    tokens = inputs.tolist()
    graph = Graph(task, np.array([*tokens[: 2 * task.edges], tokens[0], tokens[0], task.sep]))
    answer, at, queries = [False] * len(tokens), 2 * task.edges, []
    while at < len(tokens):
        query = tokens[at : at + 3]
        body = tokens[at + 3 : tokens.index(task.eos, at) + 1] if task.eos in tokens[at:] else tokens[at + 3 :]
        answer[at + 3 : at + 3 + len(body)] = [True] * len(body)
        at += len(query) + len(body)
        if len(queries) < count:
            assert query[2] == task.sep and body[0] in (task.fwd, task.rev) and body[-1] == task.eos
            forward = body[0] == task.fwd
            origin, other = query[:2] if forward else query[1::-1]
            queries.append((origin, other, forward, body[1:-1]))
    learned = [t for t, is_answer in zip(tokens, answer, strict=True) if is_answer]
    assert targets[targets != walks.IGNORE].tolist()[: len(learned)] == learned
    at = np.flatnonzero(targets[:-1] != walks.IGNORE)
    assert (targets[at] == inputs[at + 1]).all()
    return graph, queries


@pytest.mark.parametrize(("task", "stop"), [(REFERENCE, 0.3), (Star(14, 3, 3), 0.1)])
def test_walks(task, stop):
    """Mode, stops, branches and the free slot of walks, each against its rate; only valid edges are walked."""
    whole = 3
    length = 2 * task.edges + whole * (3 + task.trace_len)
    parsed = []
    for step in range(4):
        batch = walks.walk_batch(task, stop, length, seed=2, step=step, n=256)
        assert batch[0].shape == batch[1].shape == (256, length)
        parsed += [parse(task, *row, whole) for row in zip(*batch, strict=True)]

    modes, stops, ranks, origins, others, ends = [], [], [], [], [], []
    for graph, queries in parsed:
        nodes = sorted({node for edge in graph.edges for node in edge})
        for origin, other, forward, walk in queries:
            assert walk[0] == origin and origin in nodes and other in nodes
            steps = list(zip(walk, walk[1:], strict=False))
            assert all((edge if forward else edge[::-1]) in graph.edges for edge in steps)
            modes.append(forward)
            stops += [False] * len(steps)
            if walk[-1] in (graph.children if forward else graph.parent):
                stops.append(True)
            if forward and len(graph.children.get(origin, [])) > 1 and steps:
                # By printed order, whether the first edge was taken.
                ranks.append(graph.children[origin].index(walk[1]) == 0)
            origins.append(nodes.index(origin) == 0)
            others.append(nodes.index(other) == 0)
            ends.append(other == walk[-1])
    for hits, rate in [
        (modes, 0.5),
        (stops, stop),
        (ranks, 1 / task.branches),
        (origins, 1 / task.graph_nodes),
        (others, 1 / task.graph_nodes),
        (ends, 1 / task.graph_nodes),
    ]:
        assert abs(z_score(sum(hits), len(hits), rate)) < Z


def test_the_goal_slot_knows_nothing_of_the_walk():
    """FWD walks that leave the root: the other slot names a node of the walked branch as often as chance."""
    task, inside, trials, deeper = REFERENCE, 0, 0, 0
    batch = walks.walk_batch(task, 0.3, 60, seed=4, step=0, n=1500)
    for row in zip(*batch, strict=True):
        graph, queries = parse(task, *row, 3)
        for origin, other, forward, walk in queries:
            if forward and len(graph.children.get(origin, [])) == 2 and len(walk) > 1:
                branch = [walk[1]]
                while branch[-1] in graph.children:
                    branch += graph.children[branch[-1]]
                trials, inside = trials + 1, inside + (other in branch)
                deeper += other in branch and other not in walk
    assert trials > 200 and abs(z_score(inside, trials, 3 / 7)) < Z
    # After the first step of a walk, a branch of 3 has 2 - s nodes left after s further steps.
    left = 2 - (0.7 + 0.7**2)
    assert abs(z_score(deeper, trials, left / 7)) < Z


def test_walk_batches_are_pure():
    first = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    walks.walk_batch(TINY, 0.3, 40, seed=1, step=6, n=8)
    again = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    others = [walks.walk_batch(TINY, 0.3, 40, seed, step, 8)[0].tobytes() for seed, step in ((1, 6), (2, 5))]
    assert first[0].tobytes() not in others
    assert (first[1] == walks.IGNORE).any() and first[0].min() >= 0


def test_walk_graphs_come_from_the_walks_stream():
    graphs = streams.problems(TINY, 1, "walks", 8, step=5)
    inputs, _ = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    assert (inputs[:, : 2 * TINY.edges] == TINY.edge_list(graphs).reshape(8, -1)).all()


@pytest.mark.parametrize(
    ("stop", "seq_len", "key"), [(1.0, 48, "walks.stop"), (-0.1, 48, "walks.stop"), (0.3, 20, "walks.seq_len")]
)
def test_walks_name_the_key(stop, seq_len, key):
    with pytest.raises(ValueError, match=key):
        walks.walk_batch(REFERENCE, stop, seq_len, 0, 0, 1)


@pytest.mark.parametrize(("task", "stop"), [(REFERENCE, 0.3), (Star(14, 3, 3), 0.1)])
def test_pass_at_1_of_an_ideal_walker(task, stop):
    """The closed form against a plain simulation of the walker, graded by the DFA."""
    rng = np.random.default_rng(7)
    problems = streams.problems(task, 0, "test", 4000)
    dfa, accepted = task.dfa(problems), 0
    for i, prompt in enumerate(task.prompts(problems)):
        graph = Graph(task, prompt)
        forward = rng.random() < 0.5
        next_nodes = graph.children if forward else {v: [u] for v, u in graph.parent.items()}
        walk = [graph.start if forward else graph.goal]
        while walk[-1] in next_nodes and rng.random() >= stop:
            walk.append(rng.choice(next_nodes[walk[-1]]))
        accepted += verdict(dfa, i, [task.fwd if forward else task.rev, *walk, task.eos]) == "accept"
    assert abs(z_score(accepted, 4000, task.pass_at_1(stop))) < Z
