"""Write the example data: images of one held-out subject, a clip of one held-out motion.

  python -m customttt.tiny.world.examples weights/tiny/examples

Neither was ever drawn in pretraining (both are held out by construction); the words of their
captions were.
"""

from pathlib import Path

from torch import Generator

from ...errors import command_parser, run_command, writing
from ...media.clips import write_frames
from .clips import SCENES, make_clip, render
from .motions import HELD_OUT_MOTIONS, STANDING_STILL
from .subjects import HELD_OUT_SUBJECTS, Subject

SUBJECT = HELD_OUT_SUBJECTS["teddy in a red bow"]
MOTION = HELD_OUT_MOTIONS["flat eight"]


def write_examples(folder: Path, seed: int = 7) -> None:
    """subject/0.png ... in five scenes, subject.txt; motion.mp4, motion.txt."""
    generator = Generator().manual_seed(seed)
    for k, scene in enumerate(SCENES):
        clip = make_clip(SUBJECT, STANDING_STILL, scene, generator)
        write_frames(render(clip, slice(0, 1)), folder / "subject" / f"{k}.png")
    clip = make_clip(Subject("ball", ("red",)), MOTION, "grass", generator)
    write_frames(render(clip), folder / "motion.mp4")
    for name, text in (("subject", f"a {SUBJECT.kind}"), ("motion", clip.caption)):
        with writing(folder / f"{name}.txt") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("folder", type=Path)
    write_examples(parser.parse_args().folder)


if __name__ == "__main__":
    run_command(main)
