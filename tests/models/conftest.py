"""Small models for the tests of this room, one of them trained."""

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNForCausalLM


@pytest.fixture
def tiny() -> HGRNForCausalLM:
    """An untrained model with random bounds, in float64."""
    torch.manual_seed(0)
    model = (
        HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
        .double()
        .eval()
    )
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    return model


class Rules:
    """Token sequences whose first token names a rule for all later ones; only a state remembers it.

    Rule r is a permutation of the letters, and every letter is followed by its image under the
    rule. So the letter alone does not tell what comes next.
    """

    rules = 4
    letters = 8
    pad = rules + letters

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        tables = [torch.randperm(self.letters, generator=generator) for _ in range(self.rules)]
        self.tables = torch.stack(tables)

    def sample(self, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        rule = torch.randint(self.rules, (rows,), generator=generator)
        letter = torch.randint(self.letters, (rows,), generator=generator)
        tokens = [rule]
        for _ in range(length - 1):
            tokens.append(letter + self.rules)
            letter = self.tables[rule, letter]
        return torch.stack(tokens, dim=1)


@pytest.fixture(scope="package")
def rules() -> Rules:
    return Rules()


@pytest.fixture(scope="package")
def trained(rules) -> HGRNForCausalLM:
    """A model that has learned `Rules`: what it says next hangs on what its state holds."""
    torch.manual_seed(0)
    config = HGRNConfig(
        vocab_size=rules.pad + 1, hidden_size=32, num_hidden_layers=2, pad_token_id=rules.pad
    )
    model = HGRNForCausalLM(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        tokens = rules.sample(16, 16, generator)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    tokens = rules.sample(64, 40, generator)
    right = (model(tokens).logits[:, 1:-1].argmax(-1) == tokens[:, 2:]).float().mean()
    assert right > 0.95, f"the fixture did not learn: {right:.2f} right"
    return model
