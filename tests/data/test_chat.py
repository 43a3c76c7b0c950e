# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from moored.data.chat import AnswerCollator, encode, prompt_ids, render
from moored.data.schema import Message, Row
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, DataError

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "chatml": CHATML + OPENING,
    "default system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
    + OPENING,
    "thinking": CHATML.replace(
        "\n{{ m['content'] }}", "\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "opening differs": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "trims": CHATML.replace("m['content']", "m['content'].strip()") + OPENING,
    "no end of turn": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "glued": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "plain": None,
}


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer, encoded):
    return tokenizer.decode([label for label in encoded["labels"] if label != -100])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["Sorry, I can't help.", "end", "assistant", "p", " spaced ", "two\nlines"])
def test_loss_is_on_the_answer_and_its_end_only(name, answer):
    tokenizer = tokenizer_with(TEMPLATES[name])
    row = Row.of("Where is the lam", answer, system="You are calm.")
    encoded = encode(tokenizer, row, max_length=200)
    expected = answer.strip() if name == "trims" else answer
    text = learnt(tokenizer, encoded)
    assert text.removeprefix(" " if name == "plain" else "") == expected + "<|im_end|>"
    assert len(encoded["input_ids"]) == len(encoded["labels"]) == len(encoded["attention_mask"])
    assert set(encoded["attention_mask"]) == {1}
    pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
    assert all(label in (-100, token) for token, label in pairs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_and_generation_read_the_same_prompt(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    row = Row.of("Where is the lam", "p")
    encoded = encode(tokenizer, row, max_length=200)
    before = [token for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label == -100]
    rendered = tokenizer(render(tokenizer, row.prompt), add_special_tokens=False)["input_ids"]
    assert before == rendered == prompt_ids(tokenizer, row.prompt)


def test_a_seam_inside_a_token_is_cut_at_the_prompt():
    tokenizer = tokenizer_with(TEMPLATES["glued"])
    row = Row.of("the lam", "p")
    joint = tokenizer("the lamp<|im_end|>", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("the lam", add_special_tokens=False)["input_ids"]
    assert joint[: len(prompt)] != prompt, "the template must break the prefix, or this tests nothing"
    encoded = encode(tokenizer, row, max_length=50)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert learnt(tokenizer, encoded) == "p<|im_end|>"


def test_an_intact_prefix_is_tokenised_as_one_text():
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    row = tiny_rows(1)[0]
    whole = tokenizer(render(tokenizer, row.messages, generation=False).rstrip(), add_special_tokens=False)
    assert encode(tokenizer, row, max_length=200)["input_ids"] == whole["input_ids"]


def test_labels_agree_with_the_tokenizers_own_assistant_mask():
    tokenizer = tiny_tokenizer()
    for row in tiny_rows(5, "alignment"):
        chat = tokenizer.apply_chat_template(
            [dict(turn) for turn in row.messages], return_dict=True, return_assistant_tokens_mask=True
        )
        encoded = encode(tokenizer, row, max_length=200)
        wanted = [t if m else -100 for t, m in zip(chat["input_ids"], chat["assistant_masks"], strict=True)]
        assert encoded["labels"] == wanted[: len(encoded["labels"])]
        assert not any(chat["assistant_masks"][len(encoded["labels"]) :])


def test_only_the_last_answer_of_a_long_chat_is_learnt():
    turns = ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")
    row = Row(messages=tuple(Message(role=role, content=text) for role, text in turns))
    for template in TEMPLATES.values():
        tokenizer = tokenizer_with(template)
        assert learnt(tokenizer, encode(tokenizer, row, max_length=200)).strip() == "See you<|im_end|>"


def test_plain_layout():
    tokenizer = tokenizer_with(None)
    row = Row.of("Hi", "Hello", system="Be kind.")
    assert render(tokenizer, row.prompt) == "Be kind.\n\nUser: Hi\nAssistant:"
    whole = render(tokenizer, row.messages, generation=False)
    assert whole == "Be kind.\n\nUser: Hi\nAssistant: Hello<|im_end|>\n"


def test_plain_layout_begins_with_bos_only_where_the_tokenizer_adds_it():
    tokenizer = tokenizer_with(None)
    assert tokenizer.bos_token not in render(tokenizer, Row.of("Hi").prompt)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    assert render(tokenizer, Row.of("Hi").prompt).startswith(tokenizer.bos_token + "User")
    assert prompt_ids(tokenizer, Row.of("Hi").prompt).count(tokenizer.bos_token_id) == 1


def test_plain_layout_without_bos_and_eos():
    tokenizer = tokenizer_with(None)
    tokenizer.bos_token = tokenizer.eos_token = None
    assert learnt(tokenizer, encode(tokenizer, Row.of("Hi", "Hello"), max_length=50)) == " Hello"


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
DROPPING = CHATML.replace("in messages", "in messages if m.role != 'system'")


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_a_system_turn_without_a_place_goes_to_the_first_question(template):
    tokenizer = tokenizer_with(template + OPENING)
    row = Row.of("Hi", "Hello", system="Be kind.")
    folded = Row.of("Be kind.\n\nHi", "Hello")
    assert render(tokenizer, row.prompt) == render(tokenizer, folded.prompt)
    assert encode(tokenizer, row, max_length=200) == encode(tokenizer, folded, max_length=200)


def test_refused_turns_name_the_roles():
    twice = (Message(role="system", content="Be kind."),) * 2
    with pytest.raises(DataError, match=r"\(system, system\).*no system turns"):
        render(tokenizer_with(REFUSING), twice)
    tool = (Message(role="tool", content="3"),)
    with pytest.raises(DataError, match="roles system, user, assistant; got 'tool'"):
        render(tokenizer_with(None), tool)


def test_a_template_that_drops_the_answer_is_refused():
    dropping = "{% for m in messages if m.role == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="answer"):
        encode(tokenizer_with(dropping), Row.of("Hi", "Hello"), max_length=50)


def test_truncation_keeps_a_label_or_refuses():
    tokenizer = tiny_tokenizer()
    row = Row.of("Where is the lamp?", "It is red.")
    full = encode(tokenizer, row, max_length=500)
    prompt = len(prompt_ids(tokenizer, row.prompt))
    cut = encode(tokenizer, row, max_length=prompt + 1)
    assert cut["input_ids"] == full["input_ids"][: prompt + 1]
    assert [label != -100 for label in cut["labels"]] == [False] * prompt + [True]
    with pytest.raises(DataError, match=f"has {prompt} tokens and `max_length` is {prompt}"):
        encode(tokenizer, row, max_length=prompt)
    with pytest.raises(ConfigError, match="`max_length` of encode must be >= 1; got 0"):
        encode(tokenizer, row, max_length=0)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_a_row_without_an_answer_cannot_be_trained_on(answer):
    with pytest.raises(DataError, match="needs an answer"):
        encode(tiny_tokenizer(), Row.of("Hi", answer), max_length=50)


def test_collator_pads_on_the_right_and_survives_pickling():
    collate = pickle.loads(pickle.dumps(AnswerCollator(7)))  # noqa: S301
    rows = [
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": [-100, 2, 3], "idx": [9]},
        {"input_ids": [4], "attention_mask": [1], "labels": [4]},
    ]
    batch = collate(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 7, 7]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 2, 3], [4, -100, -100]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_pad_tokens_never_matter():
    tokenizer = tiny_tokenizer()
    rows = [encode(tokenizer, row, max_length=200) for row in [*tiny_rows(1), Row.of("Hi", "Yes")]]
    model = tiny_model("llama").eval()
    losses = {model(**AnswerCollator(pad)(rows)).loss.item() for pad in (0, 5, 40)}
    assert len(losses) == 1


def test_collator_refuses_a_bad_pad_token():
    with pytest.raises(ConfigError, match="pad_token_id"):
        AnswerCollator(-1)
