from typing import Any

import pytest
import torch

from bouton.data.tokenizers import ByteTokenizer, IntegerTokenizer
from bouton.errors import ConfigError
from bouton.generation import Sampling, decode, generate, stream
from bouton.models.build import build

from .toys import Script, tiny

TOKENIZER = ByteTokenizer()
GREEDY = Sampling(temperature=0.0)
FREE = Sampling(temperature=1.0, top_k=0)
PROMPTS = ["Once upon", "x", "The quick brown fox jumps", "ab"]


def naive(model: torch.nn.Module, prompt: str, n: int) -> list[int]:
    """Greedy decoding without state: the whole text again for every token."""
    tokens = [TOKENIZER.eot_id, *TOKENIZER.encode(prompt)]
    size = len(tokens)
    with torch.no_grad():
        for _ in range(n):
            logits, _ = model(torch.tensor([tokens]))
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[size:]


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 5}, {"position": "learned"}, {"num_kv_heads": 1, "activation": "swiglu"}, {"logit_softcap": 5.0}],
)
def test_batched_decoding_with_state_equals_naive_decoding_row_by_row(options: dict[str, Any]) -> None:
    model = tiny(**options)
    done = generate(model, TOKENIZER, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    for prompt, row in zip(PROMPTS, done, strict=True):
        expected = naive(model, prompt, 12)
        if TOKENIZER.eot_id in expected:
            expected = expected[: expected.index(TOKENIZER.eot_id) + 1]
        assert row.tokens == expected


@pytest.mark.parametrize("sampling", [FREE, Sampling(temperature=1.5, top_p=0.9, min_p=0.01, repetition_penalty=1.3)])
def test_a_row_is_what_it_is_alone(sampling: Sampling) -> None:
    model = tiny()
    options: dict[str, Any] = {"max_new_tokens": 15, "sampling": sampling, "seed": 3}
    together = generate(model, TOKENIZER, PROMPTS, **options)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert generate(model, TOKENIZER, [prompt], **options)[0] == row
    assert generate(model, TOKENIZER, PROMPTS[::-1], **options)[::-1] == together
    assert generate(model, TOKENIZER, PROMPTS, batch_size=3, **options) == together


def test_a_long_prompt_read_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = tiny(), {"max_new_tokens": 8, "sampling": FREE}
    whole = generate(model, TOKENIZER, PROMPTS, **options)
    monkeypatch.setattr(decode, "PREFILL_ELEMENTS", 257 * 4 * 7)
    assert generate(model, TOKENIZER, PROMPTS, **options) == whole


def test_samples_differ_and_repeat_with_the_seed() -> None:
    model = tiny()
    options: dict[str, Any] = {"max_new_tokens": 10, "sampling": FREE, "num_samples": 3}
    rows = generate(model, TOKENIZER, ["a", "b"], seed=1, **options)
    assert [row.prompt for row in rows] == ["a"] * 3 + ["b"] * 3
    assert len({tuple(row.tokens) for row in rows}) == 6
    assert generate(model, TOKENIZER, ["a", "b"], seed=1, **options) == rows
    assert generate(model, TOKENIZER, ["a", "b"], seed=2, **options) != rows


def test_a_repeated_prompt_continues_its_samples() -> None:
    model = tiny()
    twice = generate(model, TOKENIZER, ["a", "b", "a"], max_new_tokens=10, sampling=FREE)
    samples = generate(model, TOKENIZER, ["a"], max_new_tokens=10, sampling=FREE, num_samples=2)
    assert [twice[0].tokens, twice[2].tokens] == [row.tokens for row in samples]


def test_pieces_make_up_the_text_of_each_row_and_are_complete_characters() -> None:
    model = Script("naïve — 日本 🦊".encode())
    pieces = list(stream(model, TOKENIZER, ["p", "q"], max_new_tokens=len(model.script), sampling=GREEDY))
    for row in (0, 1):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in mine) == "naïve — 日本 🦊"
        assert all("\ufffd" not in piece.text for piece in mine)
        assert [piece.finish for piece in mine if piece.finish] == ["max_new_tokens"]


def test_a_character_cut_by_the_limit_becomes_a_replacement_character() -> None:
    row = generate(Script("ab🦊".encode()), TOKENIZER, ["p"], max_new_tokens=4, sampling=GREEDY)[0]
    assert row.text == "ab\ufffd" and len(row.tokens) == 4


def test_end_of_text_ends_a_row_and_is_not_part_of_its_text() -> None:
    row = generate(Script(b"bye", eot=True), TOKENIZER, ["p"], max_new_tokens=50, sampling=GREEDY)[0]
    assert (row.text, row.finish, row.tokens[-1]) == ("bye", "eot", TOKENIZER.eot_id)


def test_rows_end_independently_and_leave_the_batch() -> None:
    model = tiny()
    long = generate(model, TOKENIZER, PROMPTS, max_new_tokens=20, sampling=FREE)
    # a character of the second row's text, as a stop string
    stop = next(c for c in long[1].text[3:] if c != "\ufffd")
    rows = generate(model, TOKENIZER, PROMPTS, max_new_tokens=20, sampling=FREE, stop=[stop])
    for before, after in zip(long, rows, strict=True):
        assert after.text == before.text.split(stop)[0]
    assert rows[1].finish == "stop" and len(rows[1].tokens) < 20


def test_a_stop_string_across_tokens_is_trimmed() -> None:
    row = generate(Script(b"one two STOP three"), TOKENIZER, ["p"], sampling=GREEDY, stop=["STOP", "zzz"])[0]
    assert (row.text, row.finish) == ("one two ", "stop")
    held = generate(Script(b"one ST"), TOKENIZER, ["p"], sampling=GREEDY, stop=["STOP"], max_new_tokens=6)[0]
    assert (held.text, held.finish) == ("one ST", "max_new_tokens")


def test_max_new_tokens_counts_calls_too() -> None:
    model = Script(b"abcdef")
    assert generate(model, TOKENIZER, ["p"], max_new_tokens=4, sampling=GREEDY)[0].text == "abcd"
    assert model.calls == 4  # one for the prompt, none after the last token
    assert generate(model, TOKENIZER, ["p"], max_new_tokens=0)[0].finish == "max_new_tokens"
    assert model.calls == 4


def test_repetition_penalty_covers_the_prompt() -> None:
    script = Script(b"a")
    script.forward = lambda tokens, state=None, *, starts=None, vitals=None: (  # type: ignore[method-assign]
        torch.tensor([3.0 if t == 97 else 2.0 if t == 98 else -9.0 for t in range(257)]).expand(*tokens.shape, 257),
        {"x": torch.zeros(tokens.shape[0])},
    )
    penalised = Sampling(temperature=0.0, repetition_penalty=2.0)
    options: dict[str, Any] = {"max_new_tokens": 2, "sampling": penalised}
    assert generate(script, TOKENIZER, ["z"], **options)[0].text == "ab"  # 3, then 1.5 against 2
    assert generate(script, TOKENIZER, ["a"], **options)[0].text == "ba"  # then 1.5 against 1


def test_learned_positions_end_where_they_end() -> None:
    model = tiny(position="learned", max_seq_len=8)
    rows = generate(model, TOKENIZER, ["ab", "abcdefg"], max_new_tokens=50, sampling=GREEDY, stop=["\x00never"])
    for row, size in zip(rows, (3, 8), strict=True):
        if row.finish != "eot":
            assert row.finish == "max_seq_len"
            assert len(row.tokens) == 8 - size + 1  # drawn at the last position; + 1: end of text
    assert rows[0].tokens[:5] == naive(model, "ab", 5)
    with pytest.raises(ConfigError, match=r"9 tokens.*max_seq_len = 8"):
        stream(model, TOKENIZER, ["abcdefgh"])


def test_an_empty_prompt_stands_for_the_beginning_of_a_document() -> None:
    model = tiny()
    row = generate(model, TOKENIZER, [""], max_new_tokens=1, sampling=GREEDY)[0]
    assert row.tokens == [int(model(torch.tensor([[TOKENIZER.eot_id]]))[0][0, -1].argmax())]


def test_entries_of_the_head_beyond_the_vocabulary_are_never_drawn() -> None:
    model = Script(b"abc", vocab_size=300)
    model.script = [299]
    row = generate(model, TOKENIZER, ["p"], max_new_tokens=30, sampling=FREE)[0]
    assert all(token < 257 for token in row.tokens)
    small = Script(b"abc", vocab_size=200)
    with pytest.raises(ConfigError, match=r"257.*200"):
        generate(small, TOKENIZER, ["p"])


def test_the_model_is_left_as_it_was() -> None:
    model = tiny(dropout=0.5)
    model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    once = generate(model, TOKENIZER, ["a"], max_new_tokens=6, sampling=GREEDY)
    assert generate(model, TOKENIZER, ["a"], max_new_tokens=6, sampling=GREEDY) == once  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    # inference mode is not left behind: training goes on
    model(torch.tensor([[1, 2, 3]]))[0].sum().backward()

    pieces = stream(model, TOKENIZER, ["a"], max_new_tokens=6, sampling=GREEDY)
    next(pieces)
    assert torch.is_inference_mode_enabled() is False
    pieces.close()
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": -1}, {"num_samples": 0}, {"batch_size": 0}, {"max_new_tokens": 1.5}]
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        stream(tiny(), TOKENIZER, ["a"], **wrong)


def test_rows_of_a_state_can_be_taken() -> None:
    state = {"a": {"b": torch.arange(3)}, "c": [torch.arange(6).view(3, 2)]}
    taken = decode.take(state, [2, 0, 2])
    assert taken["a"]["b"].tolist() == [2, 0, 2] and taken["c"][0].tolist() == [[4, 5], [0, 1], [4, 5]]


def test_text_begins_as_documents_do_and_numbers_are_taken_as_they_are() -> None:
    assert decode.prompt_tokens(TOKENIZER, "a") == [TOKENIZER.eot_id, 97]
    assert decode.prompt_tokens(IntegerTokenizer(9), "3 4") == [3, 4]
    assert decode.prompt_tokens(IntegerTokenizer(9), "") == [0]


@pytest.mark.parametrize("names", ["presyn", "hebb", "septin", "hebb+presyn", "dendrite+oscillate+septin"])
def test_the_state_of_mechanisms_is_carried_row_by_row(names: str) -> None:
    sizes = {"vocab_size": 257, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "init_std": 0.4}
    mechanism: dict[str, Any] = {name: {} for name in names.split("+")}
    if "hebb" in mechanism:
        mechanism["hebb"] = {"rank": 4, "heads": 2}
    model = build({"model": sizes, "mechanism": mechanism, "seed": 1}).double()
    rows = generate(model, TOKENIZER, PROMPTS, max_new_tokens=10, sampling=GREEDY, num_samples=2)
    for prompt, row in zip([p for p in PROMPTS for _ in range(2)], rows, strict=True):
        expected = naive(model, prompt, len(row.tokens))
        assert row.tokens == expected
        assert row.finish == "max_new_tokens" or row.tokens[-1] == TOKENIZER.eot_id
