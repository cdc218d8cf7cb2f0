"""Numbers and sentences of the panel, as HTML. Whatever comes from outside is escaped here and nowhere else."""

import html
import math

from natgrad_lab.plots.style import method_colour

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scientific(value: float) -> str:
    """Write 227177 as 2.3 × 10⁵; the number of digits never changes, so nothing jumps."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0.0 × 10⁰"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def headline(condition: float, damped: float, damping: float, rank: int, dim: int, probe: int) -> str:
    """The condition number, its kind, and what damping makes of it."""
    return (
        '<div class="natgrad-headline">'
        f'<span class="natgrad-big natgrad-number">κ = {scientific(condition)}</span>'
        "<span>condition number of the exact Fisher: largest / smallest nonzero eigenvalue<br>"
        f'<span class="natgrad-quiet natgrad-number">{rank:,} of {dim:,} eigenvalues are nonzero, '
        f"on {probe} probe examples</span></span>"
        '<span class="natgrad-second"><span class="natgrad-number natgrad-damped">'
        f"κ(F + λI) = {scientific(damped)}</span><br>"
        f'<span class="natgrad-quiet natgrad-number">with damping λ = {scientific(damping)}</span></span></div>'
    )


def status(state: str, method: str, step: int, loss: float | None, note: str) -> str:
    """One line: what the run is doing, where it is, and its loss."""
    loss_text = "–" if loss is None else f"{loss:.4f} nats" if math.isfinite(loss) else "not finite"
    note = f'<span class="natgrad-note">{html.escape(note)}</span>' if note else ""
    return (
        f'<div class="natgrad-status"><span class="natgrad-swatch" style="background:{method_colour(method)}"></span>'
        f'<b>{html.escape(method)}</b><span class="natgrad-state">{html.escape(state)}</span>'
        f'<span class="natgrad-number">step {step:,}</span>'
        f'<span class="natgrad-number">loss {loss_text}</span>{note}</div>'
    )


def error(text: str) -> str:
    """An error: its last line first, the traceback folded below."""
    if not text:
        return ""
    lines = text.strip().splitlines()
    return (
        f'<div class="natgrad-error" role="alert"><b>{html.escape(lines[-1])}</b>'
        f"<details><summary>traceback</summary><pre>{html.escape(text.strip())}</pre></details></div>"
    )
