"""Pathfinder: the release can be read, and new images follow the rules of the original."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hgrn.data.lra.pathfinder import HARD, PathfinderData, prepare
from hgrn.data.lra.pathfinder_drawing import FINE, _tables, crossing, draw, label_by_flood, undashed
from hgrn.data.lra.pathfinder_generator import contact_sheet, generate
from hgrn.data.lra.pathfinder_settings import arena_settings
from hgrn.errors import UserError

NUMBER = 30


def metadata_row(index: int, label: int) -> list[str]:
    return [
        "imgs/0",
        f"sample_{index}.png",
        str(index),
        str(label),
        "1.0",
        "14",
        "4",
        "2",
        "0.5",
        "1",
        "1",
    ]


@pytest.fixture
def release(tmp_path):
    """Grey images whose brightness is their number, in batches 2 and 10, which sort as numbers."""
    folder = tmp_path / "pathfinder32" / HARD
    (folder / "metadata").mkdir(parents=True)
    for batch in (2, 10):
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        lines = []
        for index in range(NUMBER // 2):
            number = index + (NUMBER // 2 if batch == 10 else 0)
            name = f"sample_{index}.png"
            Image.fromarray(np.full((32, 32), number, np.uint8)).save(
                folder / "imgs" / str(batch) / name
            )
            lines.append(" ".join([f"imgs/{batch}", name, *metadata_row(index, number % 2)[2:]]))
        (folder / "metadata" / f"{batch}.npy").write_text("".join(line + "\n" for line in lines))
    return tmp_path / "pathfinder32"


def load(folder, tmp_path, **settings):
    return prepare(PathfinderData(str(folder), cache=str(tmp_path / "cache"), **settings))


def test_splits_are_those_of_the_published_runs(release, tmp_path):
    """Batches are sorted by number, then split as torch's `random_split` does with seed 42."""
    data = load(release, tmp_path)
    parts = torch.utils.data.random_split(
        range(NUMBER), [24, 3, 3], generator=torch.Generator().manual_seed(42)
    )
    for split, part in zip(("train", "validation", "test"), parts):
        images = data.splits[split].images
        assert images.shape == (len(part), 1, 32, 32) and images.dtype == np.uint8
        assert images[:, 0, 5, 7].tolist() == list(part)
        assert data.splits[split].labels.tolist() == [number % 2 for number in part]
    assert data.num_classes == 2
    pixels = data.normalised(np.array([[[[0, 255]]]], np.uint8))
    assert pixels.dtype == torch.float32 and pixels.ravel().tolist() == [-1, 1]


def test_binary_metadata_give_the_same(release, tmp_path):
    """As the original generator writes it, an array of text by numpy.save."""
    expected = load(release, tmp_path)
    for table in (release / HARD / "metadata").iterdir():
        rows = [line.split() for line in table.read_text().splitlines()]
        with open(table, "wb") as file:
            np.save(file, np.array(rows))
    again = load(release, tmp_path)
    assert again.fingerprint == expected.fingerprint


def test_empty_images_are_left_out(release, tmp_path):
    (release / HARD / "imgs" / "2" / "sample_4.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 empty image files are left out: .*imgs/2/sample_4.png"):
        data = load(release, tmp_path)
    assert sum(len(split) for split in data.splits.values()) == NUMBER - 1
    assert 4 not in np.concatenate([split.images[:, 0, 0, 0] for split in data.splits.values()])


def test_a_changed_image_in_an_old_folder_is_read_again(release, tmp_path):
    """Its folder keeps its time: only the file's own tells."""
    before = load(release, tmp_path)
    folder = release / HARD / "imgs" / "2"
    times = folder.stat()
    Image.fromarray(np.full((32, 32), 99, np.uint8)).save(folder / "sample_4.png")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(release, tmp_path)
    pixels = np.concatenate([split.images[:, 0, 0, 0] for split in after.splits.values()])
    assert after.fingerprint != before.fingerprint and 99 in pixels and 4 not in pixels


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda folder: (folder / "imgs/2/sample_4.png").unlink(),
            "2.npy:5: the image .*sample_4.png cannot be read",
        ),
        (
            lambda folder: (folder / "imgs/2/sample_4.png").write_bytes(b"x"),
            "2.npy:5: the image .* cannot be read",
        ),
        (
            lambda folder: Image.new("L", (8, 8)).save(folder / "imgs/2/sample_4.png"),
            "must be of one size",
        ),
        (
            lambda folder: (folder / "metadata/2.npy").write_text("imgs/2 sample_0.png 0 2\n"),
            "2.npy:1: a row must start",
        ),
        (
            lambda folder: (folder / "metadata/2.npy").write_bytes(b"\x93NUMPY\x01"),
            "neither a table of text nor an array",
        ),
        (
            lambda folder: (folder / "metadata/2.npy").rename(folder / "metadata/two.npy"),
            "by the number of its batch",
        ),
        (
            lambda folder: (
                (folder / "metadata/10.npy").write_text("")
                and (folder / "metadata/2.npy").write_text("")
            ),
            "has 15 images|has 0 images",
        ),
    ],
)
def test_damaged_files_are_named(release, tmp_path, damage, message):
    damage(release / HARD)
    if message.startswith("has"):
        (release / HARD / "metadata/2.npy").write_text("")
    with pytest.raises(UserError, match=message):
        load(release, tmp_path)


def test_missing_folder_is_named(release, tmp_path):
    with pytest.raises(UserError, match="has no curv_baseline/metadata"):
        load(release, tmp_path, difficulty="curv_baseline")


@pytest.fixture(scope="module")
def drawings():
    return [draw(arena_settings(32), seed=1, index=index) for index in range(300)]


def test_labels_agree_with_a_flood_of_the_undashed_drawing(drawings):
    assert [label_by_flood(drawing) for drawing in drawings] == [
        drawing.label for drawing in drawings
    ]
    assert 0.4 < np.mean([drawing.label for drawing in drawings]) < 0.6


@pytest.mark.parametrize("size", [64, 128, 256])
def test_labels_of_larger_images_agree_too(size):
    larger = [draw(arena_settings(size), seed=2, index=index) for index in range(6)]
    assert [label_by_flood(drawing) for drawing in larger] == [drawing.label for drawing in larger]
    assert {drawing.label for drawing in larger} == {0, 1}


def test_flood_sees_a_wrong_label(drawings):
    """Markers on the ends of the other pair: the flood must say the opposite."""
    for drawing in drawings[:50]:
        (first, second), label = drawing.targets, drawing.label
        start, other = (
            (first, second) if tuple(first.turns[0]) == drawing.markers[0] else (second, first)
        )
        end = other if label else start
        wrong = replace(drawing, markers=(drawing.markers[0], tuple(end.turns[-1].tolist())))
        assert label_by_flood(wrong) == 1 - label


def test_without_crossings_one_colour_is_enough():
    settings = arena_settings(32, contour_length=9, crossings=False)
    for index in range(30):
        drawing = draw(settings, seed=0, index=index)
        assert not crossing(drawing)
        first, second = undashed(drawing)
        widened = np.pad(first, 1)
        shifts = [
            widened[dy : dy + 32 * FINE, dx : dx + 32 * FINE] for dy in range(3) for dx in range(3)
        ]
        assert not (np.logical_or.reduce(shifts) & second).any()
        assert label_by_flood(drawing) == drawing.label


def test_contours_keep_the_rules(drawings):
    """Each paddle ends on a circle around its pivot, pivots follow each other straight on, and no
    paddle enters an earlier zone, except those of two paddles that were not claimed by then."""
    settings = arena_settings(32)
    _, tables = _tables(settings, 1)
    reach = tables.zones.shape[1] // 2
    for drawing in drawings[:40]:
        zone = np.zeros((32 + 2 * reach,) * 2)
        zone[reach:-reach, reach:-reach] = 1
        zone[reach + 1 : -reach - 1, reach + 1 : -reach - 1] = 0
        for number in range(settings.contour_length):
            for contour in drawing.targets:
                y, x, orientation = contour.paddles[number]
                stamp = tables.zones[orientation]
                if number:
                    before = contour.paddles[number - 1]
                    distance = np.hypot(*(contour.paddles[number, :2] - contour.turns[number]))
                    assert 3 - 1.5 < distance < 3 + 1.5  # paddle and margin, in whole pixels
                    assert (zone[y : y + len(stamp), x : x + len(stamp)] + stamp).max() < 1.8
                    claimed = zone[
                        before[0] : before[0] + len(stamp), before[1] : before[1] + len(stamp)
                    ]
                    np.maximum(claimed, tables.zones[before[2]], out=claimed)
        ends = [
            tuple(contour.turns[which].tolist()) for contour in drawing.targets for which in (0, -1)
        ]
        assert set(drawing.markers) <= set(ends)


def test_image_shows_markers_and_contours(drawings):
    """Grey levels at 32 pixels. A dash is half a pixel wide, so a distractor (2) shows as about 1
    and a long contour (1.5) as 3/4 of that; a marker has 1. All are scaled to the full range."""
    assert any(drawing.distractors for drawing in drawings)
    for drawing in drawings[:100]:
        image = drawing.image
        assert (
            image.dtype == np.uint8
            and image.shape == (32, 32)
            and image.min() == 0
            and image.max() == 255
        )
        assert all(image[marker] >= 200 for marker in drawing.markers)
        covered = np.zeros((32, 32), bool)
        for contour in (*drawing.targets, *drawing.distractors):
            for (y, x), (next_y, next_x) in zip(contour.turns[:-1], contour.turns[1:]):
                for part in np.linspace(0, 1, 20):
                    row = round(y + part * (next_y - y))
                    column = round(x + part * (next_x - x))
                    covered[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        for y, x in drawing.markers:
            covered[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
        assert image[~covered].max() < 40  # ink only where something was drawn
        longs = [image[y, x] for contour in drawing.targets for y, x, _ in contour.paddles[2:-1]]
        shorts = [image[y, x] for contour in drawing.distractors for y, x, _ in contour.paddles]
        if shorts:
            assert np.mean(shorts) > np.mean(longs)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_images_depend_on_seed_and_index_alone(size):
    settings = arena_settings(size, contour_length=6)
    first = draw(settings, 5, 3)
    draw(settings, 6, 0)
    again = draw(settings, 5, 3)
    assert (first.image == again.image).all() and first.label == again.label
    assert (first.image != draw(settings, 6, 3).image).any()
    assert (first.image != draw(settings, 5, 4).image).any()
    assert first.image.shape == (size, size) and first.margin in settings.margins
    assert len(first.targets[0].paddles) == len(first.targets[1].paddles) == 6


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "pathfinder32"
    return folder, generate(
        folder, arena_settings(32), seed=7, number=250, per_batch=200, processes=2
    )


def test_generated_folder_is_read_back(generated, tmp_path):
    folder, report = generated
    data = load(folder, tmp_path)
    assert {split: len(each) for split, each in data.splits.items()} == {
        "train": 200,
        "validation": 25,
        "test": 25,
    }
    order = torch.randperm(250, generator=torch.Generator().manual_seed(42))
    for place in (0, 17):
        drawing = draw(arena_settings(32), 7, int(order[place]))
        assert (data.splits["train"].images[place, 0] == drawing.image).all()
        assert data.splits["train"].labels[place] == drawing.label
    assert sum(int(split.labels.sum()) for split in data.splits.values()) == report["label_1"]


def test_generated_metadata_are_in_the_format_of_the_release(generated):
    folder, _ = generated
    lines = (folder / HARD / "metadata" / "1.npy").read_text().splitlines()
    assert len(lines) == 50
    label = draw(arena_settings(32), 7, 203).label
    assert lines[3] == f"imgs/1 sample_3.png 3 {label} 1.0 14 4 2 0.5 1 1"
    assert sorted(path.name for path in (folder / HARD).iterdir()) == [
        "imgs",
        "metadata",
        "report.json",
    ]


def test_files_do_not_depend_on_processes(generated, tmp_path):
    folder, report = generated
    assert (
        generate(tmp_path, arena_settings(32), seed=7, number=250, per_batch=200, processes=1)
        == report
    )
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 250 + 2 + 1
    assert files == sorted(
        path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert all((folder / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_easier_sets_have_folders_of_their_own(tmp_path):
    for length, name in ((6, "curv_baseline"), (9, "curv_contour_length_9")):
        generate(tmp_path, arena_settings(32, length, num_distractors=0), number=10, processes=1)
        assert len(load(tmp_path, tmp_path, difficulty=name).splits["train"]) == 8


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda out: generate(out, arena_settings(32), number=0),
            "number must be at least 1; got 0",
        ),
        (
            lambda out: generate(out, arena_settings(32), per_batch=0),
            "per_batch must be at least 1",
        ),
        (
            lambda out: generate(out, arena_settings(32), number=1, processes=0),
            "processes must be at least 1",
        ),
        (lambda out: arena_settings(48), "size must be one of 32, 64, 128, 256; got 48"),
        (
            lambda out: arena_settings(32, contour_length=2),
            "contour_length must be from 3 to 20; got 2",
        ),
        (
            lambda out: arena_settings(32, num_distractors=-1),
            "num_distractors must not be negative",
        ),
    ],
)
def test_impossible_wishes(tmp_path, call, message):
    with pytest.raises(UserError, match=message):
        call(tmp_path)
    assert not (tmp_path / HARD).exists()


def test_contours_that_do_not_fit_are_given_up(monkeypatch):
    monkeypatch.setattr("hgrn.data.lra.pathfinder_drawing.MAX_PAIRS", 2000)
    with pytest.raises(UserError, match="two contours of 30 paddles do not fit into 32 pixels"):
        draw(replace(arena_settings(32), contour_length=30), 0, 0)


def test_an_existing_set_is_left_alone(generated):
    folder, _ = generated
    with pytest.raises(UserError, match="curv_contour_length_14 exists already"):
        generate(folder, arena_settings(32), number=1)


def test_contact_sheet(drawings):
    sheet = np.array(contact_sheet([drawing.image for drawing in drawings[:5]], columns=3, scale=2))
    assert sheet.shape == (2 * (2 * 33 + 1), 2 * (3 * 33 + 1))
    assert (sheet[2:66:2, 68:132:2] == drawings[1].image).all()
