"""Which files to learn from: those given, those in the folders given, and the words beside them."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, in_words
from .images import image_endings

IMAGE_ENDINGS = image_endings()
VIDEO_ENDINGS = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".f4v",
                 ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".ogv",
                 ".mxf", ".y4m", ".gif", ".webp", ".apng", ".avifs"}
CAPTIONS = (".txt", ".TXT")
HEIC = {".heic", ".heif", ".hif"}
MOST_CHARACTERS = 10_000        # of a caption: a model reads 75 tokens of it
MOST_NAMED = 6      # files left out that a warning names


def find_files(paths: Sequence[str | Path], endings: set[str], what: str,
               flag: str = "--data") -> list[Path]:
    """Files as they are, folders replaced by the files in them that have one of the endings.

    Sub-folders that are called as trainers want them (`10_cat`) are looked into; beside files that
    are used, a warning names them. Another names what is left out of a folder. Raises UserError.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _in_folder(path, endings, what)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; "
                            f"{flag} names {what}s, or folders of them")
    return found


def _in_folder(folder: Path, endings: set[str], what: str) -> list[Path]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    of_trainers = [p for p in entries if p.is_dir() and re.match(r"\d+_", p.name)]
    inside = [p for p in entries if p not in of_trainers]
    for each in of_trainers:
        inside += sorted(p for p in each.iterdir() if not p.name.startswith("."))
    used = [p for p in inside if p.is_file() and p.suffix.lower() in endings]
    captions = {place.with_name(place.name + ending) for ending in CAPTIONS
                for place in {p.with_suffix("") for p in used}
                | {p.parent for p in used if p.parent != folder}}
    left = [f"{p.relative_to(folder)} ({_reason(p, what)})" for p in inside
            if p not in used and p not in captions]
    named = ", ".join(left[:MOST_NAMED]) + (f" and {len(left) - MOST_NAMED} more"
                                            if len(left) > MOST_NAMED else "")
    if not used:
        raise UserError(f"{folder}: no {what} in this folder"
                        + (f": {named}" if left else "") + "; name another")
    inner = [p for p in used if p.parent != folder]
    if 0 < len(inner) < len(used):
        places = ", ".join(dict.fromkeys(p.parent.name for p in inner))
        warnings.warn(f"{folder}: {len(inner)} of the {len(used)} {what}s used are in its "
                      f"sub-folders {places}; call a folder without a number in front to leave it "
                      f"out", stacklevel=3)
    if len({p.name.partition("_")[0] for p in of_trainers}) > 1:
        warnings.warn(f"{folder}: each {what} counts once, whatever number its folder's name "
                      f"begins with", stacklevel=3)
    if left:
        warnings.warn(f"{folder}: {len(used) + len(left)} files: {len(used)} {what}s used; left "
                      f"out: {named}", stacklevel=3)
    return used


def _reason(path: Path, what: str) -> str:
    if path.is_dir():
        return "a folder"
    if path.suffix.lower() in HEIC:
        return "Pillow cannot read HEIC: save it as JPEG"
    return f"its ending says no {what}" if path.is_file() else "not a file"


def caption_beside(path: Path) -> str | None:
    """The text of the `.txt` file beside an image, a video or a folder, if there is one.
    Raises UserError."""
    path = Path(os.path.abspath(path))      # "." and ".." have a name, too
    stem = path if path.is_dir() else path.with_suffix("")
    text = next((file for ending in CAPTIONS if stem.name      # the root folder has none
                 and (file := stem.with_name(stem.name + ending)).is_file()), None)
    if text is None:
        return None
    try:
        with text.open(encoding="utf-8-sig") as file:
            words = file.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: cannot be read as UTF-8 text ({in_words(error)}); save it as "
                        f"such") from error
    if len(words) > MOST_CHARACTERS:
        raise UserError(f"{text}: too long for a caption ({text.stat().st_size} bytes); say it in "
                        f"{MOST_CHARACTERS} characters at most, of which the model reads the first "
                        f"75 tokens")
    if not words.strip():
        warnings.warn(f"{text}: is empty, and is passed over", stacklevel=2)
    return " ".join(words.split()) or None
