"""The one visual language: colours that can be told apart, maps that are even."""

import numpy as np
import pytest


def oklab(rgb):
    """OKLab of sRGB bytes (n, 3), written from its definition: linear light, cone responses, cube roots."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    mix = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    return np.cbrt(linear @ cones.T) @ mix.T


def test_sequential_lightness_rises_evenly():
    from natgrad_lab.plots import colour_table

    lightness = oklab(colour_table("sequential").astype(float))[:, 0]
    steps = np.diff(lightness)
    # Bytes are rounded to 1/255, which in the dark moves the lightness by up to half a step of 0.003.
    assert lightness[0] < 0.2 and lightness[-1] > 0.95 and (steps > -0.002).all()
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 0.02


def test_diverging_is_symmetric_about_near_white():
    from natgrad_lab.plots import colour_table

    lightness = oklab(colour_table("diverging").astype(float))[:, 0]
    assert np.abs(lightness - lightness[::-1]).max() < 0.02, "equally strong on both sides"
    middle = colour_table("diverging")[127:129].astype(int)
    assert (middle >= 240).all() and np.ptp(middle) <= 2
    first, last = colour_table("diverging")[[20, -21]].astype(int)
    assert first[2] > first[0] + 60 and last[0] > last[2] + 60, "blue below zero, red above"


def test_tables_are_for_everybody_and_cannot_be_changed():
    from natgrad_lab.plots import colour_table

    table = colour_table("sequential")
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0
    with pytest.raises(ValueError, match="'sequential' and 'diverging'; got 'jet'"):
        colour_table("jet")


def test_every_method_has_a_colour_of_its_own():
    import natgrad_lab as ng
    from natgrad_lab.plots.style import GREY, method_colour

    colours = [method_colour(name) for name in ng.optimizers.METHODS]
    assert len(set(colours)) == len(colours) and GREY not in colours
    assert method_colour("mine") == GREY


def test_colorscale_is_the_same_table():
    from natgrad_lab.plots.style import colorscale, colour_table

    scale = colorscale("diverging")
    assert scale[0][0] == 0 and scale[-1][0] == 1
    for place, colour in scale:
        assert colour == "rgb({},{},{})".format(*colour_table("diverging")[round(255 * place)])
