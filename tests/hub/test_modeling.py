"""The exported model computes what the run computes, bit for bit, and generates with the state as its cache."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hub is not installed")

import bouton
from bouton.errors import CheckpointError
from bouton.hub import BoutonForCausalLM, fast_tokenizer, from_pretrained, save_pretrained
from bouton.mechanisms import registry

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied_embeddings": False, "bias": True, "norm": "layernorm", "position": "learned"},
    "window": {"window": 4, "num_kv_heads": 1, "activation": "swiglu", "logit_softcap": 8.0},
    "composed": {"mechanism": {"presyn": {}, "hebb": {}, "sparse": {}, "septin": {}}},
}


@pytest.fixture
def pair(request: pytest.FixtureRequest, make_run: Any, tmp_path: Path) -> tuple[Any, Any]:
    """The run, and the model that was exported and loaded again."""
    run = bouton.load(make_run("bpe", **SHAPES[getattr(request, "param", "composed")]), device="cpu")
    save_pretrained(run, tmp_path / "exported")
    return run, from_pretrained(tmp_path / "exported", device="cpu")


def tokens(run: Any, rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, run.tokenizer.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pair", SHAPES, indirect=True)
def test_logits_are_those_of_the_run_bit_for_bit(pair: Any) -> None:
    run, model = pair
    x = tokens(run)
    with torch.no_grad():
        expected, _ = run.model(x)
        assert torch.equal(model(x).logits, expected)
        # Going on from a state is one pass, too.
        first = model(x[:, :5])
        rest = model(x[:, 5:], state=first.state).logits
    assert expected.dtype == torch.float32
    assert torch.allclose(torch.cat((first.logits, rest), 1), expected, atol=1e-5)


@pytest.mark.parametrize("pair", SHAPES, indirect=True)
def test_generate_is_the_same_with_the_state_and_without(pair: Any) -> None:
    run, model = pair
    x = tokens(run, rows=3, length=6)
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    with_state = model.generate(x, **options, output_logits=True, return_dict_in_generate=True)
    without = model.generate(x, **options, use_cache=False, output_logits=True, return_dict_in_generate=True)
    assert with_state.sequences.shape == (3, 16)
    assert torch.equal(with_state.sequences, without.sequences)
    for a, b in zip(with_state.logits, without.logits, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_every_token_after_the_first_is_read_alone(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = pair
    lengths: list[int] = []
    forward = model.body.forward
    monkeypatch.setattr(model.body, "forward", lambda x, *a, **k: (lengths.append(x.shape[1]), forward(x, *a, **k))[1])
    model.generate(tokens(run), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert lengths == [12, 1, 1, 1]


def test_it_generates_what_the_run_generates(pair: Any) -> None:
    run, model = pair
    tokenizer = fast_tokenizer(run.tokenizer)
    prompts = ["a story", "another one about", "s"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert bool((batch["attention_mask"] == 0).any())
    sequences = model.generate(**batch, max_new_tokens=8, do_sample=False)
    texts = [run.tokenizer.decode(row[batch["input_ids"].shape[1] :].tolist()) for row in sequences]
    assert texts == run.generate(prompts, temperature=0.0, max_new_tokens=8)


@pytest.mark.parametrize("pair", ["plain", "composed"], indirect=True)
def test_beams_take_their_state_along(pair: Any) -> None:
    run, model = pair
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    x = tokens(run)
    assert torch.equal(model.generate(x, **options), model.generate(x, **options, use_cache=False))


def test_padding_on_either_side_changes_nothing(pair: Any) -> None:
    run, model = pair
    x = tokens(run, rows=1, length=7)
    pad = torch.zeros(1, 3, dtype=torch.int64)
    with torch.no_grad():
        alone = model(x).logits
        left = model(torch.cat((pad, x), 1), torch.tensor([[0] * 3 + [1] * 7])).logits[:, 3:]
        right = model(torch.cat((x, pad), 1), torch.tensor([[1] * 7 + [0] * 3])).logits[:, :7]
    assert torch.allclose(left, alone, atol=1e-5) and torch.allclose(right, alone, atol=1e-5)
    with pytest.raises(ValueError, match="not between them"):
        model(x, torch.tensor([[1, 1, 0, 1, 1, 1, 1]]))


def test_labels_give_the_shifted_loss(pair: Any) -> None:
    run, model = pair
    x = tokens(run)
    labels = x.clone()
    labels[:, :4] = -100
    found = model(x, labels=labels).loss
    logits = run.model(x)[0][:, 3:-1]
    assert found.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 4:].flatten()).item(), abs=1e-5
    )
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_arguments_without_a_meaning_here_are_refused(pair: Any) -> None:
    run, model = pair
    with pytest.raises(ValueError, match="does not take output_attentions"):
        model(tokens(run), output_attentions=True)
    assert model(tokens(run), output_attentions=False, return_dict=False)[0].ndim == 3


def test_every_mechanism_exports(make_run: Any, tmp_path: Path) -> None:
    for name, cls in registry.mechanisms().items():
        if cls.refines:
            continue
        run = bouton.load(make_run("bytes", mechanism={name: {}}), device="cpu")
        model = from_pretrained(save_pretrained(run, tmp_path / name), device="cpu")
        x = tokens(run)
        with torch.no_grad():
            assert torch.equal(model(x).logits, run.model(x)[0]), name
        assert model.state_dict().keys() == {f"body.{key}" for key in run.model.state_dict()}


def test_a_file_without_a_tensor_is_refused(make_run: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_pretrained(make_run("bytes"), tmp_path / "exported") / "model.safetensors"
    tensors = load_file(path)
    del tensors["body.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks body\.norm\.weight"):
        from_pretrained(tmp_path / "exported")


def test_it_can_be_built_from_a_configuration_alone(make_run: Any) -> None:
    from bouton.hub.export import pretrained

    config = pretrained(bouton.load(make_run("bytes"), device="cpu")).config
    again = BoutonForCausalLM(config)
    assert again.config.num_hidden_layers == 2 and not any(p.is_meta for p in again.parameters())
