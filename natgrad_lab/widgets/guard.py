"""Errors in callbacks: shown in the widget, for Jupyter itself would lose them."""

import functools
import traceback

from natgrad_lab.widgets import text


def guarded(callback):
    """Show in `self.error` what a callback raises."""

    @functools.wraps(callback)
    def call(self, *args):
        try:
            return callback(self, *args)
        except Exception:
            self.error.value = text.error(traceback.format_exc())

    return call
