"""lm-eval on a saved folder, in a program that never imports hgrn.

Its figures equal those that we compute by hand.
"""

import json
import math

import pytest
import torch

from hgrn.data.tokenizer import BYTE_BOS, bytes_to_ids
from tests.tolerances import assert_close
from tests.tools import strangers
from tests.tools.conftest import SENTENCE

pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed (pip install -c constraints.txt '.[eval]')"
)
pytestmark = pytest.mark.slow  # one process that imports all of lm-eval

CHOICE = """\
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """\
task: perplexity
dataset_path: json
dataset_kwargs: {data_files: {test: %s/perplexity.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
"""
SAYING = """\
task: saying
dataset_path: json
dataset_kwargs: {data_files: {test: %s/saying.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{rest}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 80}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {"question": "Grüße aus", "choices": [" 東京", " Köln", "!"], "answer": 0},
    {"question": "naïve", "choices": [" Kunst", " café", " Tee"], "answer": 1},
    {"question": "- 7", "choices": [" Dollar", " €", " £"], "answer": 1},
    {"question": "Grüße", "choices": [" aus", " an", " und"], "answer": 2},
]
# The first is longer than twice the 2048 tokens that lm-eval reads at once unless told otherwise.
TEXTS = [SENTENCE * 100, "naïve Grüße", "a"]
# bootstrap_iters=0: the errors of the means would take longer than the rest.
PROGRAM = """
import json
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, tasks = sys.argv[1:]
results = simple_evaluate(
    model="hf", model_args=dict(pretrained=folder, trust_remote_code=True, max_length=100_000),
    tasks=["choice", "perplexity", "saying"],
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
    device="cpu", batch_size=2, bootstrap_iters=0,
)
said = [[pair[0] for pair in row["filtered_resps"]] for row in results["samples"]["choice"]]
print(json.dumps({"results": results["results"], "choice": said}))
"""


@pytest.fixture(scope="module")
def told(folder, tmp_path_factory) -> dict:
    """What lm-eval prints of its three tasks."""
    place = tmp_path_factory.mktemp("tasks")
    sayings = [{"prompt": SENTENCE[:cut], "rest": SENTENCE[cut:-1]} for cut in (1, 9, 20)]
    for name, task, rows in (
        ("choice", CHOICE, QUESTIONS),
        ("perplexity", PERPLEXITY, [{"text": text} for text in TEXTS]),
        ("saying", SAYING, sayings),
    ):
        (place / f"{name}.yaml").write_text(task % place)
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = strangers.run(PROGRAM, folder, place, home=place / "home")
    return json.loads(printed.splitlines()[-1])


def log_likelihood(model, context: list[int], text: str) -> float:
    """Nats of the bytes of `text` behind `context`."""
    ids = torch.tensor([[*context, *bytes_to_ids(text.encode()).tolist()]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
    return scores.gather(1, ids[0, 1:, None])[len(context) - 1 :].sum().item()


def test_multiple_choice(told, trained):
    expected = [
        [
            log_likelihood(trained, bytes_to_ids(row["question"].encode()).tolist(), choice)
            for choice in row["choices"]
        ]
        for row in QUESTIONS
    ]
    assert_close(torch.tensor(told["choice"]), torch.tensor(expected))
    chosen = [row.index(max(row)) for row in expected]
    right = [choice == row["answer"] for choice, row in zip(chosen, QUESTIONS)]
    assert right == [
        True,
        True,
        True,
        False,
    ]  # the last answer is wrong, so that one question is missed
    assert told["results"]["choice"]["acc,none"] == 0.75


def test_perplexity(told, trained):
    nats = -sum(log_likelihood(trained, [BYTE_BOS], text) for text in TEXTS)
    per_byte = nats / sum(len(text.encode()) for text in TEXTS)
    found = torch.tensor(
        [
            told["results"]["perplexity"][f"{name},none"]
            for name in ("bits_per_byte", "byte_perplexity")
        ]
    )
    assert_close(found, torch.tensor([per_byte / math.log(2), math.exp(per_byte)]))


def test_generation_from_prompts_of_different_lengths(told):
    # Padded together on the left, each goes on with the sentence up to its end.
    assert told["results"]["saying"]["exact_match,none"] == 1
