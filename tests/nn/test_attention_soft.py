"""Soft attention modules against their formulas, written out here; where they start, what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmx_fast.nn.attention import (
    CBAM,
    ChannelAttention,
    ContextEncoding,
    DualAttention,
    Encoding,
    MultiHeadSelfAttention,
    NonLocal,
    ObjectContext,
    PositionAttention,
    ResidualAttention,
    ResidualAttentionNetwork,
    SpatialTransformer,
    SqueezeAttention,
    SqueezeExcite,
    ThinPlateTransformer,
    presence_loss,
)


def randomise(module):
    """Weights that no initial zero hides behind, in float64, evaluation mode."""
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.4 * torch.randn_like(value))
        for name, value in module.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and name.endswith("running_mean"):
                value.normal_()
    return module.double().eval()


def norm(x, layer):
    """A batch norm's formula."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    scaled = (x - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + layer.eps).sqrt()
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


def mix(x, layer):
    """A 1 x 1 convolution's formula."""
    out = torch.einsum("oc,bc...->bo...", layer.weight.flatten(1), x)
    return out if layer.bias is None else out + layer.bias.view(1, -1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("size", [(7,), (5, 4), (2, 3, 4)])
def test_squeeze_excite_is_the_formula(size):
    module = randomise(SqueezeExcite(32, bias=True))
    x = torch.randn(2, 32, *size).double()
    pooled = x.flatten(2).sum(2) / x[0, 0].numel()
    hidden = (pooled @ module.fc[0].weight.T + module.fc[0].bias).clamp_min(0)
    gate = 1 / (1 + torch.exp(-(hidden @ module.fc[2].weight.T + module.fc[2].bias)))
    torch.testing.assert_close(module(x), x * gate.view(2, 32, *[1] * len(size)))


def test_cbam_is_the_formula():
    module = randomise(CBAM(32))
    x = torch.randn(2, 32, 6, 5).double()
    lower, upper = module.ChannelGate.mlp[1], module.ChannelGate.mlp[3]

    def mlp(v):
        return (v @ lower.weight.T + lower.bias).clamp_min(0) @ upper.weight.T + upper.bias

    scaled = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
    pooled = torch.stack([scaled.max(1).values, scaled.mean(1)], 1)
    windows = F.unfold(pooled, 7, padding=3).view(2, 2 * 49, 6, 5)
    spatial = torch.einsum("p,bphw->bhw", module.SpatialGate.spatial.conv.weight.flatten(), windows)[:, None]
    gate = torch.sigmoid(norm(spatial, module.SpatialGate.spatial.bn))
    torch.testing.assert_close(module(x), scaled * gate)
    assert CBAM(32, spatial=False)(torch.randn(1, 32, 3)).shape == (1, 32, 3)


def test_gates_of_zero_weights_are_a_half():
    x = torch.randn(2, 32, 4, 4)
    for module, share in ((SqueezeExcite(32), 0.5), (CBAM(32), 0.25)):
        for value in module.parameters():
            nn.init.zeros_(value)
        torch.testing.assert_close(module.eval()(x), share * x)


@pytest.mark.parametrize("module", [SqueezeExcite(32), CBAM(32), CBAM(32, spatial=False)])
def test_with_a_residual_they_are_a_blocks_end(module):
    module = randomise(module)
    x, residual = torch.randn(2, 2, 32, 6, 5).double()
    torch.testing.assert_close(module(x, residual), F.relu(module(x) + residual))


def test_channel_attention_trains_under_autocast():
    module = ChannelAttention()
    nn.init.ones_(module.gamma)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    module(x).square().sum().backward()
    exact, x.grad = x.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        module(x).square().sum().backward()
    assert (x.grad - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("mode", ["embedded", "gaussian", "dot", "concatenate"])
@pytest.mark.parametrize(("dimensions", "size"), [(1, (9,)), (2, (6, 5)), (3, (3, 4, 6))])
@pytest.mark.parametrize("options", [{}, {"subsample": False, "scale": True, "norm": False}])
def test_non_local_is_the_formula(mode, dimensions, size, options):
    module = randomise(NonLocal(6, dimensions, mode=mode, **options))
    x = 0.5 * torch.randn(2, 6, *size).double()
    subsample = options.get("subsample", True)
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: lambda m, k: F.max_pool3d(m, (1, 2, 2))}[dimensions]

    def keys(layer):
        if not subsample:
            return mix(x, layer).flatten(2)
        return pool(mix(x, layer[0]), 2).flatten(2)

    g = keys(module.g)
    if mode == "gaussian":
        theta, phi = x.flatten(2), (pool(x, 2) if subsample else x).flatten(2)
    else:
        theta, phi = mix(x, module.theta).flatten(2), keys(module.phi)
    if mode == "concatenate":
        w = module.concat_project[0].weight.flatten()
        left, right = torch.einsum("c,bcn->bn", w[:3], theta), torch.einsum("c,bcm->bm", w[3:], phi)
        weights = (left[:, :, None] + right[:, None, :]).clamp_min(0) / phi.shape[2]
    else:
        products = torch.einsum("bcn,bcm->bnm", theta, phi)
        if mode == "dot":
            weights = products / phi.shape[2]
        else:
            products = products * (theta.shape[1] ** -0.5 if options.get("scale") else 1)
            weights = products.exp() / products.exp().sum(2, keepdim=True)
    y = torch.einsum("bnm,bcm->bcn", weights, g).view(2, 3, *size)
    out = mix(y, module.W if options else module.W[0])
    torch.testing.assert_close(module(x), x + (out if options else norm(out, module.W[1])))


def test_danet_is_the_formula():
    positions, channels = randomise(PositionAttention(16)), randomise(ChannelAttention())
    x = 0.5 * torch.randn(2, 16, 4, 5).double()
    q, k, v = (mix(x, c).flatten(2) for c in (positions.query_conv, positions.key_conv, positions.value_conv))
    weights = torch.softmax(q.transpose(1, 2) @ k, 2)
    expected = positions.gamma * (v @ weights.transpose(1, 2)).view_as(x) + x
    torch.testing.assert_close(positions(x), expected)
    energy = x.flatten(2) @ x.flatten(2).transpose(1, 2)
    weights = torch.softmax(energy.amax(2, keepdim=True) - energy, 2)
    torch.testing.assert_close(channels(x), channels.gamma * (weights @ x.flatten(2)).view_as(x) + x)


def test_dual_attention_supervises_three_outputs():
    module = DualAttention(64, 5).eval()
    x = torch.randn(2, 64, 6, 6)
    total, positions, channels = module(x)
    assert total.shape == positions.shape == channels.shape == (2, 5, 6, 6)
    branches = module.conv51(module.sa(module.conv5a(x))), module.conv52(module.sc(module.conv5c(x)))
    torch.testing.assert_close(total, module.conv8(sum(branches)))


def test_what_starts_as_the_identity():
    x = torch.randn(2, 16, 6, 6)
    localise = nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 4))
    for module in (
        NonLocal(16), NonLocal(16, mode="dot", norm=False), PositionAttention(16), ChannelAttention(),
        SpatialTransformer(localise, 4), SpatialTransformer(localise, 4, align_corners=False),
        ThinPlateTransformer(localise, 4), ThinPlateTransformer(localise, 4, points=2, align_corners=False),
        MultiHeadSelfAttention(16, 4), MultiHeadSelfAttention(16, 4, extent=6),
    ):  # fmt: skip
        torch.testing.assert_close(module(x), x, rtol=1e-4, atol=1e-5)


def test_spatial_transformer_reads_where_it_points():
    picture = torch.arange(9.0).view(1, 1, 3, 3)
    shift = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), 2, size=(2, 2))
    assert shift(picture).flatten().tolist() == [0, 2, 6, 8]  # the corners
    with torch.no_grad():
        shift.affine.bias.copy_(torch.tensor([0.5, 0, 0.5, 0, 0.5, 0.5]))
    assert shift(picture).flatten().tolist() == [4, 5, 7, 8]  # the lower right quarter
    shift(picture).sum().backward()
    assert shift.affine.bias.grad.abs().sum() > 0


def test_thin_plates_bend_as_little_as_they_can():
    """The spline of Bookstein's section 3, whose system is solved here for each picture anew."""
    module = ThinPlateTransformer(nn.Flatten(), 2, points=3).double()
    bent = module.regular.double() + 0.2 * torch.randn(9, 2).double()
    with torch.no_grad():
        module.control.bias.copy_(bent.flatten())
    x = torch.zeros(1, 2, 1, 1).double()
    assert module.points(x).equal(bent[None])
    grid = module.grid(x, 5, 7)
    torch.testing.assert_close(grid[0, ::2, ::3].reshape(9, 2), bent, rtol=1e-5, atol=1e-5)
    assert module.regular.view(3, 3, 2)[0, 2].tolist() == [1, -1]

    def bending(p, q):
        squares = (p - q).square().sum()
        return squares * squares.clamp_min(1e-30).log()

    knots = module.regular.double()
    matrix = torch.tensor([[bending(p, q) for q in knots] for p in knots]).double()
    affine = torch.cat([torch.ones(9, 1).double(), knots], 1)
    full = torch.cat([torch.cat([matrix, affine], 1), torch.cat([affine.T, torch.zeros(3, 3).double()], 1)])
    weights = torch.linalg.solve(full, torch.cat([bent, torch.zeros(3, 2).double()]))
    place = torch.tensor([1 / 3, 0.5]).double()  # column 4 of 7, row 3 of 5
    terms = torch.cat([torch.stack([bending(place, q) for q in knots]), torch.tensor([1.0]).double(), place])
    torch.testing.assert_close(grid[0, 3, 4], terms @ weights, rtol=1e-5, atol=1e-5)


def test_an_affine_move_of_the_points_is_an_affine_window():
    picture = torch.randn(2, 3, 7, 6)
    affine, plate = SpatialTransformer(nn.Flatten(), 126), ThinPlateTransformer(nn.Flatten(), 126)
    theta = torch.tensor([[0.6, -0.2, 0.1], [0.3, 0.5, -0.2]])
    with torch.no_grad():
        affine.affine.bias.copy_(theta.flatten())
        plate.control.bias.copy_((plate.regular @ theta[:, :2].T + theta[:, 2]).flatten())
    torch.testing.assert_close(plate(picture), affine(picture), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("extent", [None, 5])
def test_multi_head_self_attention_is_the_formula(extent):
    module = randomise(MultiHeadSelfAttention(8, 2, extent))
    x = torch.randn(2, 8, 3, 5).double()
    rows = x.flatten(2).transpose(1, 2)
    deviation = rows.var(2, unbiased=False, keepdim=True) + module.norm.eps
    normal = (rows - rows.mean(2, keepdim=True)) / deviation.sqrt() * module.norm.weight + module.norm.bias
    query, key, value = (normal @ module.qkv.weight.T + module.qkv.bias).split(8, 2)
    heads = []
    for depth in (slice(0, 4), slice(4, 8)):
        scores = query[..., depth] @ key[..., depth].transpose(1, 2)
        for i in range(15) if extent else ():
            for j in range(15):
                down, across = j // 5 - i // 5, j % 5 - i % 5
                position = module.rows[down + 4] + module.columns[across + 4]
                scores[:, i, j] += query[:, i, depth] @ position
        heads.append(torch.softmax(scores / 2.0, 2) @ value[..., depth])
    out = torch.cat(heads, 2) @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x), x + out.transpose(1, 2).view_as(x))


def test_object_context_is_the_formula():
    module = randomise(ObjectContext(8, 6))
    x = 0.5 * torch.randn(2, 8, 4, 5).double()
    stage = module.stages[0]

    def activated(y, layer):
        y = norm(y, layer)
        return torch.where(y > 0, y, 0.01 * y)

    keys = activated(mix(x, stage.f_key[0]), stage.f_key[1]).flatten(2)
    values = mix(x, stage.f_value).flatten(2)
    weights = torch.softmax(keys.transpose(1, 2) @ keys / 2.0, 2)  # sqrt of the 4 key channels
    context = mix((values @ weights.transpose(1, 2)).view(2, 8, 4, 5), stage.W)
    joined = mix(torch.cat([context, x], 1), module.conv_bn_dropout[0])
    torch.testing.assert_close(module(x), activated(joined, module.conv_bn_dropout[1]))


def test_object_context_stays_within_its_cells():
    module = randomise(ObjectContext(8, 6, "pyramid", grids=(1, 2)))
    x = torch.randn(1, 8, 5, 7).double()
    changed = x.clone()
    changed[:, :, 0, 0] += 1
    stage = module.stages[1]
    differs = (stage(x) - stage(changed)).abs().sum(1)[0] > 1e-9
    assert differs[:2, :3].all() and not differs[2:].any() and not differs[:, 3:].any()
    assert module(x).shape == (1, 6, 5, 7)
    with pytest.raises(ValueError, match="grid = 2 has more cells"):
        module(x[:, :, :1])


def test_object_contexts_beside_dilations():
    module = ObjectContext(8, 6, "asp").eval()
    assert module(torch.randn(2, 8, 9, 8)).shape == (2, 6, 9, 8)
    assert module.conv4[0].dilation == (24, 24) and module.context[2].stages[0].pool == 2
    assert ObjectContext(8, 6).stages[0].W.weight.eq(0).all()


def test_encoding_is_the_residual_form():
    layer = Encoding(6, 5).double()
    x = torch.randn(2, 6, 4, 3).double()
    residual = x.flatten(2).transpose(1, 2)[:, :, None] - layer.codewords  # (B, N, K, D)
    weights = torch.softmax(layer.scale * residual.square().sum(3), 2)
    torch.testing.assert_close(layer(x), (weights[..., None] * residual).sum(1))
    assert (layer.scale <= 0).all() and layer.codewords.abs().max() <= 30**-0.5
    assert Encoding(6, 5)(x.bfloat16()).dtype == torch.bfloat16


def test_encodings_of_far_features_keep_their_digits():
    layer = Encoding(64, 32)
    x = torch.randn(1, 64, 20, 20) + 3
    truth = Encoding(64, 32).double()
    truth.load_state_dict(layer.state_dict())
    error = (layer(x).double() - truth.double()(x.double())).norm() / truth(x.double()).norm()
    assert error < 1e-4


def test_context_encoding_and_its_loss():
    module = randomise(ContextEncoding(8, 3, codewords=4))
    x = torch.randn(2, 8, 5, 5).double()
    y, logits = module(x)
    context = module.encoding(x)
    gamma = torch.sigmoid(context @ module.fc[0].weight.T + module.fc[0].bias)[:, :, None, None]
    torch.testing.assert_close(y, (x + x * gamma).clamp_min(0))
    labels = torch.tensor([[[0, 2], [255, -1]], [[1, 1], [1, 1]]])
    there = torch.tensor([[1.0, 0, 1], [0, 1, 0]]).double()
    torch.testing.assert_close(
        presence_loss(logits, labels), F.binary_cross_entropy_with_logits(logits, there)
    )
    assert ContextEncoding(8, 3, se_loss=False)(torch.randn(2, 8, 3, 3))[1] is None


def test_squeeze_attention_is_the_formula():
    module = randomise(SqueezeAttention(4, 6))
    x = torch.randn(2, 4, 6, 8).double()

    def branch(layers, y):
        for conv, bn in ((layers[0], layers[1]), (layers[3], layers[4])):
            y = norm(F.conv2d(y, conv.weight, padding=1), bn).clamp_min(0)
        return y

    attended = F.interpolate(
        branch(module.attention, F.avg_pool2d(x, 2)), (6, 8), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(module(x), attended * branch(module.main, x) + attended)
    assert module(x[:, :, :5, :7]).shape == (2, 6, 5, 7)


def test_residual_attention_is_one_plus_mask_times_trunk():
    module = ResidualAttention(16, depth=2).eval()
    x = torch.randn(2, 16, 12, 9)
    first = module.first(x)
    mask = module.mask(first)
    assert mask.shape == x.shape and mask.min() > 0 and mask.max() < 1
    torch.testing.assert_close(module(x), module.last((1 + mask) * module.trunk(first)))


def test_residual_attention_networks_have_the_papers_depths():
    with torch.device("meta"):
        networks = {layers: ResidualAttentionNetwork(1000, layers) for layers in (56, 92)}
        assert networks[56](torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    sizes = {n: sum(p.numel() for p in net.parameters()) / 1e6 for n, net in networks.items()}
    assert sizes[56] == pytest.approx(31.9, rel=0.03) and sizes[92] == pytest.approx(51.3, rel=0.03)
    assert ResidualAttentionNetwork(3, (1, 0, 0), width=16)(torch.randn(2, 3, 64, 64)).shape == (2, 3)


MODULES = {
    "se": lambda: SqueezeExcite(8, 4),
    "cbam": lambda: CBAM(8, 4),
    **{
        f"non-local {mode}": lambda mode=mode: NonLocal(8, inner=2, mode=mode)
        for mode in ("embedded", "gaussian", "dot", "concatenate")
    },
    "positions": lambda: PositionAttention(8),
    "channels": ChannelAttention,
    "context": lambda: ObjectContext(8, 4, dropout=0.0),
    "pyramid": lambda: ObjectContext(8, 4, "pyramid", grids=(1, 2), dropout=0.0),
    "encoding": lambda: Encoding(8, 3),
    "squeeze": lambda: SqueezeAttention(8, 2),
    "residual": lambda: ResidualAttention(8, 1),
    "transformer": lambda: SpatialTransformer(nn.Flatten(), 8 * 16),
    "plate": lambda: ThinPlateTransformer(nn.Flatten(), 8 * 16, points=2),
    "heads": lambda: MultiHeadSelfAttention(8, 2, extent=4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_gradcheck(name):
    module = randomise(MODULES[name]())
    x = torch.randn(1, 8, 4, 4).double().requires_grad_()
    # Random projections of the Jacobian: column by column the larger modules take minutes.
    inputs = x, *module.parameters()
    assert torch.autograd.gradcheck(lambda x, *_: module(x), inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", MODULES)
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()  # another test's sizes would make these dynamic
    module = MODULES[name]().eval()
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: SqueezeExcite(32), {"fc.0.weight", "fc.2.weight"}),
        (
            lambda: CBAM(32),
            {
                "ChannelGate.mlp.1.weight", "ChannelGate.mlp.3.bias", "SpatialGate.spatial.conv.weight",
                "SpatialGate.spatial.bn.running_var",
            },
        ),
        (lambda: NonLocal(8), {"g.0.weight", "theta.weight", "phi.0.bias", "W.0.weight", "W.1.running_mean"}),
        (lambda: NonLocal(8, mode="concatenate"), {"concat_project.0.weight"}),
        (
            lambda: DualAttention(64, 3),
            {"conv5a.0.weight", "sa.query_conv.weight", "sa.gamma", "sc.gamma", "conv8.1.bias"},
        ),
        (
            lambda: ObjectContext(8, 6),
            {"stages.0.f_key.0.weight", "stages.0.f_query.1.running_var", "stages.0.W.bias"},
        ),
        (lambda: ObjectContext(8, 6, "pyramid"), {"stages.3.f_value.weight", "up_dr.0.weight"}),
        (
            lambda: ObjectContext(8, 6, "asp"),
            {"context.2.stages.0.W.weight", "context.2.conv_bn_dropout.0.weight", "conv5.1.bias"},
        ),
        (lambda: ContextEncoding(8, 3), {"encoding.3.codewords", "encoding.3.scale", "fc.0.weight", "selayer.bias"}),
    ],
)  # fmt: skip
def test_names_are_those_of_public_code(make, names):
    assert names <= make().state_dict().keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SqueezeExcite(8), r"reduction must be in \[1, channels = 8\], got 16"),
        (lambda: SqueezeExcite(16)(torch.ones(2, 8, 3)), r"x must have shape \(B, 16, \*\), got \(2, 8, 3\)"),
        (lambda: CBAM(16, kernel=4), "kernel must be odd"),
        (lambda: NonLocal(8, mode="cosine"), "mode must be one of embedded, gaussian, dot, concatenate"),
        (lambda: NonLocal(8, 4), "dimensions must be 1, 2 or 3"),
        (lambda: NonLocal(8)(torch.ones(2, 8, 3)), r"x must have shape \(B, 8, H, W\)"),
        (lambda: PositionAttention(4), "channels must be at least 8"),
        (lambda: ObjectContext(8, 4, "star"), "kind must be one of base, pyramid, asp"),
        (lambda: Encoding(8)(torch.ones(2, 4, 3)), r"x must have shape \(B, 8, \*\)"),
        (lambda: ResidualAttention(6), "channels must be a multiple of 4"),
        (lambda: ResidualAttentionNetwork(layers=50), "layers must be 56 or 92"),
        (lambda: SpatialTransformer(nn.Flatten(), 3)(torch.ones(2, 3)), r"x must have shape \(B, C, H, W\)"),
        (lambda: ThinPlateTransformer(nn.Flatten(), 3, points=1), "points must be at least 2, got 1"),
        (lambda: MultiHeadSelfAttention(12), "heads must be a divisor of channels = 12, got 8"),
        (lambda: MultiHeadSelfAttention(8, extent=0), "extent must be at least 1, got 0"),
        (lambda: MultiHeadSelfAttention(8)(torch.ones(2, 4, 3, 3)), r"x must have shape \(B, 8, H, W\)"),
        (
            lambda: MultiHeadSelfAttention(8, extent=4)(torch.ones(2, 8, 3, 5)),
            "x is 3 x 5, longer than extent = 4",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "attention", [CBAM, SqueezeExcite, NonLocal, PositionAttention, MultiHeadSelfAttention]
)
def test_weights_lie_where_and_as_the_layers_of_pytorch_do(attention):
    made = attention(32, device="meta", dtype=torch.bfloat16)
    weights = [*made.parameters(), *(b for b in made.buffers() if b.is_floating_point())]
    assert weights and all(w.is_meta and w.dtype is torch.bfloat16 for w in weights)
