"""E4SRec's network against the language model that it is made of, whole and driven by hand."""

import pytest
import tiny_run
import torch
from tiny import FAMILIES

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.compared.item_reader import AFTER, BEFORE, ItemReader, layers_within

HISTORIES = torch.tensor([[3, 1, 4, 0, 0], [5, 2, 2, 1, 3], [6, 0, 0, 0, 0]])
LENGTHS = torch.tensor([3, 5, 1])


def reader_of(family: str, layers: int) -> tuple[torch.nn.Module, ItemReader]:
    model = FAMILIES[family](vocab_size=len(tiny_run.TOKENIZER))
    table = torch.randn(7, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table[0] = 0
    torch.manual_seed(3)
    return model, ItemReader(model, tiny_run.TOKENIZER, table, layers).double().eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_states_are_those_of_the_whole_model_for_each_history_alone(family, layers):
    """Padding in the middle is not seen, and positions go on behind it."""
    model, reader = reader_of(family, layers)
    words = [model.get_input_embeddings()(torch.tensor(tiny_run.TOKENIZER(text, add_special_tokens=False).input_ids)) for text in (BEFORE, AFTER)]
    found = reader(HISTORIES, LENGTHS)
    assert len(found) == layers
    for row, length in enumerate(LENGTHS.tolist()):
        items = reader.project_in(reader.table.weight[HISTORIES[row, :length]])
        whole = model.base_model(inputs_embeds=torch.cat([words[0], items, words[1]])[None], output_hidden_states=True)
        expected = [states[0, -1] for states in whole.hidden_states[1 : layers + 1]]
        expected[-1] = model.base_model.norm(expected[-1])
        for layer in range(layers):
            torch.testing.assert_close(found[layer][row], expected[layer], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_every_row_read_whole(family):
    """The words before the items are read once, and every row's gradient goes through them."""
    model, reader = reader_of(family, 2)
    reader(HISTORIES, LENGTHS)[-1].pow(2).sum().backward()
    shared = {name: parameter.grad.clone() for name, parameter in reader.named_parameters() if parameter.requires_grad and parameter.grad is not None}
    reader.zero_grad()
    embed = model.get_input_embeddings()
    words = [embed(torch.tensor(tiny_run.TOKENIZER(text, add_special_tokens=False).input_ids)).detach() for text in (BEFORE, AFTER)]
    for row, length in enumerate(LENGTHS.tolist()):
        items = reader.project_in(reader.table.weight[HISTORIES[row, :length]])
        whole = reader.decoder(inputs_embeds=torch.cat([words[0], items, words[1]])[None], use_cache=False)
        whole.last_hidden_state[0, -1].pow(2).sum().backward()
    assert len(shared) > 10
    for name, parameter in reader.named_parameters():
        if name in shared:
            largest = parameter.grad.abs().max().item()  # norms reckon in float32, whatever they are given
            torch.testing.assert_close(shared[name], parameter.grad, rtol=0, atol=1e-5 * largest)


@torch.no_grad()
def test_scores_are_projections_times_the_items_vectors_without_padding():
    _, reader = reader_of("qwen2", 1)
    states = reader(HISTORIES, LENGTHS)[-1]
    expected = [[float(reader.project_out.weight @ state @ vector) for vector in reader.table.weight[1:]] for state in states]
    torch.testing.assert_close(reader.scores(states), torch.tensor(expected, dtype=torch.float64))


def test_only_layers_and_projections_are_trained():
    model, reader = reader_of("llama", 2)
    kept = Sizes.of(model)
    layer = (kept.non_embedding_parameters - kept.hidden) // kept.layers
    trained = sum(parameter.numel() for parameter in reader.parameters() if parameter.requires_grad)
    assert trained == 2 * layer + kept.hidden + 6 * kept.hidden + kept.hidden + 6 * kept.hidden
    assert [name for name, parameter in reader.named_parameters() if not parameter.requires_grad] == ["table.weight"]


QWEN2 = Sizes(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151936, tied=True, qkv_bias=True)


@pytest.mark.parametrize("budget", [0, 0.01, 0.05, 0.0834, 0.25, 0.5, 0.999, 1])
def test_the_budget_allows_as_many_layers_as_fit_and_at_least_one(budget):
    """Against counting down, with Qwen2-0.5B, of which one layer is 14.9 million."""
    layer = (QWEN2.non_embedding_parameters - QWEN2.hidden) // QWEN2.layers
    fitting = [count for count in range(25) if count * layer + QWEN2.hidden <= budget * QWEN2.non_embedding_parameters]
    assert layers_within(QWEN2, budget) == max([1, *fitting])
    assert layer == 14_912_384
