"""Opening models of transformers: without what it prints, and with one sentence for what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

from openblip.core.errors import UserError, first_line
from openblip.core.places import wrong_place

__all__ = ["opening", "quietly", "without_bars"]


@contextmanager
def opening(name: str, what: str) -> Iterator[None]:
    """Within, a part of a model is read from `name`, quietly: a folder may hold other weights besides.

    Args:
        what: it should be, such as "a folder of transformers".

    Raises:
        UserError: it cannot be read; says what is there.
    """
    try:
        with quietly():
            yield
    except SafetensorError as error:
        raise UserError(wrong_place(name) or f'"{name}" is damaged or cut short: {error}') from error
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise UserError(
            wrong_place(name)
            or f'"{name}" is neither {what} nor a model that the hub or its cache gives: {first_line(error)}'
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bar, and the table of every weight that belongs to another part of the folder."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bar that transformers draws for every model, among the lines of a command too."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
