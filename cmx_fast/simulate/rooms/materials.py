"""Surface materials: one record sets both the sound and the look of a surface.

Absorption coefficients are the usual published room-acoustics figures for the octave bands of ``BANDS_HZ``.
Colours, textures and gloss are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

BANDS_HZ = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)


@dataclass(frozen=True)
class Material:
    """A material's sound and look.

    absorption: energy absorbed per reflection in each band of ``BANDS_HZ``; scattering: share of the reflected
    energy that leaves diffusely; colour: sRGB in 0..1; texture: a name of
    ``cmx_fast.simulate.rooms.textures.TEXTURES``;
    period: the texture's length in metres; gloss: mirror reflectivity at normal incidence, 0..1;
    glow: light that the surface sends out itself, 0 for all but lamps and panes.
    """

    name: str
    absorption: tuple[float, ...]
    colour: tuple[float, float, float]
    texture: str = "plain"
    period: float = 1.0
    scattering: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0


# fmt: off
_ALL = (
    # hard
    Material("brick", (0.02, 0.03, 0.03, 0.04, 0.05, 0.07, 0.07), (0.62, 0.34, 0.26), "brick", 0.25, 0.2),
    Material("painted brick", (0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04), (0.82, 0.80, 0.74), "brick", 0.25, 0.15),
    Material("concrete", (0.02, 0.03, 0.03, 0.03, 0.04, 0.07, 0.07), (0.55, 0.55, 0.53), "concrete", 1.2),
    Material("concrete floor",
             (0.01, 0.03, 0.05, 0.02, 0.02, 0.02, 0.02), (0.47, 0.47, 0.46), "concrete", 2, 0.1, 0.05),
    Material("limestone", (0.02, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05), (0.80, 0.74, 0.60), "block", 0.8, 0.2),
    Material("marble", (0.01, 0.01, 0.01, 0.01, 0.02, 0.02, 0.02), (0.78, 0.76, 0.74), "checker", 1.0, 0.05, 0.22),
    Material("ceramic tile", (0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02), (0.80, 0.88, 0.90), "tile", 0.2, 0.05, 0.15),
    Material("plaster", (0.14, 0.10, 0.06, 0.05, 0.04, 0.03, 0.03), (0.86, 0.83, 0.77), "plain", 1.0),
    Material("plasterboard", (0.15, 0.10, 0.06, 0.04, 0.04, 0.05, 0.05), (0.88, 0.87, 0.84), "plain", 1.0),
    Material("metal sheet",
             (0.10, 0.08, 0.06, 0.05, 0.04, 0.04, 0.04), (0.58, 0.62, 0.66), "corrugated", 0.3, 0.25, 0.06),
    Material("glass", (0.18, 0.08, 0.05, 0.04, 0.03, 0.02, 0.02), (0.55, 0.68, 0.76), "pane", 1.2, 0.05, 0.25),
    Material("window", (0.28, 0.15, 0.08, 0.05, 0.04, 0.03, 0.03), (0.75, 0.87, 0.98), "pane", 0.8, 0.05, 0.1, 0.9),
    Material("water", (0.01, 0.01, 0.01, 0.01, 0.02, 0.02, 0.03), (0.15, 0.50, 0.62), "ripple", 0.5, 0.1, 0.35),
    Material("linoleum", (0.02, 0.03, 0.03, 0.03, 0.03, 0.02, 0.02), (0.50, 0.58, 0.52), "speckle", 0.05, 0.05, 0.10),
    # wood
    Material("parquet", (0.10, 0.08, 0.07, 0.06, 0.06, 0.06, 0.06), (0.66, 0.44, 0.25), "plank", 0.12, 0.1, 0.08),
    Material("wood panel", (0.27, 0.23, 0.22, 0.15, 0.10, 0.07, 0.06), (0.55, 0.34, 0.18), "plank", 0.16, 0.15, 0.02),
    Material("thin plywood", (0.42, 0.21, 0.10, 0.08, 0.06, 0.06, 0.06), (0.80, 0.64, 0.42), "grain", 0.4, 0.1, 0.02),
    Material("door", (0.14, 0.10, 0.06, 0.08, 0.10, 0.10, 0.10), (0.45, 0.29, 0.17), "frame", 1.0, 0.1),
    Material("furniture wood", (0.10, 0.08, 0.08, 0.08, 0.07, 0.07, 0.07), (0.52, 0.33, 0.19), "grain", 0.3, 0.3, 0.02),
    Material("board", (0.05, 0.05, 0.04, 0.04, 0.04, 0.04, 0.04), (0.10, 0.22, 0.17), "plain", 1.0, 0.05),
    # soft
    Material("carpet", (0.03, 0.09, 0.25, 0.31, 0.33, 0.44, 0.44), (0.42, 0.20, 0.24), "pile", 0.03, 0.2),
    Material("deep carpet", (0.07, 0.31, 0.49, 0.81, 0.66, 0.54, 0.48), (0.24, 0.30, 0.42), "pile", 0.04, 0.3),
    Material("curtain", (0.14, 0.35, 0.55, 0.72, 0.70, 0.65, 0.65), (0.55, 0.13, 0.17), "fold", 0.22, 0.5),
    Material("upholstery", (0.44, 0.60, 0.77, 0.89, 0.82, 0.70, 0.70), (0.32, 0.36, 0.55), "pile", 0.05, 0.5),
    Material("bedding", (0.20, 0.45, 0.70, 0.75, 0.70, 0.65, 0.65), (0.85, 0.84, 0.88), "pile", 0.08, 0.5),
    Material("books", (0.15, 0.25, 0.35, 0.35, 0.35, 0.35, 0.35), (0.50, 0.36, 0.28), "books", 0.05, 0.6),
    # absorbers
    Material("acoustic tile",
             (0.49, 0.53, 0.53, 0.75, 0.92, 0.95, 0.95), (0.90, 0.90, 0.88), "ceiling tile", 0.6, 0.2),
    Material("perforated gypsum",
             (0.45, 0.55, 0.60, 0.90, 0.86, 0.75, 0.75), (0.93, 0.92, 0.90), "perforated", 0.15, 0.2),
    Material("foam", (0.12, 0.33, 0.83, 0.95, 0.95, 0.95, 0.95), (0.22, 0.22, 0.25), "wedge", 0.25, 0.4),
    Material("fabric panel", (0.30, 0.75, 0.95, 0.95, 0.95, 0.95, 0.95), (0.42, 0.47, 0.40), "panel", 1.2, 0.3),
    Material("acoustic plaster", (0.17, 0.36, 0.66, 0.65, 0.62, 0.68, 0.68), (0.84, 0.82, 0.80), "concrete", 0.4, 0.2),
    # outdoors
    Material("open", (0.99,) * 7, (0.60, 0.75, 0.95), "plain", 1.0, 0.0),
    Material("facade", (0.06, 0.05, 0.05, 0.05, 0.05, 0.06, 0.06), (0.76, 0.68, 0.55), "facade", 3.0, 0.5),
    Material("asphalt", (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.07), (0.27, 0.27, 0.29), "speckle", 0.08, 0.1),
    Material("paving", (0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04), (0.62, 0.59, 0.54), "tile", 0.5, 0.1),
    Material("grass", (0.11, 0.26, 0.60, 0.69, 0.75, 0.80, 0.80), (0.30, 0.50, 0.17), "pile", 0.10, 0.4),
    Material("hedge", (0.15, 0.30, 0.45, 0.55, 0.65, 0.70, 0.70), (0.16, 0.34, 0.13), "leaves", 0.15, 0.8),
    Material("gravel", (0.15, 0.25, 0.40, 0.50, 0.55, 0.60, 0.60), (0.63, 0.60, 0.55), "speckle", 0.06, 0.4),
    Material("bark", (0.05, 0.05, 0.08, 0.10, 0.12, 0.15, 0.15), (0.33, 0.24, 0.17), "grain", 0.2, 0.6),
    # things
    Material("lamp", (0.10, 0.08, 0.06, 0.05, 0.05, 0.05, 0.05), (1.00, 0.97, 0.88), "plain", 1.0, 0.1, 0.0, 2.2),
    Material("car paint", (0.10, 0.08, 0.06, 0.05, 0.04, 0.04, 0.04), (0.60, 0.10, 0.10), "plain", 1.0, 0.3, 0.15),
    Material("car window", (0.18, 0.08, 0.05, 0.04, 0.03, 0.02, 0.02), (0.16, 0.20, 0.24), "plain", 1.0, 0.2, 0.2),
    Material("appliance", (0.08, 0.06, 0.05, 0.04, 0.04, 0.04, 0.04), (0.86, 0.87, 0.89), "frame", 0.6, 0.2, 0.06),
    Material("crate", (0.15, 0.12, 0.10, 0.10, 0.09, 0.09, 0.09), (0.70, 0.54, 0.32), "frame", 0.9, 0.4),
    Material("canvas", (0.10, 0.20, 0.35, 0.45, 0.45, 0.45, 0.45), (0.35, 0.45, 0.55), "art", 0.7, 0.1),
)
# fmt: on
MATERIALS = {material.name: material for material in _ALL}
