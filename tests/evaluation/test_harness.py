"""The adapter for lm-eval against the model itself, and through lm-eval with small local tasks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import bouton
from bouton.errors import ConfigError, DataError, EvaluationError
from bouton.evaluation import evaluate
from bouton.evaluation.harness import BoutonLM, _generation
from bouton.evaluation.tasks.lm_eval import estimates
from bouton.runs import Run

QUESTIONS = [
    ("Once upon a time, Tim had a little", "dog", "quantum", 0),
    ("One day", "Zqx", "Anna", 1),
    ("In the end everyone was", "happy", "park park", 0),
]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks over three questions: a choice, a continuation, and whole texts."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [{"question": q, "choices": [a, b], "answer": n} for q, a, b, n in QUESTIONS]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}\ntest_split: test\n"
    kinds = {
        "choice": 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\nmetric_list: [{metric: acc}]\n',
        "writing": 'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: " x"\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n',
        "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: local_{name}\n{common}{text}")
    gone = (folder / "choice.yaml").read_text().replace("data.jsonl", "gone.jsonl")
    (folder / "gone.yaml").write_text(gone.replace("local_choice", "local_gone"))
    return folder


@pytest.fixture
def lm(stories: Run) -> BoutonLM:
    return BoutonLM(stories)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def logprob(run: Run, context: str, continuation: str) -> float:
    """By one pass over the whole text, from the end-of-text token on."""
    own = run.tokenizer
    before, after = own.encode(context), own.encode(context + continuation)[len(own.encode(context)) :]
    with torch.no_grad():
        logits, _ = run.model(torch.tensor([[own.eot_id, *before, *after]]))
    p = torch.log_softmax(logits[0, len(before) : -1].double(), -1)
    return p.gather(1, torch.tensor(after)[:, None]).sum().item()


def test_it_is_known_to_lm_eval_by_its_name(stories: Run) -> None:
    assert get_model("bouton") is BoutonLM
    made = BoutonLM.create_from_arg_string(
        f"run={stories.folder},kernels=torch", {"batch_size": "auto", "device": None}
    )
    assert made.batch_size == 16 and made.eot_token_id == stories.tokenizer.eot_id


def test_log_likelihoods_are_the_models(lm: BoutonLM, stories: Run) -> None:
    pairs = [("Once upon a time, Tim", " had a little dog."), ("", "Once upon"), ("One day ", "Anna")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs))
    expected = [logprob(stories, *pairs[0]), logprob(stories, *pairs[1]), logprob(stories, "One day", " Anna")]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)
    greedy = stories.generate("Once upon a time, Tim had", temperature=0.0, max_new_tokens=4)
    ((_, is_greedy),) = lm.loglikelihood(requests("loglikelihood", ("Once upon a time, Tim had", greedy)))
    assert is_greedy


def test_a_long_context_loses_its_beginning(stories: Run) -> None:
    short = BoutonLM(stories, max_length=8)
    text = "One day Tim went with it to the park. " * 3
    ((found, _),) = short.loglikelihood(requests("loglikelihood", (text.rstrip(), " Tim")))
    own = stories.tokenizer
    whole, after = own.encode(text.rstrip()), own.encode(" Tim")
    with torch.no_grad():
        logits, _ = stories.model(torch.tensor([[*whole[-(8 + 1 - len(after)) :], *after]]))
    p = torch.log_softmax(logits[0, -1 - len(after) : -1].double(), -1)
    assert found == pytest.approx(p.gather(1, torch.tensor(after)[:, None]).sum().item(), abs=1e-4)


def test_whole_texts_are_predicted_token_by_token(lm: BoutonLM, stories: Run) -> None:
    texts = ["Once upon a time, Tim had a little frog.", "Anna"]
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *[(text,) for text in texts]))
    assert found == pytest.approx([logprob(stories, "", text) for text in texts], abs=1e-4)
    # In windows of 4 every token is still predicted once.
    windows = BoutonLM(stories, max_length=4).loglikelihood_rolling(requests("loglikelihood_rolling", (texts[0],)))
    assert windows[0] < 0 and windows[0] != pytest.approx(found[0])


def test_texts_end_before_their_stop_strings(lm: BoutonLM, stories: Run) -> None:
    asked = [("Once upon a time,", {"until": [" a"], "max_gen_toks": 12}), ("One day", {"max_gen_toks": 5})]
    found = lm.generate_until(requests("generate_until", *asked))
    assert found[0] == stories.generate("Once upon a time,", temperature=0.0, max_new_tokens=12, stop=" a")
    assert found[1] == stories.generate("One day", temperature=0.0, max_new_tokens=5)


def test_generation_arguments() -> None:
    stop, length, sampling = _generation({"until": "x", "temperature": 0.7, "do_sample": True, "top_p": 0.5})
    assert (stop, length, sampling.temperature, sampling.top_p) == (["x"], 256, 0.7, 0.5)
    assert _generation({"temperature": 0.7, "do_sample": False})[2].temperature == 0.0
    with pytest.raises(ConfigError, match="asks for generation with grammar"):
        _generation({"grammar": "x"})


@pytest.mark.slow
def test_tasks_of_lm_eval_run_unchanged(stories: Run, definitions: Path) -> None:
    labels = [f"lm_eval:local_{kind}" for kind in ("choice", "writing", "rolling")]
    results = evaluate(stories, labels, {"lm_eval": {"include_path": str(definitions)}})
    right = [
        logprob(stories, q, f" {(a, b)[n]}") > logprob(stories, q, f" {(a, b)[1 - n]}") for q, a, b, n in QUESTIONS
    ]
    choice = results[labels[0]]["numbers"]
    assert choice["acc"] == pytest.approx(sum(right) / 3) and choice["questions"] == 3
    assert choice["acc_low"] <= choice["acc"] <= choice["acc_high"]
    bits = -sum(logprob(stories, "", q) for q, *_ in QUESTIONS) / math.log(2) / sum(len(q) for q, *_ in QUESTIONS)
    assert results[labels[2]]["numbers"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert (stories.folder / "evaluation" / "lm_eval-local_choice.json").is_file()
    assert set(stories.evaluation) == set(labels)


@pytest.mark.slow
def test_what_cannot_be_measured_is_one_line(stories: Run, recall: Run, definitions: Path) -> None:
    options = {"lm_eval": {"include_path": str(definitions)}}
    with pytest.raises(EvaluationError, match="lm-eval has no task 'nothing_like_it'"):
        evaluate(stories, ["lm_eval:nothing_like_it"], options)
    with pytest.raises(EvaluationError, match="needs a run that was trained on text"):
        evaluate(recall, ["lm_eval:local_choice"])
    with pytest.raises(DataError, match="needs a run that was trained on text"):
        BoutonLM(recall)
    with pytest.raises(DataError, match=r"the data of lm_eval:local_gone cannot be loaded") as caught:
        evaluate(stories, ["lm_eval:local_gone"], options)
    assert "\n" not in str(caught.value)


def test_metrics_become_estimates() -> None:
    found = estimates(
        {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1.0, "em_stderr,strict": "N/A"}
    )
    assert found["acc"].se == 0.1 and found["acc"].low == pytest.approx(0.5 - 1.96 * 0.1, abs=1e-3)
    assert found["em_strict"].value == 1.0 and math.isnan(found["em_strict"].se)


def test_learned_positions_end(tmp_path: Path, stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bouton.evaluation.harness.position_limit", lambda model: 16)
    with pytest.raises(ConfigError, match="max_length = 300 is too long: learned positions end at 16"):
        BoutonLM(bouton.load(stories.folder, device="cpu"), max_length=300)
