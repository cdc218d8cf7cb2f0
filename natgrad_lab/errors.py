"""The exceptions and the warning that callers may want to catch by name; everything else is a ValueError or TypeError."""


class UnsupportedLayerError(TypeError):
    """A layer (or its mode, or the way it is used) that no rule covers. Names the layer and says what to do."""


class NotPositiveDefiniteError(ValueError):
    """A system that has to be positive definite and is not: singular, indefinite, or too small a damping."""


class NonFiniteError(ValueError):
    """Weights or outputs that hold NaN or infinity although the data are finite: training has diverged."""


class NumericalWarning(UserWarning):
    """A result that is less accurate than asked for; the message carries the number."""
