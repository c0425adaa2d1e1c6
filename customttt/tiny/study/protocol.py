"""The paper's protocol in the tiny world: nine held-out subjects, ten held-out motions, ten groups
of the two, five prompts each, one a scene: 50 videos.

  python -m customttt.tiny.study.protocol FOLDER
  python -m customttt.paper.tables 4 --protocol FOLDER/protocol.json

Of a subject there are five images, one a scene, and the prompt has its kind alone. Of a motion
there is a clip of a red ball on the grass.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Generator

from ...draws import stream_seed
from ...errors import command_parser, run_command
from ...files.reading import write_json
from ...media.clips import write_frames
from ...paper.rows import Group
from ..world.clips import SCENES, make_clip, render
from ..world.motions import HELD_OUT_MOTIONS, STANDING_STILL
from ..world.subjects import HELD_OUT_SUBJECTS, Subject
from .scores import Combination, combinations

TRIED = 40      # combinations, the first, on which settings are tried (search.py)
# The tenth group has the first one's subject. None is among those that are tried, but their
# subjects and motions are these, in other pairs.
PAIRS = [*combinations(TRIED, 9), *combinations(70, 1)]


def dashed(name: str) -> str:
    return name.replace(" ", "-")


def write_protocol(folder: Path) -> list[Group]:
    """protocol.json, and the images and clips that it names."""
    groups = [write_group(folder, [replace(pair, scene=scene) for scene in SCENES])
              for pair in PAIRS]
    write_json({"groups": [{
        "images": group.images.name, "subject": group.subject, "video": group.video.name,
        "motion": group.motion, "prompts": group.prompts} for group in groups]},
        folder / "protocol.json")
    return groups


def write_group(folder: Path, prompts: Sequence[Combination]) -> Group:
    """The images and the clip of combinations that differ in their scenes alone."""
    one = prompts[0]
    subject, images = HELD_OUT_SUBJECTS[one.subject], folder / dashed(one.subject)
    generator = Generator().manual_seed(stream_seed(11, one.subject))
    for k, scene in enumerate(SCENES):
        clip = make_clip(subject, STANDING_STILL, scene, generator)
        write_frames(render(clip, [0]), images / f"{k}.png")
    clip = make_clip(Subject("ball", ("red",)), HELD_OUT_MOTIONS[one.motion], "grass",
                     Generator().manual_seed(stream_seed(11, one.motion)))
    video = folder / f"{dashed(one.motion)}.gif"        # x264 gives other bytes now and then
    write_frames(render(clip), video)
    return Group(images, f"a {subject.kind}", video, clip.caption,
                 tuple(each.prompt for each in prompts))


def combination_of(group: Group, prompt: str) -> Combination:
    """What a group and a prompt that were written here mean."""
    subject, motion = (next(name for name in names if dashed(name) == path.stem)
                       for names, path in ((HELD_OUT_SUBJECTS, group.images),
                                           (HELD_OUT_MOTIONS, group.video)))
    scene = next(name for name, words in SCENES.items() if prompt.endswith(words))
    return Combination(subject, motion, scene)


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    groups = write_protocol(folder)
    print(f"{folder / 'protocol.json'}: {len(groups)} groups, "
          f"{sum(len(group.prompts) for group in groups)} prompts")


if __name__ == "__main__":
    run_command(main)
