import torch

from cmx_fast.nn import SparseCode


def test_columns_are_kept_in_the_unit_ball():
    layer = SparseCode(12, 5)
    assert torch.allclose(layer.dictionary.norm(dim=0), torch.ones(5))
    with torch.no_grad():
        layer.dictionary.mul_(torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1]))
    directions = layer.dictionary.detach() / layer.dictionary.detach().norm(dim=0)
    layer.project_()
    torch.testing.assert_close(layer.dictionary.norm(dim=0), torch.tensor([0.5, 1.0, 1.0, 1.0, 0.1]))
    torch.testing.assert_close(layer.dictionary / layer.dictionary.norm(dim=0), directions)


def test_a_dictionary_is_learnt():
    hidden = torch.nn.functional.normalize(torch.randn(16, 4), dim=0)
    layer = SparseCode(16, 4, lam=0.02)
    optimiser = torch.optim.Adam(layer.parameters(), 0.02)
    errors = []
    for _ in range(200):
        x = torch.rand(256, 4).square() @ hidden.T
        rebuilt, codes = layer(x)
        loss = (x - rebuilt).square().sum(1).mean() / 2 + layer.lam * codes.sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        layer.project_()
        errors.append(((x - rebuilt).square().sum() / x.square().sum()).item())
    assert errors[-1] < 0.1 * errors[0]
