import pytest
import torch
import torch.nn.functional as F
from operator_contract import assert_as_exact_as_eager, run, vector_error

from cmx_fast.ops import cluster_cross_entropy, kmeans_assign

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.cmx_fast, "cluster_cross_entropy_fwd"),
    reason="the C++ extension is not built (CMX_NO_EXTENSION)",
)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("shape", "k"), [((131, 17), 5), ((2, 33, 7, 9), 27), ((3, 8, 4, 5), 1300), ((5, 6), 1)]
)
def test_every_combination_matches_the_reference_in_float64(shape, k, given, weighted, normalize):
    x, centroids = torch.randn(shape).double(), torch.randn(k, shape[1]).double()
    positions = shape[:1] + shape[2:]
    options = {
        "target": torch.randint(k, positions) if given else None,
        "weight": torch.rand(k).double() if weighted else None,
        "normalize": normalize,
    }
    labels = cluster_cross_entropy(x, centroids, **options)[1]
    assert labels.equal(options["target"] if given else kmeans_assign(x, centroids, normalize=normalize)[0])

    def loss(x, impl):
        return cluster_cross_entropy(x, centroids, **options, impl=impl)[0]

    for actual, truth in zip(run(lambda x: loss(x, "cpp"), x), run(lambda x: loss(x, "reference"), x)):
        assert vector_error(actual, truth) < 1e-12


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d", "k"), [(63, 17, 2), (1000, 64, 27), (257, 300, 65)])
def test_error_is_at_most_eagers(n, d, k, dtype, normalize):
    centroids, target = F.normalize(torch.randn(k, d), dim=1), torch.randint(k, (n,))

    def loss(x, impl):
        options = {"target": target, "normalize": normalize, "impl": impl}
        return cluster_cross_entropy(x, centroids.to(x.dtype), **options)[0]

    assert_as_exact_as_eager(loss, [torch.randn(n, d)], dtype)


def test_gradient_keeps_its_digits_where_the_loss_vanishes():
    target = torch.randint(9, (400,))
    x = 14 * F.one_hot(target, 9).float() + torch.randn(400, 9)
    assert_as_exact_as_eager(
        lambda x, impl: cluster_cross_entropy(x, torch.eye(9).to(x), target=target, impl=impl)[0],
        [x],
        torch.float32,
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_give_what_their_vectors_give_and_gradients_lie_as_they_do(layout):
    maps, centroids = torch.randn(2, 20, 9, 13), torch.randn(6, 20)
    x = maps.clone(memory_format=layout).requires_grad_()
    loss, labels = cluster_cross_entropy(x, centroids, normalize=True)
    loss.backward()
    rows = maps.movedim(1, -1).reshape(-1, 20).requires_grad_()
    row_loss, row_labels = cluster_cross_entropy(rows, centroids, normalize=True)
    row_loss.backward()
    torch.testing.assert_close(loss, row_loss)
    assert labels.flatten().equal(row_labels)
    torch.testing.assert_close(x.grad.movedim(1, -1).reshape(-1, 20), rows.grad)
    assert x.grad.stride() == x.stride()


def test_registered_as_pytorch_wants_it():
    x = torch.randn(2, 15, 6, requires_grad=True)
    centroids, target = torch.randn(4, 6), torch.randint(4, (2, 15))
    for labels in (target, None):
        torch.library.opcheck(torch.ops.cmx_fast.cluster_cross_entropy_fwd, (x, centroids, labels, True))
    maps = torch.randn(2, 6, 3, 5, requires_grad=True)
    compiled = torch.compile(
        lambda m: cluster_cross_entropy(m * 2, centroids, normalize=True)[0], fullgraph=True
    )
    gradient = torch.autograd.grad(compiled(maps), maps)[0]
    eager = torch.autograd.grad(cluster_cross_entropy(maps * 2, centroids, normalize=True)[0], maps)[0]
    torch.testing.assert_close(gradient, eager)
    first = torch.autograd.grad(cluster_cross_entropy(maps, centroids)[0], maps, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    x, centroids = torch.randn(2, 5, 2, 3).double().requires_grad_(), torch.randn(4, 5).double()
    assert torch.autograd.gradcheck(lambda x: cluster_cross_entropy(x, centroids, normalize=normalize)[0], x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(5, 4)}, ValueError, "x has 4 features and centroids have 3"),
        ({"target": torch.ones(4).long()}, ValueError, r"target must have shape \(5,\), got \(4,\)"),
        ({"target": torch.ones(5)}, TypeError, "target must be an int64 tensor"),
        ({"target": torch.full((5,), 2)}, ValueError, "target must lie in 0 to 1, found 2 to 2"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(2,\), got \(3,\)"),
        ({"weight": -torch.ones(2)}, ValueError, "weight must not be negative"),
        ({"impl": "cuda"}, ValueError, "no CUDA C"),
    ],
)
def test_refuses(arguments, error, message):
    arguments = {"x": torch.ones(5, 3), "centroids": torch.ones(2, 3)} | arguments
    with pytest.raises(error, match=message):
        cluster_cross_entropy(**arguments)
