from __future__ import annotations

import pytest
import torch

from cmx_fast.evaluate.occlusion import occlusion


def test_only_the_part_that_the_score_reads_matters():
    spectrogram = torch.rand(13, 37, generator=torch.Generator().manual_seed(0))
    falls = occlusion(spectrogram, lambda x: x[:, 7:9, 10:13].sum((1, 2)), (4, 8))
    assert falls.shape == (4, 8)
    # 13 bands in four cells: the third has bands 7 to 9; 37 times in eight: the third has times 10 to 13.
    cell = spectrogram[7:9, 10:13] - spectrogram[7:9].mean(1, keepdim=True)
    assert float(falls[2, 2]) == pytest.approx(float(cell.sum()), abs=1e-5)
    falls[2, 2] = 0
    assert falls.abs().max() < 1e-5
