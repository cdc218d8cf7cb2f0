"""Arrow keys for the menus and choices of a card or panel: without this JupyterLab takes them to move between cells."""

import anywidget

from natgrad_lab.widgets.view import source


class Keys(anywidget.AnyWidget):
    """Invisible; stands anywhere in an element of the class natgrad-card or natgrad-panel."""

    _esm = source("keys.js")
