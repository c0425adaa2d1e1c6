"""Values that a file gives: each is checked by type and range before it is used."""

from ..errors import UserError

MISSING = object()


def whole(config: dict, key: str, file: str, most: int, least: int = 1, default=MISSING) -> int:
    """The whole number of an entry. Raises UserError."""
    value = _entry(config, key, file, default)
    if not is_whole(value, least, most):
        raise wrong(key, value, file, f"a whole number from {least} to {most}")
    return int(value)


def number(config: dict, key: str, file: str, most: float, default=MISSING) -> float:
    """The positive number of an entry. Raises UserError."""
    value = _entry(config, key, file, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise wrong(key, value, file, f"a number above 0, at most {most:g}")
    return float(value)


def whole_list(config: dict, key: str, file: str, most: int, lengths: range) -> tuple[int, ...]:
    """The list of positive whole numbers of an entry. Raises UserError."""
    value = _entry(config, key, file)
    if (not isinstance(value, list) or len(value) not in lengths
            or not all(is_whole(each, 1, most) for each in value)):
        raise wrong(key, value, file, f"a list of {lengths[0]} to {lengths[-1]} whole numbers up "
                                      f"to {most}")
    return tuple(map(int, value))


def check_divisible(numbers: tuple[int, ...], by: int, what: str, file: str) -> None:
    """Raise UserError unless every number is a multiple."""
    if any(each % by for each in numbers):
        raise UserError(f"{file}: its widths {', '.join(map(str, numbers))} cannot be divided into "
                        f"{by} {what}; fetch it again")


def is_whole(value, least: int, most: int) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and least <= value <= most and value == int(value))


def wrong(key: str, value, file: str, right: str) -> UserError:
    return UserError(f"{file}: {key} is {shortened(value)}, but must be {right}; fetch the file "
                     f"again")


def clipped(key: str) -> str:
    """A key that a sentence may hold: a spoilt file's may have any length, and any characters."""
    key = key if key.isprintable() else ascii(key)
    return key if len(key) <= 110 else f"{key[:107]}..."


def shortened(value) -> str:
    """As Python writes it, in 40 characters of ASCII at most."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _entry(config: dict, key: str, file: str, default=MISSING):
    value = config.get(key, default)
    if value is MISSING:
        raise UserError(f"{file}: lacks the entry {key}; fetch it again")
    return value
