"""Times the host's part of a step's launches, before the GPU can begin: ``python -m benchmarks.device.host``.

The losses' launchers run on CPU tensors with Triton's own launch path up to the point where a kernel would be compiled
or queued, so no GPU is needed and none is measured. A captured graph saves it; below some 1000 rows it is most of a
step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..harness import timing

ROWS, FEATURES, SECONDS = 256, 128, 1.0
CAPABILITY, MULTIPROCESSORS = (9, 0), 132  # of an H200, whose tiles the launchers then take


class NoDriver:
    """The part of Triton's driver that a launch uses."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        major, minor = CAPABILITY
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class NoKernel:
    """A compiled kernel whose launches are counted."""

    function, packed_metadata = 0, None
    launches = 0

    def launch_metadata(self, *_: object) -> None:
        return None

    def run(self, *_: object) -> None:
        NoKernel.launches += 1


def launch_nothing() -> None:
    """Make launchers choose an H200's tiles, and launches end in this process where the driver would begin.

    Raises:
        RuntimeError: Triton interprets kernels in this process, so there is no launch path.
    """
    import triton
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from cmx_fast.kernels.common import tiles

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: unset it to time the launches")

    def keep(self, key, signature, device, *_):
        return self.device_caches[device][0].setdefault(key, NoKernel())

    JITFunction._do_compile = keep
    driver.set_active(NoDriver())
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    tiles.multiprocessors = lambda device: MULTIPROCESSORS


def steps() -> dict[str, Callable[[], object]]:
    """Forward and backward of the losses' launchers, on bfloat16 rows of unit length."""
    from cmx_fast.kernels.info_nce.launchers import info_nce_bwd, info_nce_fwd
    from cmx_fast.kernels.supcon.launchers import supcon_bwd, supcon_fwd

    x = torch.nn.functional.normalize(torch.randn(1, ROWS, FEATURES), dim=-1).bfloat16()
    scale, grad, labels = torch.ones(()), torch.ones(1, ROWS), torch.arange(ROWS) % 100
    options = (True, False, "dot", True, False, 0.0)

    def info_nce() -> object:
        _, *saved = info_nce_fwd(x, x, scale, [], None, *options, False)
        return info_nce_bwd(grad, x, x, scale, [], None, *options, *saved, True, True)

    def supcon() -> object:
        inputs = x[0], labels, scale, None, None, False
        _, *saved = supcon_fwd(*inputs, False)
        return supcon_bwd(grad[0], *inputs, *saved, True, False)

    return {"info_nce": info_nce, "supcon": supcon}


def launches_of(step: Callable[[], object]) -> int:
    """The number of kernels that a call launches."""
    before = NoKernel.launches
    step()
    return NoKernel.launches - before


def main() -> None:
    print(f"{ROWS} x {FEATURES} bfloat16, forward and backward; nothing is launched")
    print(f"{'operator':12}{'launches':>10}{'us of Python':>14}")
    launch_nothing()
    contenders = steps()
    timings = timing.interleaved(contenders, seconds=SECONDS)
    for name, step in contenders.items():
        print(f"{name:12}{launches_of(step):10}{1e6 * timings[name].median:14.0f}")


if __name__ == "__main__":
    main()
