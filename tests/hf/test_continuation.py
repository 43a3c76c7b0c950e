# SPDX-License-Identifier: Apache-2.0
"""`Continuation`: rows that come and go do not change what the others say."""

import pytest
import torch

from moored.data.tiny import tiny_model, tiny_tokenizer
from moored.hf.continuation import Continuation
from moored.hf.drawing import chosen, draws
from moored.ops.chances import chances
from moored.ops.nucleus import nucleus
from moored.sampling import Sampling

PROMPTS = {
    "short": "Red?",
    "long": "What colour is the lamp by the sea? " * 3,
    "mid": "What colour is the lamp at home?",
}


def ids(text):
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def greedy(logits, _rows):
    return logits.argmax(-1)


def alone(model, text, steps):
    continuation = Continuation(model, [ids(text)], ["x"], steps)
    return [token for _ in range(steps) for _, token in continuation.step(greedy)]


def said(continuation, steps, into):
    for _ in range(steps):
        for row, token in continuation.step(greedy):
            into.setdefault(row, []).append(token)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma", "phi3", "gpt2"])
def test_rows_that_join_later_say_what_they_say_alone(arch):
    model = tiny_model(arch, initializer_range=0.4).eval()
    found = {}
    with torch.inference_mode():
        expected = {name: alone(model, text, 14) for name, text in PROMPTS.items()}
        first = Continuation(model, [ids(PROMPTS["short"])], ["short"], 14)
        said(first, 4, found)
        late = Continuation(model, [ids(PROMPTS["long"]), ids(PROMPTS["mid"])], ["long", "mid"], 14)
        said(late, 1, found)
        assert first.join(late)
        assert first.live == ["short", "long", "mid"]
        said(first, 6, found)
        first.drop(["long"])
        said(first, 3, found)
    assert found == {name: expected[name][: len(tokens)] for name, tokens in found.items()}
    assert [len(found[name]) for name in ("short", "long", "mid")] == [13, 7, 10]


def test_a_longer_one_joins_a_shorter_and_the_other_way_round():
    model = tiny_model(initializer_range=0.4).eval()
    with torch.inference_mode():
        for one, two in (("short", "long"), ("long", "short")):
            found = {}
            both = [Continuation(model, [ids(PROMPTS[name])], [name], 8) for name in (one, two)]
            for each in both:
                said(each, 1, found)
            assert both[0].join(both[1])
            said(both[0], 7, found)
            assert found == {name: alone(model, PROMPTS[name], 8) for name in (one, two)}


def test_a_cache_that_forgets_cannot_be_joined_and_stays_as_it_was():
    model = tiny_model("mistral", sliding_window=12, initializer_range=0.4).eval()
    found = {}
    with torch.inference_mode():
        one, two = (Continuation(model, [ids(PROMPTS[name])], [name], 8) for name in ("mid", "short"))
        said(one, 1, found)
        said(two, 1, found)
        assert not one.join(two)
        said(one, 5, found)
        assert found["mid"] == alone(model, PROMPTS["mid"], 6)


def test_each_row_is_drawn_in_its_own_way():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    hot, cold = Sampling(temperature=2.0, seed=1), Sampling(temperature=0.5, top_p=0.5, seed=2)
    prompts = [[1], [2], [1], [3]]
    rows = [draws([prompts[0]], hot)[0], None, draws([prompts[0]], hot, again=1)[0], draws([prompts[3]], cold)[0]]
    tokens = chosen(logits, rows)
    assert tokens[1] == logits[1].argmax()
    for number, (sampling, again) in {0: (hot, 0), 2: (hot, 1), 3: (cold, 0)}.items():
        stream = draws([prompts[number]], sampling, again=again)[0].stream
        uniform = torch.rand((), generator=stream, dtype=torch.float64)[None]
        one = nucleus(logits[number : number + 1], uniform, temperature=sampling.temperature, top_p=sampling.top_p)
        assert tokens[number] == one[0]


def test_chances_are_those_of_a_dense_softmax():
    logits = torch.randn(3, 20, dtype=torch.float64)
    tokens = torch.tensor([4, 0, 19])
    dense = logits.exp() / logits.exp().sum(-1, keepdim=True)
    taken, others, theirs = chances(logits, tokens, 5)
    assert torch.allclose(taken.exp(), dense[range(3), tokens])
    assert torch.equal(others, dense.argsort(-1, descending=True)[:, :5])
    assert torch.allclose(theirs.exp(), dense.sort(-1, descending=True).values[:, :5])
    assert chances(logits, tokens, 0)[1].shape == (3, 0)
