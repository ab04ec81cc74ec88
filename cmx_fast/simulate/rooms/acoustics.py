"""Impulse responses of a simulated space with pyroomacoustics: image sources, and rays for the late part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmx_fast._extras import require
from cmx_fast.simulate.rooms.geometry import Room, Vec3, surface_acoustics
from cmx_fast.simulate.rooms.materials import BANDS_HZ

# Early reflections are exact up to this order; the rays carry what comes later or is scattered. Image sources
# alone would need an order near 60 in the large rooms, and in a shoebox they let flutter echoes last for ever.
IMAGE_ORDER = 8
# Rays per metre of the room's mean edge: about 40 of them pass the microphone's sphere per 4 ms bin. Outdoors most
# rays are lost to the sky after a few reflections.
RAYS_PER_METRE = 640
OUTDOOR_RAYS = 3
MAX_SECONDS = 3.0


def impulse_response(
    room: Room, source: Vec3, microphone: Vec3, sample_rate: int, seed: int
) -> NDArray[np.float32]:
    """The response from ``source`` to ``microphone`` (metres), shape (samples,), peak 0.95.

    It starts 2 ms before the direct sound and ends where the last -60 dB are reached. The same seed gives the
    same samples. About 0.1 s of one core for a small room, 1 s for a hall.
    """
    pra = require("pyroomacoustics", "simulate")
    pra.constants.set("num_threads", 1)
    pra.random.seed(numpy=seed, libroom=seed)
    materials = {
        surface: pra.Material(
            {
                "description": room.surfaces[surface],
                "coeffs": absorption.tolist(),
                "center_freqs": list(BANDS_HZ),
            },
            scattering,
        )
        for surface, (absorption, scattering) in surface_acoustics(room).items()
    }
    edge = float(np.cbrt(room.volume))
    box = pra.ShoeBox(
        room.size, fs=sample_rate, materials=materials, max_order=IMAGE_ORDER, air_absorption=True
    )
    box.set_ray_tracing(
        n_rays=int(RAYS_PER_METRE * edge * (1 if room.indoor else OUTDOOR_RAYS)),
        receiver_radius=min(max(0.12 * edge, 0.2), 1.0),
        energy_thres=1e-7,
        time_thres=MAX_SECONDS,
    )
    box.add_source(source)
    box.add_microphone(microphone)
    box.compute_rir()
    response = np.asarray(box.rir[0][0], dtype=np.float64)
    arrival = int(np.argmax(np.abs(response) > 0.1 * np.abs(response).max()))
    response = response[max(0, arrival - sample_rate // 500) :]
    remaining = np.cumsum(response[::-1] ** 2)[::-1]
    response = response[: int(np.argmax(remaining < 1e-6 * remaining[0])) or None]
    return (0.95 * response / np.abs(response).max()).astype(np.float32)
