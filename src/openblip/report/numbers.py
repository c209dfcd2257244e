"""Numbers spelled for people: percents, durations, counts, plain numbers of three digits; ticks for axes."""

from __future__ import annotations

import math

__all__ = ["spell", "spell_score", "spell_short", "spell_spread", "ticks"]

NONE = "\u2013"
"""a dash, for what is not known"""
_THIN = "\u2009"
"""a thin space, between a number and its unit"""


def spell(value: float | None, unit: str = "", *, even: bool = False) -> str:
    """Return `value` with its unit: spell(0.4, "fraction") is "40%", spell(75, "seconds") is "1 min 15 s".

    Args:
        even: whole percents have a decimal too ("40.0%"), for columns of a table.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if unit == "fraction":
        return _percent(value, even=even)
    if unit == "seconds":
        return _duration(value)
    if unit == "count":
        return f"{value:,.0f}"
    return _plain(value) + (f"{_THIN}{unit}" if unit else "")


def spell_score(probability: float) -> str:
    """Return a probability under an image: whole percents, finer only near 0 and 1."""
    if not math.isfinite(probability):
        return NONE
    return f"{100 * probability:.0f}%" if 0.01 <= probability <= 0.99 else _percent(probability)


def spell_short(value: float, unit: str = "") -> str:
    """Return `value` for an axis: few characters, the unit left out but for percents and times."""
    if unit == "fraction":
        return f"{_trim(f'{100 * value:.4g}')}%"
    if unit == "seconds":
        return f"{_trim(f'{value:.4g}')}{_THIN}s"
    size = abs(value)
    for limit, scale, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{_trim(f'{value / scale:.4g}')}{suffix}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{_trim(mantissa)}e{int(exponent)}"
    return _trim(f"{value:.4g}")


def spell_spread(spread: float | None, unit: str = "") -> str:
    """Return "± 1.2" for a spread in the unit of its number, or "" for none."""
    if spread is None or not math.isfinite(spread):
        return ""
    if unit == "fraction":
        return f"±{_THIN}{_percent(spread, even=True).rstrip('%')}"
    return f"±{_THIN}{spell(float(f'{spread:.2g}'), unit)}"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return about `wanted` round numbers from within [low, high]: 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _percent(value: float, *, even: bool = False) -> str:
    percent = 100 * value
    size = abs(percent)
    whole = abs(size - round(size)) < 1e-6
    # 99.97% must not be rounded up to the perfect 100%, nor 0.04% down to nothing.
    digits = 0 if whole and not even else 1 if whole or 0.095 <= size < 99.95 or size > 100 else 2
    return f"{percent:.{digits}f}%"


def _plain(value: float) -> str:
    size = abs(value)
    if value == int(value) and size < 1e5:
        return f"{int(value)}"
    if size >= 1e5:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{_trim(mantissa)}e{int(exponent)}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{1e6 * seconds:.3g}{_THIN}µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g}{_THIN}ms"
    if seconds < 59.95:
        return f"{seconds:.3g}{_THIN}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}{_THIN}h {minute}{_THIN}min" if minute else f"{hours}{_THIN}h"
    return f"{minutes}{_THIN}min {second}{_THIN}s" if second else f"{minutes}{_THIN}min"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
