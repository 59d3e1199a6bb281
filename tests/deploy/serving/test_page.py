"""The page in a headless Chromium: upload, hover, tasks, camera, downloads, errors in words, a phone's screen.

Needs playwright and a Chromium (Debian's, or the one that CHROMIUM names), and is skipped without.
"""

from __future__ import annotations

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.deploy.serving.fakes import listening_service, png
from tests.deploy.test_decoding import png_head

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no Chromium (apt-get install chromium)", allow_module_level=True)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
DESKTOP, PHONE = (1180, 780), (390, 844)
TOKEN = "secret"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium that has never been anywhere."""
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, args=ARGUMENTS, headless=True
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def address():
    with listening_service(max_upload_bytes=200_000) as (address, _):
        yield "http://{}:{}/".format(*address)


@pytest.fixture
def page(browser, address):
    yield from open_page(browser, address)


def open_page(browser, address):
    """A page; whatever it complains about in its console fails the test, requests that are refused or fail excepted."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.set_viewport_size(dict(zip(("width", "height"), DESKTOP, strict=True)))
    complaints = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []


def upload(page, data=None, name="holiday.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": png() if data is None else data})


def shown(page, selector):
    return playwright.expect(page.locator(selector))


def test_an_uploaded_picture_shows_its_segments_under_the_pointer_and_in_the_legend(page):
    upload(page)
    shown(page, "#segments li").to_have_count(2)
    assert page.locator("#segments .name").all_inner_texts() == ["grass", "ball"]
    box = page.locator("#paint").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.4 * box["height"])
    shown(page, "#tip").to_contain_text("ball")
    shown(page, "#tip").to_contain_text("score 0.90 · 175 px · 29.2 %")
    shown(page, "#segments button.on").to_contain_text("ball")
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    shown(page, "#tip").to_contain_text("grass")
    page.mouse.move(5, 5)
    shown(page, "#tip").to_be_hidden()


def test_the_legend_works_with_the_keyboard(page):
    upload(page)
    page.locator("#segments button").nth(1).focus()
    shown(page, "#tip").to_contain_text("ball")
    assert "2 segments: grass, ball" in page.locator("#paint").get_attribute("aria-label")


def test_what_is_painted_are_the_masks_in_the_colors_of_their_classes(page):
    upload(page)
    shown(page, "#legend").to_be_visible()
    painted = page.evaluate(
        """() => {
          const canvas = document.getElementById("paint"), context = canvas.getContext("2d");
          const at = (x, y) => [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
          return [at(0.25, 0.25), at(0.75, 0.75)];
        }"""
    )
    assert painted == [[250, 20, 20, 255], [10, 200, 30, 255]]


def test_overlay_and_json_are_saved(page):
    upload(page)
    shown(page, "#legend").to_be_visible()
    page.locator("#opacity").fill("0")
    with page.expect_download() as download:
        page.click("#save-png")
    assert download.value.suggested_filename == "holiday_segments.png"
    saved = Image.open(download.value.path()).convert("RGB")
    original = Image.open(io.BytesIO(png())).resize(saved.size)
    difference = np.abs(np.asarray(saved, dtype=float) - np.asarray(original, dtype=float))
    assert saved.width * 20 == saved.height * 30 and difference.mean() < 20  # opacity 0: the picture itself
    with page.expect_download() as download:
        page.click("#save-json")
    content = json.loads(download.value.path().read_text())
    assert [item["name"] for item in content["segments"]] == ["grass", "ball"]


def test_another_task_segments_the_same_picture_again(page):
    upload(page)
    shown(page, "#segments li").to_have_count(2)
    page.select_option("#task", "instance")
    shown(page, "#segments .name").to_have_text(["ball", "ball"])
    colors = page.locator("#segments .swatch").evaluate_all("list => list.map(item => item.style.background)")
    assert len(set(colors)) == 2  # instances of one class can be told apart


def test_a_picture_of_the_camera_is_segmented(page):
    page.click("#camera")
    shown(page, "#camera-dialog").to_be_visible()
    page.wait_for_timeout(500)  # the first picture of the camera
    page.click("#shoot")
    shown(page, "#segments li").to_have_count(2)
    shown(page, "#camera-dialog").to_be_hidden()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"no picture", "This is no picture, or a damaged one"),
        (png_head(50_000, 50_000), "pixels that are accepted"),
        (b"0" * 300_000, "The file has 0.3 MB; up to 0.2 MB are accepted."),
    ],
)
def test_errors_are_said_in_words_and_the_next_picture_works(page, data, sentence):
    upload(page, data)
    shown(page, "#error").to_contain_text(sentence)
    shown(page, "#welcome").to_be_visible()
    upload(page)
    shown(page, "#segments li").to_have_count(2)
    shown(page, "#error").to_be_hidden()


def test_a_picture_that_the_browser_cannot_show_is_segmented_all_the_same(page):
    upload(page, png(file_format="TIFF"), "scan.tif")
    shown(page, "#segments li").to_have_count(2)
    shown(page, "#frame").to_be_visible()


def test_a_service_that_is_gone_is_said_and_asked_again(page):
    page.route("**/v1/segment", lambda route: route.abort())
    upload(page)
    shown(page, "#error").to_contain_text("cannot be reached")
    page.unroute("**/v1/segment")
    page.click("#retry")
    shown(page, "#segments li").to_have_count(2)


def test_on_a_phone_nothing_is_wider_than_the_screen(page):
    page.set_viewport_size(dict(zip(("width", "height"), PHONE, strict=True)))
    upload(page, png(60, 200))
    shown(page, "#legend").to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    small = page.evaluate(
        """() => [...document.querySelectorAll("#tools button, #tools select")]
          .filter(node => node.getBoundingClientRect().height < 44 && node.offsetParent).map(node => node.id)"""
    )
    assert small == []  # what a finger should hit


def test_a_token_is_asked_for(browser):
    with listening_service(token=TOKEN) as (address, _):
        for page in open_page(browser, "http://{}:{}/".format(*address)):
            page.fill("#token", "wrong")
            page.press("#token", "Enter")
            shown(page, "#error").to_contain_text("not accepted")
            page.fill("#token", TOKEN)
            page.press("#token", "Enter")
            shown(page, "#task option").to_have_count(3)
            upload(page)
            shown(page, "#segments li").to_have_count(2)
