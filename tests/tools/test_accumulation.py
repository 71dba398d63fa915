"""transformers' Trainer: an accumulated step equals a step on the whole batch."""

import warnings

import pytest
import torch

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
from tests.tolerances import assert_close

pytest.importorskip("accelerate", reason="Trainer needs the package accelerate")
from transformers import Trainer, TrainingArguments

ROWS = 4
IDS = torch.randint(11, (ROWS, 6), generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 2, 1, -100])  # so the two halves hold two labels and one
CASES = {
    "language model": (
        HGRNForCausalLM,
        {},
        torch.where(torch.arange(6) < torch.tensor([[6], [6], [3], [2]]), IDS, -100),
    ),
    "classes": (HGRNForSequenceClassification, dict(num_labels=3), CLASSES),
    "values": (HGRNForSequenceClassification, dict(num_labels=1), torch.tensor([0.5, -1, 2, 3])),
    "several labels": (HGRNForSequenceClassification, dict(num_labels=3), torch.eye(4)[:, :3]),
    "pairs": (HGRNForSequencePairClassification, dict(num_labels=3), CLASSES),
}


def trained(case: str, folder, batch_size: int) -> HGRNForCausalLM:
    """After one step of plain gradient descent on all rows, `batch_size` at a time."""
    kind, options, labels = CASES[case]
    torch.manual_seed(0)
    model = kind(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, **options))
    rows = [
        dict(input_ids=IDS[n], attention_mask=torch.ones(6).long(), labels=labels[n])
        for n in range(ROWS)
    ]
    if kind is HGRNForSequencePairClassification:
        rows = [row | dict(input_ids_b=row["input_ids"].flip(0)) for row in rows]
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=ROWS // batch_size,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # what Trainer's own parts deprecate is no matter of ours
        Trainer(model, arguments, train_dataset=rows).train()
    return model


@pytest.mark.parametrize("case", CASES)
def test_accumulation_changes_nothing(case, tmp_path):
    whole = trained(case, tmp_path, ROWS)
    parts = trained(case, tmp_path, 2)
    torch.manual_seed(0)
    start = type(whole)(whole.config)
    moved = 0
    for name, parameter in whole.named_parameters():
        assert_close(parts.get_parameter(name), parameter, name=name)
        moved = max(moved, (parameter - start.get_parameter(name)).abs().max().item())
    assert moved > 1e-2
