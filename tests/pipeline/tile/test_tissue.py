"""Tissue masks: what the classical rule keeps and drops, and the share of tissue in a patch."""

import json
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.tile import tissue
from pipeline.tile.tissue import patch_tissue_fraction, tissue_mask
from stores.errors import OptionError
from tests.tools.settings import SHARED

DATA = SHARED
MPP = 8.0

GLASS = (242, 242, 242)
TISSUES = {
    "stroma": (225, 150, 190),
    "pale": (240, 212, 230),
    "dense nuclei": (95, 55, 135),
    "bluish nuclei": (110, 100, 165),
    "dark eosin": (190, 75, 125),
    "blood in it": (205, 95, 120),
}
PENS = {
    "green": (48, 157, 138),
    "blue": (55, 110, 199),
    "red": (196, 22, 28),
    "light red": (211, 46, 72),
    "black": (45, 42, 46),
    "maroon": (62, 29, 48),
}


def _canvas(
    colour: tuple[int, int, int] = GLASS, shape: tuple[int, int] = (300, 400)
) -> npt.NDArray[np.uint8]:
    return np.full((*shape, 3), colour, np.uint8)


def _noisy(image: npt.NDArray[np.uint8], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Grain of a scanner and a soft focus; deterministic."""
    grain = np.random.default_rng(seed).normal(0, 3, image.shape)
    return np.asarray(
        cv2.GaussianBlur(np.clip(image + grain, 0, 255).astype(np.uint8), (0, 0), 0.8), np.uint8
    )


def _blob(image: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Draw tissue with darker and lighter spots into the left half; return where it is."""
    truth = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(truth, (130, 150), (90, 110), 20, 0, 360, 1, -1)
    spots = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, truth.shape), (0, 0), 2)
    strength = np.clip(1 + spots, 0.6, 1.4)[..., None]
    density = -np.log(np.array(colour) / 245) * strength
    image[truth > 0] = (245 * np.exp(-density)).astype(np.uint8)[truth > 0]
    return truth > 0


def _iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("colour", TISSUES.values(), ids=TISSUES)
def test_tissue_of_every_colour_is_kept(colour: tuple[int, int, int]) -> None:
    image = _canvas()
    truth = _blob(image, colour)
    mask = tissue_mask(_noisy(image), thumbnail_mpp=MPP)
    assert mask.dtype == np.bool_
    assert mask.shape == image.shape[:2]
    assert _iou(mask, truth) > 0.95


@pytest.mark.parametrize(
    "colour",
    [GLASS, (255, 255, 255), (235, 240, 222), (232, 222, 236), (222, 228, 240), (150, 150, 150), (0, 0, 0)],
    ids=["glass", "white", "yellowish", "pinkish", "bluish", "grey", "black"],
)
def test_blank_slide_has_no_tissue(colour: tuple[int, int, int]) -> None:
    for image in (_canvas(colour), _noisy(_canvas(colour))):
        assert not tissue_mask(image, thumbnail_mpp=MPP).any()


def test_pale_tissue_beside_dark_is_kept() -> None:
    image = _canvas()
    truth = _blob(image, TISSUES["pale"])
    image[40:260, 250:390] = TISSUES["dense nuclei"]
    truth[40:260, 250:390] = True
    assert _iou(tissue_mask(_noisy(image), thumbnail_mpp=MPP), truth) > 0.95


def test_tinted_glass_around_tissue_is_not_tissue() -> None:
    image = _canvas((232, 222, 236))
    truth = _blob(image, TISSUES["stroma"])
    assert _iou(tissue_mask(_noisy(image), thumbnail_mpp=MPP), truth) > 0.95


@pytest.mark.parametrize("colour", PENS.values(), ids=PENS)
@pytest.mark.parametrize("blur_px", [0.5, 8.0])
def test_pen_on_glass_is_dropped_and_tissue_beside_it_kept(
    colour: tuple[int, int, int], blur_px: float
) -> None:
    image = _canvas()
    cv2.line(image, (330, 20), (350, 280), colour, 40)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur_px), np.uint8)
    truth = _blob(image, TISSUES["stroma"])
    mask = tissue_mask(_noisy(image), thumbnail_mpp=MPP)
    assert not mask[:, 260:].any()
    assert _iou(mask, truth) > 0.95


@pytest.mark.parametrize("pen", ["green", "blue", "red", "black"])
def test_pen_over_tissue_is_dropped(pen: str) -> None:
    image = _canvas()
    truth = _blob(image, TISSUES["stroma"])
    stroke = np.zeros(image.shape[:2], np.uint8)
    cv2.line(stroke, (40, 60), (230, 250), 1, 40)
    image[stroke > 0] = (image[stroke > 0] * (np.array(PENS[pen]) / 245)).astype(np.uint8)
    mask = tissue_mask(_noisy(image), thumbnail_mpp=MPP)
    assert mask[stroke > 0].mean() < 0.01
    assert _iou(mask, truth & (stroke == 0)) > 0.85


def test_edges_dust_and_hairs_are_dropped() -> None:
    image = _canvas()
    cv2.line(image, (20, 0), (60, 300), (40, 40, 40), 3)
    cv2.line(image, (0, 290), (400, 280), (150, 120, 150), 2)  # coloured fringe
    cv2.ellipse(image, (250, 150), (60, 40), 0, 0, 360, (200, 200, 200), 2)  # bubble
    for x, y in np.random.default_rng(0).integers(10, 290, (40, 2)).tolist():
        cv2.circle(image, (x, y), 2, (110, 60, 130), -1)
    assert not tissue_mask(_noisy(image), thumbnail_mpp=MPP).any()


def test_fat_is_filled_and_a_lumen_is_not() -> None:
    image = _canvas(TISSUES["stroma"])
    for x in range(20, 200, 14):
        for y in range(20, 280, 14):
            cv2.circle(image, (x, y), 5, GLASS, -1)  # 80 um
    cv2.circle(image, (300, 150), 40, GLASS, -1)  # 640 um
    mask = tissue_mask(_noisy(image), thumbnail_mpp=MPP)
    assert mask[:, :210].mean() > 0.99
    assert mask[150, 300] == np.False_
    assert (~mask).sum() == pytest.approx(np.pi * 40**2, rel=0.15)


def test_black_and_white_is_not_tissue() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    image[50:150, 50:150] = 255
    assert not tissue_mask(image, thumbnail_mpp=MPP).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 5)])
def test_tiny_thumbnails(shape: tuple[int, int]) -> None:
    assert tissue_mask(_canvas(TISSUES["stroma"], shape), thumbnail_mpp=MPP).shape == shape


def test_limits_are_physical() -> None:
    image = _canvas()
    truth = _blob(image, TISSUES["stroma"])
    assert _iou(tissue_mask(_noisy(image), thumbnail_mpp=MPP), truth) > 0.95
    assert not tissue_mask(_noisy(image), thumbnail_mpp=0.7).any()  # the blob has 15,000 um2 now: dust


def test_same_mask_again_and_with_other_threads() -> None:
    image = _canvas()
    _blob(image, TISSUES["pale"])
    cv2.line(image, (40, 60), (230, 250), PENS["green"], 40)
    image = _noisy(image)
    threads = cv2.getNumThreads()
    try:
        masks = []
        for n in (1, 2, 3):
            cv2.setNumThreads(n)
            masks.append(tissue_mask(image, thumbnail_mpp=MPP))
    finally:
        cv2.setNumThreads(threads)
    assert all((mask == masks[0]).all() for mask in masks)


def test_rule_goes_into_the_recipe() -> None:
    plain = tissue.CLASSICAL.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["kind"] == "classical"
    assert replace(tissue.CLASSICAL, colour_min=60).to_json() != plain
    assert tissue.USER_MASK.to_json() == {"kind": "mask", "version": 1}
    with pytest.raises(OptionError, match="'otsu'; allowed: classical, mask, none"):
        tissue.TissueRule(kind="otsu")  # type: ignore[arg-type]


def test_rules_that_are_not_classical() -> None:
    assert tissue_mask(_canvas(), tissue.TissueRule(kind="none"), thumbnail_mpp=MPP).all()
    with pytest.raises(ValueError, match="load_user_mask"):
        tissue_mask(_canvas(), tissue.USER_MASK, thumbnail_mpp=MPP)
    with pytest.raises(ValueError, match="uint8"):
        tissue_mask(_canvas().astype(np.float32), thumbnail_mpp=MPP)


def _real(name: str) -> npt.NDArray[np.uint8]:
    path = DATA / "tissue_mask" / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize(
    "name",
    ["no-tissue.png", "no-tissue-line.png", "no-tissue-green-pen.png", "no-tissue-red-pen.png"],
)
def test_real_picture_without_tissue_gives_no_patch(name: str, mpp: float) -> None:
    image = _real(name)
    mask = tissue_mask(image, thumbnail_mpp=mpp)
    side = round(128 / mpp)
    corners = np.arange(0, 512 - side + 1, side)
    x, y = (axis.ravel() for axis in np.meshgrid(corners, corners))
    assert (patch_tissue_fraction(mask, x, y, (side, side), (512, 512)) < 0.5).all()
    assert mask.mean() < 0.005


# What is tissue and what is pen by eye, as rectangles (x, y, x_end, y_end); share of tissue as measured +- 0.03.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mpp", "share", "tissue_in", "none_in"),
    [
        ("tcga-lung-rgb.png", 0.5, 1.00, [(0, 0, 512, 512)], []),
        ("tcga-green-pen.png", 4.0, 0.736, [(420, 0, 754, 631)], [(300, 120, 380, 300), (180, 420, 300, 631)]),
        ("tcga-red-pen.png", 4.0, 0.547, [(250, 150, 471, 448)], [(0, 0, 60, 448), (60, 130, 150, 320)]),
        ("wsi-blue-pen.png", 45.0, 0.317, [(72, 72, 97, 80)], [(150, 57, 174, 77), (148, 98, 165, 133)]),
        ("diagnostic-slide-thumb-rgb.png", 45.0, 0.443, [(125, 165, 165, 190)], [(130, 485, 380, 525)]),
    ],
)  # fmt: skip
def test_real_picture_with_tissue(
    name: str,
    mpp: float,
    share: float,
    tissue_in: list[tuple[int, ...]],
    none_in: list[tuple[int, ...]],
) -> None:
    mask = tissue_mask(_real(name), thumbnail_mpp=mpp)
    assert mask.mean() == pytest.approx(share, abs=0.03)
    for x, y, x_end, y_end in tissue_in:
        assert mask[y:y_end, x:x_end].mean() > 0.95
    for x, y, x_end, y_end in none_in:
        assert mask[y:y_end, x:x_end].mean() < 0.02


@pytest.mark.parametrize(
    ("name", "mpp", "share"),
    [("CMU-1-Small-Region.svs", 0.499, 0.406), ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 0.661)],
)
def test_real_slide(name: str, mpp: float, share: float) -> None:
    path = DATA / "slides" / name
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as slide:
        size = slide.dimensions
        thumbnail = np.asarray(slide.get_thumbnail((size[0] // 16, size[1] // 16)).convert("RGB"))
    mask = tissue_mask(thumbnail, thumbnail_mpp=size[0] * mpp / thumbnail.shape[1])
    assert mask.mean() == pytest.approx(share, abs=0.03)


def test_real_mask_is_not_tissue() -> None:
    path = DATA / "bad_slides" / "small_pyramid_mask.tif"
    if not path.is_file():
        pytest.skip("no bad_slides here")
    with Image.open(path) as image:
        assert not tissue_mask(np.asarray(image.convert("RGB")), thumbnail_mpp=MPP).any()


def _naive_share(mask: npt.NDArray[np.bool_], x: int, y: int, side: int, size_px0: tuple[int, int]) -> float:
    """Look up the mask at every level-0 pixel, cut into `k` by `k` so that borders of the mask fall between."""
    h, w = mask.shape
    x_cell = np.arange(x * w, (x + side) * w) // size_px0[0]  # w steps a pixel
    y_cell = np.arange(y * h, (y + side) * h) // size_px0[1]
    inside = ((y_cell >= 0) & (y_cell < h))[:, None] & ((x_cell >= 0) & (x_cell < w))[None]
    values = mask[np.clip(y_cell, 0, h - 1)[:, None], np.clip(x_cell, 0, w - 1)[None]]
    return float((values & inside).mean())


@given(data=st.data())
def test_share_equals_a_naive_reference(data: st.DataObject) -> None:
    h, w = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    size_px0 = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    mask = np.array(bits).reshape(h, w)
    side = data.draw(st.integers(1, 30))
    corners = data.draw(
        st.lists(st.tuples(st.integers(-10, 70), st.integers(-10, 70)), min_size=1, max_size=5)
    )
    x, y = np.array(corners, np.int32).T
    share = patch_tissue_fraction(mask, x, y, (side, side), size_px0)
    assert share.dtype == np.float32
    expected = [_naive_share(mask, *corner, side, size_px0) for corner in corners]
    np.testing.assert_allclose(share, expected, atol=1e-6)


def test_share_of_half_is_half() -> None:
    mask = np.zeros((300, 400), bool)
    mask[:, 1::2] = True
    x = np.arange(0, 4000 - 256, 256, dtype=np.int32)
    share = patch_tissue_fraction(mask, x, np.zeros_like(x), (200, 200), (4000, 3000))
    assert (share[x % 20 == 0] == 0.5).all()
    assert patch_tissue_fraction(mask, x[:0], x[:0], (256, 256), (4000, 3000)).shape == (0,)
