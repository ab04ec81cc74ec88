"""The base of the classes that use what was trained: opened from a run, saved and loaded elsewhere, exported.

model.safetensors            the weights
encoder.safetensors          those of the pretrained visual encoder that the model was trained on, if there is one
audio_encoder.safetensors    those of the pretrained audio encoder
config.json                  the class, its settings, the encoders' names and fingerprints, and where the model is from
README.md                    the model card
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from typing_extensions import Self

import cmx_fast
from cmx_fast._extras import require
from cmx_fast.networks.audio_encoders import AudioEncoder, reopen_audio_encoder
from cmx_fast.networks.pretrained_files import load_weights, read_checkpoint
from cmx_fast.networks.visual_encoders import VisualEncoder, reopen_visual_encoder
from cmx_fast.networks.weights import read_json
from cmx_fast.train.fabric import chosen_device, default_device
from cmx_fast.train.run_folder import FinishedRun

try:
    from huggingface_hub import ModelHubMixin
except ModuleNotFoundError:

    class ModelHubMixin:  # type: ignore[no-redef]
        """In the place of huggingface_hub's, where it is not installed: every method names the extra that brings it."""

        def __init_subclass__(cls, **options: Any):
            super().__init_subclass__()

        @classmethod
        def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
            require("huggingface_hub", "hub")

        save_pretrained = push_to_hub = from_pretrained


MODEL_FILE = "model.safetensors"
ENCODER_FILE, AUDIO_ENCODER_FILE = "encoder.safetensors", "audio_encoder.safetensors"
CARD = Path(__file__).with_name("model_card.md.j2")


class Encoders(NamedTuple):
    """The pretrained encoders that a model was trained on."""

    visual: VisualEncoder | None = None
    audio: AudioEncoder | None = None


class TrainedModel(nn.Module, ModelHubMixin, library_name="cmx_fast"):
    """A trained model for use: fixed, and in evaluation. Moves with ``.to(device)``.

    ``save_pretrained(folder)``, ``push_to_hub(name)`` and ``from_pretrained(folder or name)`` are huggingface_hub's;
    only safetensors and JSON are read. A folder that is here needs no network.

    Attributes:
        encoder, audio_encoder: the pretrained encoders that the model was trained on, or None.
        origin: where the model is from: command, preset, name of the data's folder, model, seed, split and figures;
            empty of a model that no run has trained.
    """

    #: For the model card.
    SYSTEM: ClassVar[str]
    PAPER: ClassVar[str]
    LIMITS: ClassVar[str]
    TASK: ClassVar[str]

    encoder: VisualEncoder | None
    audio_encoder: AudioEncoder | None
    origin: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.audio_encoder, self.origin = None, None, {}

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        *,
        model: str | None = None,
        seed: int | None = None,
        encoder_file: Path | str | None = None,
    ) -> Self:
        """Open a model of a finished run, on the GPU if there is one.

        ``encoder_file``: the weights of its pretrained visual encoder, if not where the run had them.
        """
        raise NotImplementedError

    @classmethod
    def rebuild(cls, settings: dict[str, Any], encoders: Encoders, source: Path) -> Self:
        """A model of these settings with fresh weights; ``source``: the file of the settings, for messages."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What :meth:`rebuild` needs, as JSON has it."""
        raise NotImplementedError

    def trained(self) -> nn.Module:
        """The module whose weights are saved; those of encoders that are part of it are saved by themselves."""
        raise NotImplementedError

    def towers(self) -> dict[str, tuple[Tower, Tensor]]:
        """The encoders that :meth:`export` takes, by the kind of their input, each with an input of two rows."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.parameters()).device

    def export(self, kind: str) -> ExportedProgram:
        """One encoder as a program of ``torch.export``, for batches of any size.

        Args:
            kind: "image", "audio" or "video", as the class documents.

        Raises:
            ValueError: the model has no such encoder.
        """
        towers = self.towers()
        if kind not in towers:
            raise ValueError(f"kind must be one of {', '.join(towers)}; got {kind!r}")
        tower, example = towers[kind]
        with torch.no_grad():
            return torch.export.export(tower, (example.to(self.device),), dynamic_shapes=({0: Dim.DYNAMIC},))

    def from_the(self, run: FinishedRun, model: str, seed: int) -> Self:
        """The model itself, once its :attr:`origin` says that it is from this run."""
        self.origin = origin(run, model, seed)
        return self

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:
        """Write weights, config and model card into a folder; a README.md that is there stays.

        Args:
            options: huggingface_hub's: ``push_to_hub=True`` with ``repo_id``, ...

        Raises:
            ValueError: an encoder can't be saved so that it opens elsewhere; says which.
            MissingExtraError: huggingface_hub or safetensors is not installed.
        """
        require("safetensors", "hub")
        visual, audio = self.encoder, self.audio_encoder
        config = {
            "class": type(self).__name__,
            "cmx_fast": cmx_fast.__version__,
            "settings": self.settings(),
            "pretrained": visual and {"form": visual.form, "fingerprint": visual.fingerprint()},
            "pretrained_audio": audio and {"family": audio.name, "fingerprint": audio.fingerprint()},
            "run": self.origin,
        }
        return super().save_pretrained(save_directory, **{**options, "config": config})

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: value.contiguous().clone() for name, value in self._own_weights().items()}
        _write(save_directory / MODEL_FILE, weights)
        if self.encoder is not None:
            file = save_directory / ENCODER_FILE
            _write(file, self.encoder.file_weights())
            try:
                reopen_visual_encoder(self.encoder.form, self.encoder.fingerprint(), file)
            except ValueError as error:
                raise ValueError(f"the encoder {self.encoder.name} can't be saved: {error}") from error
        if self.audio_encoder is not None:
            _write(save_directory / AUDIO_ENCODER_FILE, *self.audio_encoder.file_weights())

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        if options:
            raise ValueError(f"from_pretrained takes no {', '.join(options)}")
        if config is None or "class" not in config:
            raise ValueError(f"{model_id} holds no model: it has no config.json that save_pretrained wrote")
        if config["class"] != cls.__name__:
            raise ValueError(f"{model_id} holds a {config['class']}, not a {cls.__name__}")

        def file(name: str) -> Path:
            if os.path.isdir(model_id):
                return Path(model_id, name)
            download = require("huggingface_hub", "hub").hf_hub_download
            return Path(
                download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        visual, audio = config["pretrained"], config.get("pretrained_audio")
        encoders = Encoders(
            visual and reopen_visual_encoder(visual["form"], visual["fingerprint"], file(ENCODER_FILE)),
            audio and reopen_audio_encoder(audio["family"], audio["fingerprint"], file(AUDIO_ENCODER_FILE)),
        )
        opened = cls.rebuild(config["settings"], encoders, Path(model_id, "config.json"))
        stored, own = file(MODEL_FILE), opened._own_weights()
        of_encoders = {n: value for n, value in opened.trained().state_dict().items() if n not in own}
        state = {**of_encoders, **read_checkpoint(stored)}
        load_weights(opened.trained(), state, stored, f"the {cls.__name__}")
        opened.origin = config["run"]
        return opened.to(default_device())

    def _own_weights(self) -> dict[str, Tensor]:
        """The state dict without the encoders' weights."""
        encoders = [encoder for encoder in (self.encoder, self.audio_encoder) if encoder is not None]
        shared = {value.data_ptr() for encoder in encoders for value in encoder.state_dict().values()}
        return {
            n: value for n, value in self.trained().state_dict().items() if value.data_ptr() not in shared
        }

    def generate_model_card(self, **options: Any) -> Any:
        """The model card: system, paper, data, preset, figures, limits, library."""
        hub = require("huggingface_hub", "hub")
        return hub.ModelCard.from_template(
            hub.ModelCardData(library_name="cmx_fast", pipeline_tag=self.TASK, tags=[self.SYSTEM.lower()]),
            template_path=str(CARD),
            title=f"{self.SYSTEM} ({self.origin['data']})" if self.origin.get("data") else self.SYSTEM,
            description=(type(self).__doc__ or "").partition("\n")[0],
            system=self.SYSTEM,
            paper=self.PAPER,
            limits=self.LIMITS,
            run=dict.fromkeys(ORIGIN) | self.origin,
            trained=self._trained_by(),
            encoders=", ".join(e.name for e in (self.encoder, self.audio_encoder) if e is not None),
            version=cmx_fast.__version__,
            module=type(self).__module__,
            name=type(self).__name__,
            **options,
        )

    def _trained_by(self) -> str:
        """The command, preset, model and seed in words."""
        said = {name: self.origin.get(name) for name in ("preset", "model", "seed")}
        words = [f"{name} {value}" for name, value in said.items() if value is not None]
        return ", ".join([self.origin.get("command", "not known"), *words])


def _write(file: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file as any other file is written; safetensors' own way gives it to its owner alone."""
    file.write_bytes(require("safetensors.torch", "hub").save(weights, metadata))


class Tower(nn.Module):
    """One encoder of a model as a module of its own, for ``torch.export``.

    Args:
        encode: a method of the model, from a batch to a tensor.
        parts: the modules whose weights it uses.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], parts: Mapping[str, nn.Module | None]):
        super().__init__()
        self.encode = encode
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.encode(inputs)


#: What :func:`origin` gives.
ORIGIN = ("command", "preset", "data", "model", "seed", "split", "figures")


def origin(run: FinishedRun, model: str, seed: int) -> dict[str, Any]:
    """Where a model is from, in words that hold on any machine: of the data, the folder's name alone."""
    config, figures, split = run.config, {}, None
    if (run.path / "results.json").is_file():
        results = read_json(run.path / "results.json")
        protocol, by_seed = results.get("protocol"), results.get("seeds", {}).get(model, [])
        split = results.get("split", protocol.get("split") if isinstance(protocol, dict) else None)
        row = config["seeds"].index(seed) if "seeds" in config else 0
        figures = dict(numbers(by_seed[row] if row < len(by_seed) else results.get("retrieval", {})))
    data = config.get("data")
    values = (
        f"cmx {config['command']}",
        config.get("preset"),
        data and Path(data).resolve().name,
        model,
        seed,
        split,
        figures,
    )
    return dict(zip(ORIGIN, values, strict=True))


def numbers(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested tables, each with the names that lead to it."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{before}{name} ")
        elif isinstance(value, int | float):
            yield f"{before}{name}", value


def open_trained(
    folder: Path | str,
    classes: Mapping[str, str],
    verb: str,
    *,
    model: str | None = None,
    seed: int | None = None,
    encoder_file: Path | None = None,
    device: str | None = None,
) -> Any:
    """Open a finished run by the class that its system has for the purpose.

    Args:
        folder: of the run, or one that the class's ``save_pretrained`` wrote.
        classes: of each command that trains a system, "module:Class".
        verb: what the classes do, for the message.
        model: the trained model's name; default as of the class.
        seed: one of the run's; default its first.
        encoder_file: weights of the run's pretrained encoder, if not where the run had them.
        device: as of :func:`cmx_fast.train.fabric.chosen_device`.

    Raises:
        ValueError: no such device; no run, one that is not finished, or one of a system without such a class; or it has
            no such model or seed.
    """
    folder, place = Path(folder), chosen_device(device)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json in it")
    config = read_json(file)
    saved = {target.partition(":")[2]: target for target in classes.values()}
    if config.get("class") in saved:
        if model is not None or seed is not None or encoder_file is not None:
            raise ValueError(
                f"{folder} holds one model and its encoder: leave --model, --seed and --encoder-file out"
            )
        return _imported(saved[config["class"]]).from_pretrained(folder).to(place)
    command = str(config.get("command", config.get("class")))
    if command not in classes:
        raise ValueError(
            f"{folder} is a run of cmx {command}, which does not {verb}; those of "
            f"{', '.join(f'cmx {name}' for name in classes)} do"
        )
    return (
        _imported(classes[command])
        .from_run(folder, model=model, seed=seed, encoder_file=encoder_file)
        .to(place)
    )


def _imported(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
