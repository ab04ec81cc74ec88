"""Published networks that measure generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmx_fast.evaluate.generated_pictures import BARE_NAME, ClipJudge, check_prompt


@dataclass(frozen=True)
class PublishedNetworks:
    """Files of published networks that measure generated pictures.

    Attributes:
        inception: weights for FID and Inception Score; None: a classifier of the training frames gives both.
        clip: weights for the retrieval of class names; None: it is not measured.
        clip_model, clip_prompt: as of :class:`ClipJudge`.

    Raises:
        ValueError: a prompt without a place for the name. FileNotFoundError: a file is missing.
    """

    inception: Path | None = None
    clip: Path | None = None
    clip_model: str | None = None
    clip_prompt: str = BARE_NAME

    def __post_init__(self) -> None:
        check_prompt(self.clip_prompt)
        for kind, file in (("Inception", self.inception), ("CLIP", self.clip)):
            if file is not None and not file.is_file():
                raise FileNotFoundError(f"there are no {kind} weights {file}")

    def clip_judge(self, class_names: Sequence[str], device: torch.device | str) -> ClipJudge | None:
        """CLIP with the texts of these classes."""
        if self.clip is None:
            return None
        return ClipJudge(self.clip_model, self.clip, class_names, prompt=self.clip_prompt, device=device)
