"""The paper's metrics are the published scripts': transformers' CLIP, NumPy transcriptions."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import load_file, save_file
from test_keys import B32, L14
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from customttt.errors import UserError
from customttt.files.reading import write_json
from customttt.media.clips import to_images, write_frames
from customttt.paper import metrics, tracks
from customttt.paper.clip import architecture, clip_fingerprint, load_clip
from customttt.tiny.world.clips import make_clip, render
from customttt.tiny.world.motions import HELD_OUT_MOTIONS
from customttt.tiny.world.subjects import HELD_OUT_SUBJECTS

np = pytest.importorskip("numpy")
KEYS, CASES = (Path(__file__).parent / folder for folder in ("keys", "cases"))
PROMPT = "a red ball is moving left on the snow"


def pictures(n, width, height, seed=0):
    """Soft noise, another in each frame."""
    noise = torch.rand(n, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return to_images((large * 255).to(torch.uint8).permute(0, 2, 3, 1))


# ------------------------------------------------------------------ CLIP, against transformers

def transformers_scores(theirs, processor, embedder, frames, images, prompt):
    """CLIP-T, CLIP-I and consistency as VGen's script has them; LOVEU's two."""
    ids = embedder.tokenizer([prompt])
    with torch.no_grad():
        out = theirs(input_ids=ids, **processor(images=frames, return_tensors="pt"))
        of_images = theirs(input_ids=ids, **processor(images=images, return_tensors="pt"))
        small = [frame.resize((480, 480)) for frame in frames]
        loveu = theirs(input_ids=ids, **processor(images=small, return_tensors="pt"))
    f, text, i = (each.numpy() for each in (out.image_embeds, out.text_embeds[0],
                                            of_images.image_embeds))
    pairs = loveu.image_embeds.numpy() @ loveu.image_embeds.numpy().T
    np.fill_diagonal(pairs, 0)
    return ({"CLIP-T": f.mean(0) @ text, "CLIP-I": np.mean([each @ f.mean(0) for each in i]),
             "consistency": np.mean([a @ b for a, b in zip(f, f[1:])])},
            {"CLIP-T": loveu.logits_per_image.mean().item(),
             "consistency": pairs.sum() / (len(f) * (len(f) - 1))})


def assert_scores_agree(theirs, processor, embedder):
    frames, images = pictures(4, 320, 256), pictures(2, 256, 400, seed=1)
    vgen, loveu = transformers_scores(theirs, processor, embedder, frames, images, PROMPT)
    for definition, expected in (("vgen", vgen), ("loveu", loveu)):
        ours = metrics.clip_scores(embedder, frames, PROMPT, images, definition)
        print(definition, {key: f"{abs(ours[key] - expected[key]):.1e}" for key in expected})
        assert ours == pytest.approx(expected, abs=1e-4)


def test_the_tiny_clip(model_folder):
    embedder = load_clip(model_folder / "clip")
    theirs = CLIPModel.from_pretrained(model_folder / "clip", dtype=torch.float32)
    assert_scores_agree(theirs, CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}), embedder)


def test_a_clips_weights_may_be_a_pickle(model_folder, tmp_path):
    for part in ("clip", "tokenizer"):
        shutil.copytree(model_folder / part, tmp_path / part)
    file = tmp_path / "clip" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    assert torch.equal(load_clip(tmp_path / "clip").embed_texts(["a bear"]),
                       load_clip(model_folder / "clip").embed_texts(["a bear"]))


def test_vit_b32_at_full_size(model_folder, tmp_path):
    """Its file as it is published, but with random weights, and no config.json beside it."""
    shapes = json.loads((KEYS / "clip_vit_b32_as_in_file.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if shape else 1)
               for key, shape in shapes.items()}
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(model_folder / "tokenizer" / name, tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    embedder = load_clip(tmp_path / "model.safetensors")
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(text_config={"eos_token_id": embedder.tokenizer.end}))
    theirs.load_state_dict({key: value for key, value in tensors.items()
                            if not key.endswith("position_ids")}, strict=True, assign=True)
    for part in (theirs.text_model, theirs.vision_model):
        part.embeddings.position_ids = torch.arange(part.embeddings.position_ids.shape[1])[None]
    assert_scores_agree(theirs.eval(), CLIPImageProcessor(), embedder)


@pytest.mark.parametrize("keys, expected", [("b32", B32), ("l14", L14)])
def test_the_architecture_is_in_the_shapes(keys, expected):
    shapes = json.loads((KEYS / f"clip_vit_{keys}_as_in_file.json").read_text())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert architecture(tensors, {}) == expected


# ------------------------------------------------------------------ motion fidelity

def numpy_corr(a, b):
    """Yatim et al.'s similarity: mean cosine of displacements (n m)."""
    a, b = (np.diff(each.numpy(), axis=1) for each in (a, b))
    a, b = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (a, b))
    return np.array([[np.mean([u @ v for u, v in zip(one, other)]) for other in b] for one in a])


def walks(n, frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, frames, 2, generator=generator).cumsum(1) * 5


def test_fidelity_is_the_formula():
    a, b = walks(7), walks(5, seed=1)
    corr = numpy_corr(a, b)
    assert metrics.motion_fidelity(a, b) == pytest.approx(
        (np.mean([max(row) for row in corr]) + np.mean([max(row) for row in corr.T])) / 2, abs=1e-6)
    assert metrics.motion_fidelity_published(a, b) == pytest.approx(
        np.mean([max(row) for row in corr]), abs=1e-6)
    same = walks(7, seed=2)                             # as many: the diagonal is subtracted
    assert metrics.motion_fidelity_published(a, same) == pytest.approx(
        np.max(numpy_corr(a, same) - np.eye(7), axis=1).mean(), abs=1e-6)


def test_points_that_stand_still_make_no_nan():
    moving, still = walks(4), torch.ones(3, 6, 2)
    half = torch.cat([moving, still])
    assert metrics.motion_fidelity(half, half) == pytest.approx(1)
    assert metrics.motion_fidelity(still, moving) == 0 == metrics.motion_fidelity(moving, still)
    assert metrics.motion_fidelity(still, still) == 1
    paused = moving.clone()
    paused[:, 3] = paused[:, 2]
    assert metrics.motion_fidelity(paused, paused) == pytest.approx(1)
    assert metrics.motion_fidelity(paused, moving) < 0.9
    assert 0 <= metrics.motion_fidelity_published(still, moving) < 1e-6


@pytest.mark.parametrize("motion", list(HELD_OUT_MOTIONS)[:4])
def test_fidelity_follows_the_motion_and_not_the_subject(motion):
    pytest.importorskip("cv2")
    a, b, *_ = HELD_OUT_SUBJECTS.values()
    clip = make_clip(a, HELD_OUT_MOTIONS[motion], "snow", torch.Generator().manual_seed(3))
    frames = render(clip)
    reference = tracks.lucas_kanade(to_images(frames))

    def against(other):
        return metrics.motion_fidelity(tracks.lucas_kanade(to_images(other)), reference)
    assert metrics.motion_fidelity(reference, reference) == pytest.approx(1)
    assert against(render(replace(clip, subject=b))) > 0.95
    assert against(frames.flip(0)) < 0.5
    assert against(frames[:1].expand(len(frames), -1, -1, -1)) == 0


# ------------------------------------------------------------------ the command

@pytest.fixture
def call(monkeypatch, tmp_path, model_folder, capsys):
    """call(*flags) -> what it printed; `video` of some frames is there."""
    for n in (1, 4, 5):
        frames = torch.stack([torch.roll(torch.rand(
            64, 64, 3, generator=torch.Generator().manual_seed(1)), 3 * k, 1) for k in range(n)])
        write_frames((frames * 255).to(torch.uint8), tmp_path / f"{n}.mp4")

    def call(*flags, clip=model_folder / "clip"):
        monkeypatch.setattr(sys, "argv", ["metrics", *map(str, flags), "--clip", str(clip)])
        metrics.main()
        return capsys.readouterr().out
    return call


def test_command(call, tmp_path, model_folder):
    np.save(tmp_path / "a.npy", walks(4, frames=4).numpy())
    save_file({"tracks": walks(4, frames=4, seed=1)}, tmp_path / "b.safetensors")
    torch.save(walks(4, frames=4, seed=1), tmp_path / "b.pt")
    printed = call(tmp_path / "4.mp4", "--prompt", PROMPT, "--images",
                   model_folder / "examples" / "subject", "--reference", tmp_path / "a.npy",
                   "--tracks", tmp_path / "b.safetensors", "--output", tmp_path / "scores.json")
    written = json.loads((tmp_path / "scores.json").read_text())
    scores = written["videos"][str(tmp_path / "4.mp4")]
    assert written["tracker"] == {"videos": "file", "reference": "file"}
    judge = model_folder / "clip"
    assert printed.startswith(f"judged by {judge}\n") and written["clip"] == "clip"
    assert written["judge"] == clip_fingerprint(judge)
    assert list(scores) == ["CLIP-T", "CLIP-I", "consistency", "motion fidelity",
                            "motion fidelity (published)"]
    assert all(f"{value:.4f}" in printed for value in scores.values())
    assert scores["motion fidelity"] == pytest.approx(metrics.motion_fidelity(
        walks(4, frames=4, seed=1), walks(4, frames=4)))
    assert "mean" in call(tmp_path / "4.mp4", tmp_path / "5.mp4", "--definition", "loveu")
    once = [call(tmp_path / "4.mp4", "--reference", tmp_path / "a.npy", "--tracks", tmp_path / b)
            for b in ("b.safetensors", "b.pt")]
    assert once[0] == once[1]


def test_any_name_will_do(call, tmp_path):
    shutil.copy(tmp_path / "4.mp4", tmp_path / "12:30.mp4")
    call(tmp_path / "12:30.mp4")
    named = {os.fsdecode(b"caf\xe9.mp4"): 1}       # bytes that are no text
    write_json(named, tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text()) == named


def test_turned_photos_are_upright_and_a_cover_is_no_video(tmp_path):
    upright = Image.new("RGB", (40, 20))
    upright.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6                               # turned by a quarter to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert metrics.open_image(tmp_path / "a.png").tobytes() == upright.tobytes()
    assert len(metrics.read_frames(CASES / "cover_first.mp4")) > 1


def test_the_reference_video_is_tracked(call, tmp_path):
    pytest.importorskip("cv2")
    printed = call(tmp_path / "4.mp4", "--reference", tmp_path / "5.mp4")
    assert float(printed.splitlines()[-1].split("|")[3]) > 0.8


def test_bad_input_is_one_sentence(call, tmp_path, model_folder, monkeypatch):
    np.save(tmp_path / "long.npy", walks(4, frames=9).numpy())
    np.save(tmp_path / "none.npy", walks(0, frames=4).numpy())
    np.save(tmp_path / "some.npy", walks(4, frames=4).numpy())
    np.save(tmp_path / "flat.npy", np.zeros((4, 2)))
    np.save(tmp_path / "unit.npy", walks(4, frames=4).numpy() / 256)
    save_file({"visual.conv1.weight": torch.ones(2)}, tmp_path / "open_clip.safetensors")
    (tmp_path / "empty.npy").touch()
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")     # Pillow would run Ghostscript on it
    video = tmp_path / "4.mp4"
    for flags, said in (
            ([tmp_path / "1.mp4"], "two frames or more"),
            ([video, "--prompt", "a", "b"], "--prompt: 2 for 1 videos"),
            ([video, "--reference", tmp_path / "flat.npy"], r"shape \(points, frames, 2\)"),
            ([video, "--reference", tmp_path / "none.npy", "--tracks", tmp_path / "none.npy"],
             "no tracks through the video"),
            ([video, "--reference", tmp_path / "none.npy", "--tracks", tmp_path / "some.npy"],
             "no tracks through --reference"),
            ([video, "--images", tmp_path / "nobody"], "no such file or folder; --images names"),
            ([video, video], "4.mp4: given twice"),
            ([video, "--output", video], "--output .*4.mp4: is read, too; give another file"),
            ([video, "--tracks", tmp_path / "flat.npy"], "--tracks: does nothing without --ref"),
            ([video, "--definition", "loveu", "--images", tmp_path], "LOVEU has no score against"),
            ([video, "--reference", video, "--fps", "-8"], "--fps -8: must be above 0"),
            ([video, "--reference", video, "--fps", "inf"], "--fps inf: must be above 0"),
            ([video, "--reference", tmp_path / "some.npy", "--fps", "8"], "without a video"),
            ([video, "--reference", tmp_path / "some.npy", "--tracks", tmp_path / "some.npy",
              "--tracker", "lucas-kanade"], "--tracker: does nothing without a video to track"),
            ([video, "--fps", "8"], "--fps: does nothing without --reference"),
            ([video, "--tracker", "lucas-kanade"], "--tracker: does nothing without --reference"),
            ([video, "--reference", tmp_path / "unit.npy", "--tracks", tmp_path / "some.npy"],
             "unit.npy: no point in it moves by 2.5 pixels.*or tracks in pixels"),
            ([video, "--images", tmp_path / "a.eps"], "not an image that can be read"),
            ([video, "--device", "foo"], "--device foo: this machine has no such device"),
            ([video, "--reference", tmp_path / "empty.npy"], "cannot be read as tracks")):
        with pytest.raises(UserError, match=said):
            call(*flags)
    (tmp_path / "zip.npy").write_bytes(b"PK\3\4junk")
    with pytest.raises(UserError, match="zip.npy: cannot be read as tracks"):
        call(video, "--reference", tmp_path / "zip.npy")
    shutil.copytree(TINY / "clip", tmp_path / "judge" / "clip")
    shutil.copytree(TINY / "tokenizer", tmp_path / "judge" / "tokenizer")
    (tmp_path / "judge" / "tokenizer" / "scores.json").touch()      # of a run before
    call(video, "--output", tmp_path / "judge/tokenizer/scores.json", clip=tmp_path / "judge/clip")
    for read in ("clip/model.safetensors", "clip/config.json", "tokenizer/merges.txt"):
        with pytest.raises(UserError, match=f"{read}: is read, too; give another file"):
            call(video, "--output", tmp_path / "judge" / read, clip=tmp_path / "judge/clip")
    np.save(tmp_path / "short.npy", walks(4, frames=4).numpy())
    np.save(tmp_path / "turned.npy", walks(9, frames=4).transpose(0, 1).contiguous().numpy())
    for reference, given, name in (("long", "short", "long"), ("short", "long", "long"),
                                   ("short", "turned", "turned")):
        with pytest.raises(UserError, match=f"{name}.npy: its tracks are of 9 frames, the video "
                                            "has 4; tracks are .points, frames, 2"):
            call(video, "--reference", tmp_path / f"{reference}.npy",
                 "--tracks", tmp_path / f"{given}.npy")
    for path, said in (("open_clip.safetensors", "not a CLIP as transformers' CLIPModel saves it"),
                       ("nowhere", "no CLIP there")):
        with pytest.raises(UserError, match=said):
            load_clip(tmp_path / path)
    shutil.copytree(model_folder / "clip", tmp_path / "clip")
    config = json.loads((tmp_path / "clip/config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "clip/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="hidden_act is 'gelu'"):
        load_clip(tmp_path / "clip")
    for wrong, said in (({"num_attention_heads": 7}, "cannot be divided into 7 heads"),
                        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
                        ("a text", "vision_config is 'a text'")):
        (tmp_path / "clip/config.json").write_text(json.dumps(config | {"vision_config": wrong}))
        with pytest.raises(UserError, match=said):
            load_clip(tmp_path / "clip")
    shutil.copytree(model_folder / "clip", tmp_path / "other" / "clip")
    shutil.copytree(model_folder / "tokenizer", tmp_path / "other" / "tokenizer")
    vocabulary = tmp_path / "other" / "tokenizer" / "vocab.json"
    words = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(words | {"grown</w>": 10 ** 5}))
    with pytest.raises(UserError, match="vocab.json"):
        load_clip(tmp_path / "other" / "clip")
    (tmp_path / "other" / "clip" / "tokenizer.json").touch()        # its own, then
    with pytest.raises(UserError, match="clip/tokenizer.json"):
        load_clip(tmp_path / "other" / "clip")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")    # more than Pillow opens
    for read in (metrics.open_image, metrics.read_frames):
        with pytest.raises(UserError, match="huge.png: not a"):
            read(tmp_path / "huge.png")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"cv2 is not installed: pip install -e \"\.\[eval\]\""):
        call(video, "--reference", video)


def test_points_that_do_not_come_home_are_lost():
    pytest.importorskip("cv2")
    unlike = [pictures(1, 64, 64, seed)[0] for seed in range(4)]
    assert len(tracks.lucas_kanade(unlike)) < 30        # of 3025
    assert len(tracks.grid(256, 256)) == 3025


@pytest.mark.parametrize("size, fits", [((34, 2), False), ((2, 34), False), ((32, 2), True)])
def test_narrow_frames_do_not_fill_the_memory(size, fits):
    frames = [Image.new("RGB", size)] * 2
    if fits:
        assert max(tracks.resized(frames).shape) == tracks.NARROWEST * tracks.SIDE
    else:
        with pytest.raises(UserError, match=f"frames of {size[0]} x {size[1]} pixels are too narr"):
            tracks.resized(frames)


def test_a_video_against_itself_is_1():
    pytest.importorskip("cv2")
    video = TINY / "examples" / "motion.mp4"
    own = tracks.lucas_kanade(metrics.read_frames(video))
    reference = metrics.reference_tracks(video, 16, 8.0, "lucas-kanade")
    assert torch.equal(own, reference) and metrics.motion_fidelity(own, reference) == (
        pytest.approx(1))


def test_cotracker_is_shown_levels_of_0_to_255(monkeypatch):
    shown = []

    def model(video, grid_size):
        shown.append(video)
        return torch.zeros(1, video.shape[1], grid_size ** 2, 2), None
    model.parameters = lambda: iter([torch.zeros(1)])
    monkeypatch.setattr(tracks, "cotracker_model", lambda: model)
    assert tracks.cotracker([Image.new("RGB", (64, 64), "white")] * 3).shape == (3025, 3, 2)
    assert shown[0].shape == (1, 3, 3, 256, 256) and shown[0].max() == 255


def test_the_published_form_is_one_sided():
    a, b = walks(7), walks(5, seed=1)
    there, back = (metrics.motion_fidelity_published(*each) for each in ((a, b), (b, a)))
    assert metrics.fidelity_scores(a, b)["motion fidelity (published)"] == there != back


def test_each_video_has_its_prompt(call, tmp_path):
    shutil.copy(tmp_path / "4.mp4", tmp_path / "same.mp4")
    call(tmp_path / "4.mp4", tmp_path / "same.mp4", "--prompt", "a red ball", "a blue fish",
         "--output", tmp_path / "scores.json")
    one, other = json.loads((tmp_path / "scores.json").read_text())["videos"].values()
    assert one["CLIP-T"] != other["CLIP-T"] and one["consistency"] == other["consistency"]


def test_the_reference_is_read_at_its_rate(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(metrics, "read_video",
                        lambda *of: seen.append(of) or torch.zeros(3, 2, 8, 8))
    monkeypatch.setitem(metrics.TRACKERS, "cotracker", lambda frames: torch.zeros(0, 2, 2))
    metrics.reference_tracks(tmp_path / "a.mp4", 2, 4.0, "cotracker")
    assert seen == [(tmp_path / "a.mp4", 2, 4.0, tracks.SIDE)]
