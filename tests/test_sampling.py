"""Each step of a chain against recorded outputs or its definition; draws that are the same everywhere."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pytest

import systolic as sy
from systolic.backends import backend_named
from systolic.ir.errors import SystolicError
from systolic.ir.interpret import interpret
from systolic.runner.sampling import Sampling
from systolic.runner.sampling import filters as f
from systolic.runner.sampling import penalties as p
from systolic.runner.sampling.chain import ORDER, trace_chain
from systolic.runner.sampling.programs import SamplingPrograms
from systolic.runner.sampling.random import threefry
from systolic.runner.sampling.structure import DAMAGED, NOTHING_LEFT, Row, row_inputs, structure_of

BACKENDS = ["numpy", "xla"]
Chain = tuple


def scores_after(chain: Chain, logits: np.ndarray, texts: np.ndarray, prompt: int = 0) -> np.ndarray:
    """[rows, V]: what a chain leaves of the logits behind each text, by the meaning of its graph."""
    row = Row(chain, prompt=prompt)
    structure = dataclasses.replace(structure_of([row]), yields_scores=True)
    graph = trace_chain(structure, logits.shape[-1])
    left = []
    for each, text in zip(logits, texts, strict=True):
        numbers = {name: np.repeat(v[0], len(text), 0) for name, v in row_inputs(structure, [row]).items()}
        given = {**numbers, "logits": np.tile(each, (len(text), 1)), "token": text.astype(np.int32)}
        left.append(interpret(graph, {n.name: given[n.name] for n in graph.inputs}, {})["scores"][-1])
    return np.array(left)


class Sampler:
    """The two programs of a chain on a backend, with their states."""

    def __init__(self, rows: Sequence[Row], vocabulary: int, backend: str, logprobs: int | None = None):
        self.rows, self.backend = rows, backend_named(backend)
        self.structure = structure_of(rows, logprobs)
        self.programs = SamplingPrograms(self.structure, vocabulary, len(rows), 64)
        self.choose = self.backend.prepare(self.programs.choose)
        kept = self.programs.choose.states
        self.states = {s.name: self.backend.zeros(s.type.static_shape, s.type.dtype) for s in kept}
        self.seen = np.zeros(len(rows), np.int32)

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        """Remembers what was said before."""
        lengths = np.array([len(text) for text in texts], np.int32)
        if self.programs.read is not None:
            block = np.zeros((len(texts), 64), np.int32)
            for row, text in enumerate(texts):
                block[row, : len(text)] = text
            states = {s.name: self.states[s.name] for s in self.programs.read.states}
            given = {"token": block, "offset": self.seen, "length": lengths}
            _, updated = self.backend.prepare(self.programs.read).run({}, given, states)
            self.states |= updated
        self.seen = self.seen + lengths

    def step(self, tokens: Sequence[int], logits: np.ndarray) -> dict[str, np.ndarray]:
        """What is chosen behind ``tokens``, one for each row, where the model gave ``logits`` [rows, V]."""
        given = {"logits": logits[:, None].astype(np.float32), "token": np.array(tokens, np.int32)[:, None]}
        given |= {"offset": self.seen, "length": np.ones(len(tokens), np.int32)}
        given |= row_inputs(self.structure, self.rows)
        results, updated = self.choose.run({}, given, self.states)
        self.states |= updated
        self.seen = self.seen + 1
        return {name: self.backend.fetch(array)[:, 0] for name, array in results.items()}


def draws(chain: Chain, logits: Sequence[float], count: int, backend: str = "numpy") -> np.ndarray:
    """``count`` first tokens, each of a random stream of its own."""
    rows = [Row(chain, True, seed=11, stream=i, prompt=1) for i in range(count)]
    sampler = Sampler(rows, len(logits), backend)
    return sampler.step([0] * count, np.tile(np.array(logits), (count, 1)))["token"]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# ---- recorded outputs ----

RECORDED: dict[str, Chain] = {
    **{f"temperature_{t}": (f.Temperature(t),) for t in (0.7, 1.9)},
    **{f"top_k_{k}": (f.TopK(k),) for k in (1, 5, 40, 1000)},
    "top_k_3_keep7": (f.TopK(3, keep=7),),
    **{f"top_p_{mass}": (f.TopP(mass),) for mass in (0.9, 0.5, 0.01, 0.0, 0.999)},
    "top_p_0.3_keep4": (f.TopP(0.3, keep=4),),
    **{f"min_p_{share}": (f.MinP(share),) for share in (0.05, 0.3, 1.0)},
    "min_p_0.9_keep3": (f.MinP(0.9, keep=3),),
    **{f"typical_{mass}": (f.Typical(mass),) for mass in (0.9, 0.2)},
    "epsilon_0.01": (f.Epsilon(0.01),),
    "eta_0.01": (f.Eta(0.01),),
    **{f"repetition_{penalty}": (p.Repetition(penalty),) for penalty in (1.2, 0.8)},
    "repetition_2.0_ignore5": (p.Repetition(2.0, first=5),),
    **{f"no_repeat_ngram_{size}": (p.NoRepeatNgram(size),) for size in (2, 3)},
    "min_length_20_eos": (p.Banned((3, 11), until=20),),
    "bad_words": (p.BadWords(((5,), (17, 23))),),
    "suppress": (p.Banned((1, 2, 50)),),
    "log_softmax": (f.LogSoftmax(),),
    "exp_decay_length": (p.LengthDecay((3,), start=12, factor=1.3),),
    "rep1.15_temp0.8_topk20_topp0.9_minp0.05": (
        p.Repetition(1.15),
        f.Temperature(0.8),
        f.TopK(20),
        f.TopP(0.9),
        f.MinP(0.05),
    ),
    "temp1.5_topp0.7": (f.Temperature(1.5), f.TopP(0.7)),
    "temp0.6_topk10_minp0.1": (f.Temperature(0.6), f.TopK(10), f.MinP(0.1)),
    "ngram2_rep1.3_topk50_topp0.95": (p.NoRepeatNgram(2), p.Repetition(1.3), f.TopK(50), f.TopP(0.95)),
}


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "oracle" / "_sampling" / "processors.npz")


@pytest.mark.parametrize("name", RECORDED)
def test_as_recorded(recorded, name):
    compared = 0
    for kind, suffix in (("out", ""), ("ties", "_ties"), ("combo", "")):
        if f"{kind}__{name}" not in recorded:
            continue
        texts = recorded["history_bad_words" if name == "bad_words" else f"history{suffix}"]
        left = scores_after(RECORDED[name], recorded[f"logits{suffix}"], texts)
        expected = recorded[f"{kind}__{name}"]
        assert (np.isneginf(left) == np.isneginf(expected)).all()
        kept = np.isfinite(expected)
        np.testing.assert_allclose(left[kept], expected[kept], rtol=1e-6, atol=1e-6)
        compared += 1
        if kind == "combo":
            np.testing.assert_allclose(softmax(left), recorded[f"combo_probs__{name}"], atol=1e-6)
    assert compared


def test_every_recorded_processor_is_compared(recorded):
    names = {name.split("__", 1)[1] for name in recorded if "__" in name and "probs" not in name}
    assert names == set(RECORDED)


# ---- definitions, where nothing was recorded ----


def random_logits(rows: int = 6, vocabulary: int = 40, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, vocabulary)) * 3).astype(np.float32)


def removed_by(chain: Chain, logits: np.ndarray) -> np.ndarray:
    return np.isneginf(scores_after(chain, logits, np.zeros((len(logits), 1))))


def test_top_n_sigma():
    logits = random_logits()
    logits[1, 5:9] = -np.inf  # removed before: they do not count
    finite = np.where(np.isfinite(logits), logits, np.nan)
    limit = logits.max(-1) - 1.5 * np.nanstd(finite, -1)
    assert (removed_by((f.TopNSigma(1.5),), logits) == (logits < limit[:, None])).all()


def test_a_dynamic_temperature_follows_the_entropy():
    logits = random_logits()
    chances = softmax(logits.astype(np.float64))
    share = -(chances * np.log(chances)).sum(-1) / np.log(40)
    heat = 0.5 + (2.0 - 0.5) * share**0.7
    left = scores_after((f.DynamicTemperature(0.5, 2.0, 0.7),), logits, np.zeros((6, 1)))
    np.testing.assert_allclose(left, logits / heat[:, None], rtol=1e-5)


def test_penalties_count_what_was_generated():
    texts, logits = np.array([[4, 4, 7, 4, 5, 4, 5]]), np.zeros((1, 10), np.float32)
    generated = {4: 2, 5: 2}  # behind a prompt of three
    left = scores_after((p.Presence(0.5),), logits, texts, prompt=3)[0]
    assert left.tolist() == [-0.5 if token in generated else 0.0 for token in range(10)]
    left = scores_after((p.Frequency(0.5),), logits, texts, prompt=3)[0]
    assert left.tolist() == [-0.5 * generated.get(token, 0) for token in range(10)]
    left = scores_after((p.Frequency(0.5, last=2),), logits, texts, prompt=3)[0]
    assert left.tolist() == [-0.5 * {4: 1, 5: 1}.get(token, 0) for token in range(10)]


def dry_by_definition(text: list[int], vocabulary: int, breakers: tuple[int, ...]) -> np.ndarray:
    """The longest repetition that each token would go on, found by trying."""
    longest = np.zeros(vocabulary, int)
    for place in range(len(text)):
        run = 0
        while run < place and text[place - 1 - run] == text[-1 - run] and text[-1 - run] not in breakers:
            run += 1
        longest[text[place]] = max(longest[text[place]], run)
    return np.where(longest >= 2, -0.8 * 1.75 ** (longest - 2.0), 0.0)


@pytest.mark.parametrize("breakers", [(), (1,)])
def test_dry(breakers):
    random = np.random.default_rng(2)
    texts = random.integers(0, 3, (8, 14))
    left = scores_after((p.Dry(0.8, 1.75, 2, 0, breakers),), np.zeros((8, 5), np.float32), texts)
    expected = [dry_by_definition(text.tolist(), 5, breakers) for text in texts]
    np.testing.assert_allclose(left, expected, rtol=1e-5)
    assert np.min(expected) <= -0.8 * 1.75  # some repetition is longer than allowed


def test_biases_bans_and_forced_tokens():
    logits, text = random_logits(1, 6), np.array([[1, 2, 3]])
    left = scores_after((p.LogitBias((2, 4), (1.5, -3.0)),), logits, text)
    np.testing.assert_allclose(left - logits, [[0, 0, 1.5, 0, -3, 0]], atol=1e-6)
    for prompt, banned in ((2, True), (1, False)):  # this is new token number 3 - prompt
        left = scores_after((p.Banned((5,), until=2),), logits, text, prompt)
        assert np.isneginf(left[0, 5]) == banned
        left = scores_after((p.Forced((1,), (4,)),), logits, text, prompt)
        assert np.isfinite(left[0]).tolist() == [i == 4 or not banned for i in range(6)]


def test_steps_that_a_row_lacks_change_nothing():
    logits, texts = random_logits(3, 30), np.random.default_rng(1).integers(0, 30, (3, 9))
    logits[0, :4] = -np.inf
    for step in ORDER:
        neutral = step()
        if step is not f.LogSoftmax:  # a change by a constant
            np.testing.assert_array_equal(scores_after((neutral,), logits, texts), logits)


# ---- drawing ----


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # the known answers that the authors publish
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry(key, counter, words):
    def step(key, counter):
        return threefry((key[0], key[1]), (counter[0], counter[1]))

    graph = sy.trace(step, key="u32[2]", counter="u32[2]")
    given = {"key": np.array([key], np.uint32), "counter": np.array([counter], np.uint32)}
    assert tuple(int(word[0]) for word in interpret(graph, given, {}).values()) == words


LOGITS = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01]))
KEPT: dict[str, tuple[Chain, list[int]]] = {
    "plain": ((), [0, 1, 2, 3, 4, 5, 6]),
    "top k": ((f.TopK(3),), [0, 1, 2]),
    "top p": ((f.TopP(0.75),), [0, 1, 2]),  # 0.4 + 0.25 is not enough
    "min p": ((f.MinP(0.2),), [0, 1, 2, 3]),
    "typical": ((f.Typical(0.5),), [0, 1, 2]),  # the entropy is 1.55: 0.25, 0.15 and then 0.4 are next to it
    "epsilon": ((f.Epsilon(0.05),), [0, 1, 2, 3, 4]),
    "eta": ((f.Eta(0.2),), [0, 1, 2, 3]),  # sqrt(0.2) exp(-1.55) = 0.095
    "top n sigma": ((f.TopNSigma(0.5),), [0, 1]),
    "banned": ((p.Banned((0, 3)),), [1, 2, 4, 5, 6]),
    "mirostat": ((f.Mirostat(1.2),), [0, 1]),  # at first up to 2.4 bits
}


def chi_square(tokens: np.ndarray, chances: np.ndarray) -> float:
    """Pearson's statistic; what has no chance must not occur."""
    counts = np.bincount(tokens, minlength=len(chances))
    assert not counts[chances == 0].any()
    expected = chances[chances > 0] * len(tokens)
    return float(((counts[chances > 0] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", KEPT)
def test_frequencies_follow_the_definition(name):
    chain, kept = KEPT[name]
    chances = np.where(np.isin(np.arange(7), kept), np.exp(LOGITS), 0.0)
    tokens = draws(chain, LOGITS.tolist(), 6000)
    # 99.99 % of chi-square with up to six degrees of freedom is below 28; the seed is fixed.
    assert chi_square(tokens, chances / chances.sum()) < 28


def test_xtc_leaves_out_the_obvious_now_and_then():
    tokens = draws((f.Xtc(0.3, 0.2),), LOGITS.tolist(), 6000)  # above: 0.4 and 0.25; the latter stays
    chances = np.exp(LOGITS)
    without = np.where(np.arange(7) == 0, 0.0, chances)
    assert chi_square(tokens, 0.7 * chances + 0.3 * without / without.sum()) < 28


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperatures(temperature):
    tokens = draws((f.Temperature(temperature),), LOGITS.tolist(), 6000)
    assert chi_square(tokens, softmax(LOGITS / temperature)) < 28


def test_rare_tokens_keep_their_frequency():
    vocabulary, count = 1001, 2000  # one token has a quarter, the rest share three
    logits = np.full(vocabulary, np.log(0.75 / (vocabulary - 1)))
    logits[7] = np.log(0.25)
    tokens = draws((), logits.tolist(), count)
    assert abs((tokens == 7).mean() - 0.25) < 0.04
    others = tokens[tokens != 7]
    assert len(np.unique(others)) > 0.8 * vocabulary * (1 - np.exp(-len(others) / vocabulary))


def test_mirostat_holds_the_surprise():
    random = np.random.default_rng(0)
    sampler = Sampler([Row((f.Mirostat(3.0, 0.2),), True, seed=1, prompt=1)], 200, "numpy")
    sampler.read([[]])
    surprises, bound, token = [], 6.0, 0
    for _ in range(60):
        logits = random.normal(size=(1, 200)).astype(np.float32) * 2
        chances = softmax(logits[0].astype(np.float64))
        left = np.where((-np.log2(chances) <= bound) | (chances == chances.max()), chances, 0.0)
        token = int(sampler.step([token], logits)["token"][0])
        assert left[token] > 0
        surprises.append(-np.log2(left[token] / left.sum()))
        bound -= 0.2 * (surprises[-1] - 3.0)
        np.testing.assert_allclose(sampler.states["mu"][0], bound, atol=1e-3)
    assert abs(np.mean(surprises[20:]) - 3.0) < 0.3


def test_rows_of_one_batch_may_all_differ_and_backends_agree():
    settings = [
        Sampling(),
        Sampling(temperature=0.8, top_k=12, top_p=0.9, seed=3),
        Sampling(temperature=1.1, min_p=0.05, repetition_penalty=1.3, logit_bias={4: 2.0}, seed=2**63),
        Sampling(temperature=0.9, no_repeat_ngram_size=2, seed=3),
    ]
    texts = np.random.default_rng(4).integers(0, 20, (4, 9))
    rows = [one.row(stream=i, prompt=9, eos_ids=(3,)) for i, one in enumerate(settings)]

    def run(chosen: list[int], backend: str) -> np.ndarray:
        sampler, random = Sampler([rows[i] for i in chosen], 20, backend), np.random.default_rng(5)
        sampler.read([texts[i, :-1] for i in chosen])
        tokens, made = texts[chosen, -1], []
        for _ in range(24):
            logits = random.normal(size=(4, 20)) * 2
            tokens = sampler.step(tokens, logits[chosen])["token"]
            made.append(tokens)
        return np.array(made).T

    together = run([0, 1, 2, 3], "numpy")
    for i in range(4):
        assert (run([i], "numpy")[0] == together[i]).all()
    assert (run([0, 1, 2, 3], "xla") == together).all()
    assert len(np.unique(together, axis=0)) == 4
    pairs = set()
    for pair in zip(texts[3, :-1].tolist(), texts[3, 1:].tolist(), strict=True):
        pairs.add(pair)
    for pair in zip([texts[3, -1], *together[3]], together[3], strict=False):
        assert pair not in pairs  # no two tokens came in that order before
        pairs.add(pair)


def test_a_chain_keeps_the_order_of_the_user():
    logits = LOGITS[None].astype(np.float32)
    cooled = removed_by((f.Temperature(0.5), f.MinP(0.2)), logits)[0]
    assert removed_by((f.MinP(0.2), f.Temperature(0.5)), logits)[0].sum() < cooled.sum()
    steps = (f.TopK(5), f.Temperature(0.7), f.TopK(2))
    assert Sampling(chain=steps).steps() == steps


def test_a_structure_holds_every_order_and_no_numbers():
    first = Row((f.Temperature(0.7), f.TopK(5)), True)
    second = Row((f.TopK(3), f.Temperature(0.9)), True)
    both = structure_of([first, second])
    assert [slot.step for slot in both.slots] == ["Temperature", "TopK", "Temperature"]
    assert structure_of([first]) == structure_of([Row((f.Temperature(2.0), f.TopK(50)), True, seed=9)])
    usual = [Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=1.0, top_k=4, min_p=0.1)]
    rows = [one.row(stream=0, prompt=1) for one in usual]
    assert structure_of(rows) == structure_of(rows[::-1])


def test_greedy_takes_the_first_of_equal_maxima():
    sampler = Sampler([Row()], 4, "numpy")
    assert sampler.step([0], np.array([[0.0, 3.0, 3.0, 1.0]]))["token"][0] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probabilities_are_those_of_the_model(backend):
    logits = random_logits(2, 9)
    sampler = Sampler([Row((p.Banned((int(logits[0].argmax()),)),)), Row()], 9, backend, logprobs=3)
    results = sampler.step([0, 0], logits)
    expected = np.log(softmax(logits.astype(np.float64)))
    order = np.argsort(-expected, axis=-1)[:, :3]
    assert (results["alternatives"] == order).all()
    assert results["token"].tolist() == [order[0, 1], order[1, 0]]
    np.testing.assert_allclose(
        results["alternative_logprobs"], np.take_along_axis(expected, order, -1), atol=1e-5
    )
    chosen = expected[[0, 1], results["token"]]
    np.testing.assert_allclose(results["logprob"], chosen, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("draw", [False, True])
def test_damage_is_told_apart(backend, draw):
    rows = [Row((p.Banned((0, 1)),), draw, prompt=1)] * 4
    logits = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, np.inf], [1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]])
    tokens = Sampler(rows, 3, backend).step([0] * 4, logits)["token"]
    assert tokens.tolist() == [DAMAGED, DAMAGED, NOTHING_LEFT, 2]


# ---- settings ----


def test_settings_become_the_chain_in_the_default_order():
    settings = Sampling(
        temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, min_new_tokens=3, bad_words=[[1, 2]]
    )
    assert settings.steps(eos_ids=(8, 9)) == (
        p.Repetition(1.1),
        p.BadWords(((1, 2),)),
        p.Banned((8, 9), until=3),
        f.Temperature(0.7),
        f.TopK(5),
        f.TopP(0.9),
    )
    assert Sampling(top_k=5).steps() == ()  # greedy: the best token is never filtered out
    assert not Sampling(temperature=1e-308).draws


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("no_repeat_ngram_size", 33),
        ("bad_words", [[]]),
        ("logprobs", 21),
        ("temperature_range", (2.0, 1.0)),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_bad_value_is_named(field, value):
    with pytest.raises(SystolicError, match=f"{field} must be .*not {re.escape(repr(value))}"):
        Sampling(**{field: value})


def test_lists_hold_token_ids_and_chains_hold_steps():
    with pytest.raises(SystolicError, match="token ids, not -4"):
        Sampling(banned_tokens=[-4])
    with pytest.raises(SystolicError, match="chain must hold steps"):
        Sampling(chain=["top_k"])  # type: ignore[list-item]
