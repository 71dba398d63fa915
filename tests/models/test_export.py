"""torch.export: one program for every batch and length, with the model's own numbers."""

import pytest
import torch

from hgrn.models import HGRNCache, HGRNConfig, HGRNForCausalLM
from hgrn.ops import available_engines
from hgrn.ops.decompositions import DECOMPOSITIONS
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
OPTIONS = {
    "complex": {},
    "real": dict(
        complex_state=False,
        gate_rank=3,
        gate_position="before_norm",
        gate_act="sigmoid",
        glu_act="identity",
        bias=False,
    ),
}
SHAPES = [(batch, length) for batch in (1, 3) for length in (1, 7, 500)]
# torch 2.13 copies a program by a way that torch 2.13 has deprecated.
QUIET = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


def small_model(**options) -> HGRNForCausalLM:
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, **options)
    ).eval()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    return model


def inputs(batch: int, length: int) -> dict:
    """Tokens, and padding on the left, on the right and inside; the last token of a row counts."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(11, (batch, length), generator=generator)
    mask = (torch.rand(batch, length, generator=generator) > 0.3).long()
    mask[:, -1] = 1
    return dict(input_ids=ids, attention_mask=mask)


def exported(model: HGRNForCausalLM, *, grad: bool) -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    shapes = dict(input_ids=free, attention_mask=free, use_cache=None)
    with torch.set_grad_enabled(grad):
        return torch.export.export(
            model, (), dict(inputs(2, 9), use_cache=False), dynamic_shapes=shapes
        )


def assert_free(program: torch.export.ExportedProgram) -> None:
    assert [str(bounds) for bounds in program.range_constraints.values()] == ["VR[1, int_oo]"] * 2


@torch.no_grad()
def compare(program: torch.nn.Module, model: HGRNForCausalLM) -> None:
    for shape in SHAPES:
        given = inputs(*shape)
        assert_close(
            program(**given, use_cache=False).logits,
            model(**given).logits,
            name=f"logits of {shape}",
        )


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "with gradients"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_any_batch_and_length(options, grad):
    model = small_model(**options)
    program = exported(model, grad=grad)
    assert_free(program)
    compare(program.module(), model)


@QUIET
def test_a_saved_program_is_the_model(tmp_path):
    model = small_model()
    torch.export.save(exported(model, grad=False), tmp_path / "model.pt2")
    compare(torch.export.load(tmp_path / "model.pt2").module(), model)


@QUIET
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_decomposed_no_operator_of_ours_is_left(options):
    model = small_model(**options)
    program = exported(model, grad=False).run_decompositions(DECOMPOSITIONS)
    assert_free(program)
    graphs = [
        part.graph
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
    ]
    called = [
        str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"
    ]
    assert not [name for name in called if "hgrn" in name] and called.count("scan") == 2


def test_packed_sequences():
    """Their number (2 or more), their lengths and their sum are free."""
    model = small_model()
    free = {1: torch.export.Dim("total", min=2)}, {0: torch.export.Dim("boundaries", min=3)}
    shapes = dict(input_ids=free[0], cu_seqlens=free[1], use_cache=None)
    given = dict(
        input_ids=torch.randint(11, (1, 9)), cu_seqlens=torch.tensor([0, 4, 4, 9]), use_cache=False
    )
    program = torch.export.export(model, (), given, dynamic_shapes=shapes).module()
    for boundaries in ([0, 1, 2], [0, 1, 500], [0, 3, 3, 7, 40]):
        given = dict(
            input_ids=torch.randint(11, (1, boundaries[-1])),
            cu_seqlens=torch.tensor(boundaries),
            use_cache=False,
        )
        assert_close(program(**given).logits, model(**given).logits)


def test_a_step_from_state_to_state():
    model = small_model()

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, state):
            output = self.model(ids, past_key_values=HGRNCache(state), use_cache=True)
            return output.logits, output.past_key_values.state

    free = {0: torch.export.Dim("batch", min=1)}
    state = tuple((torch.zeros(2, 16),) for _ in range(2))
    example = torch.zeros(2, 1, dtype=torch.int64), state
    program = torch.export.export(
        Step(), example, dynamic_shapes=(free, ((free,), (free,)))
    ).module()
    for batch in (1, 3):
        ids = inputs(batch, 50)["input_ids"]
        state = tuple((torch.zeros(batch, 16),) for _ in range(2))
        logits = []
        for token in ids.T:
            step, state = program(token[:, None], state)
            logits.append(step)
        assert_close(torch.cat(logits, 1), model(ids).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # the exporter of transformers is an experiment, and says so in many ways
@pytest.mark.parametrize(
    "options", [dict(), dict(complex_state=False, norm_type="rms", conv_size=4)]
)
def test_the_exporter_of_transformers(options):
    """Prefill and step by step, from the calls that `generate` makes."""
    exporter = pytest.importorskip("transformers.exporters.exporter_dynamo")
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, **options)
    ).eval()
    ids = torch.randint(11, (2, 7))
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    exported = exporter.DynamoExporter().export_for_generation(
        model, inputs, exporter.DynamoConfig(dynamic=True)
    )
    assert set(exported.components) == {"prefill", "decode"}
