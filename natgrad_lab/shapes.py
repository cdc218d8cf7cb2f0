"""Shape annotations: `Float[Tensor, "N C"]`.

With jaxtyping installed these are its types (checked in the tests). Without it, as on a machine that has only torch
and numpy, each annotation is plain `Tensor` and nothing else changes.
"""

from torch import Tensor

try:
    from jaxtyping import Bool, Float, Int, UInt8
except ImportError:

    class Float:
        """Stand-in for jaxtyping's type of the same name: any subscript gives `Tensor`."""

        def __class_getitem__(cls, item):
            """Forget the shape."""
            return Tensor

    Int = Bool = UInt8 = Float

__all__ = ["Bool", "Float", "Int", "Tensor", "UInt8"]
