"""Make the screenshots in docs/images from the running page, on the embedded model with the demo's images.

python docs/make_screenshots.py [--out DIR]

Needs Chromium, playwright and a few minutes. Parts of the page are found by their elem_ids; tabs and sections, which have
none, by the texts that are passed to `tab` and `unfold`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import ALONE, ARGUMENTS, NAMES  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from ti_trainer import tiny_model  # noqa: E402
from ti_trainer.tiny_model.making.scenes import CONCEPTS, Scene, draw  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WIDTH, HEIGHT, MOST_HEIGHT, COLOURS = 1280, 900, 960, 160
PATIENCE_S = 240  # the first training on a busy machine
NAME, STEPS, PREVIEW_EVERY = "my-star", 600, 100
PLACES = {  # caption -> colours of the top and bottom, whether there is a horizon
    "on a yellow background": ((0.97, 0.88, 0.18), (0.97, 0.88, 0.18), False),
    "on a white background": ((0.93, 0.96, 0.94), (0.93, 0.96, 0.94), False),
    "on grass": ((0.72, 0.87, 0.97), (0.36, 0.66, 0.26), True),
    "at sunset": ((0.45, 0.24, 0.50), (0.99, 0.66, 0.33), False),
    "on sand": ((0.40, 0.74, 0.88), (0.93, 0.82, 0.58), True),
    "at night": ((0.03, 0.04, 0.14), (0.17, 0.16, 0.38), False),
    "in snow": ((0.63, 0.71, 0.82), (0.96, 0.97, 0.99), True),
    "in the sky": ((0.33, 0.62, 0.93), (0.83, 0.92, 0.98), False),
}
SHAPES = ((1200, 800), (800, 1200), (1200, 900), (1100, 640))  # of images, cut out of squares


class Shots:
    """The page in a browser, and what is done on it."""

    def __init__(self, page: Page, out: Path) -> None:
        """`out` is the folder for the screenshots."""
        self.page, self.out = page, out

    def tab(self, text: str) -> None:
        """Show a tab of either level."""
        self.page.locator("[role=tab]:visible").get_by_text(text, exact=True).first.click()
        self.settle()

    def unfold(self, text: str) -> None:
        """Open or close a section."""
        self.page.locator(".label-wrap:visible").get_by_text(text, exact=True).click()

    def part(self, name: str) -> Locator:
        """What has the elem_id ti_trainer_NAME."""
        return self.page.locator(f"#ti_trainer_{name}")

    def fill(self, name: str, text: str) -> None:
        """Type into a field, or choose in a list."""
        field = self.part(name).locator("textarea, input").first
        field.fill(text)
        field.press("Tab")

    def choose(self, name: str, text: str) -> None:
        """Choose the first entry of a list that holds this text."""
        self.part(name).locator("input").first.fill(text)
        self.page.locator("[role=option]").filter(has_text=text).first.click()

    def click(self, name: str) -> None:
        """Press a button."""
        self.part(name).click()

    def images(self, name: str, count: int) -> None:
        """Wait until this number of images is shown there."""
        self.until(lambda: self.part(name).locator("img").count() >= count)
        self.settle()

    def until(self, met: Callable[[], bool]) -> None:
        """Wait for a condition; TimeoutError if it is not met."""
        end = time.monotonic() + PATIENCE_S
        while not met():
            if time.monotonic() > end:
                message = f"the page did not get there in {PATIENCE_S} s"
                raise TimeoutError(message)
            time.sleep(0.2)

    def settle(self) -> None:
        """Let animations end, and take focus and pointer away."""
        self.page.mouse.move(0, 0)
        self.page.evaluate("() => document.activeElement?.blur()")
        self.page.wait_for_timeout(1500)

    def shoot(self, name: str) -> None:
        """Write the page as it is, without the empty part below it, as a small PNG."""
        self.page.evaluate("() => window.scrollTo(0, 0)")
        self.settle()
        bottom = self.page.evaluate(
            "() => Math.max(...[...document.querySelectorAll('.ti-trainer *')].filter((each) => each.offsetParent)"
            ".map((each) => each.getBoundingClientRect().bottom))"
        )
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(int(bottom) + 16, MOST_HEIGHT)}
        image = Image.open(io.BytesIO(self.page.screenshot(full_page=True, clip=clip))).convert("RGB")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(self.out / f"{name}.png", optimize=True)
        sys.stdout.write(f"{self.out / name}.png\n")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page, started in a folder."""
    command = [sys.executable, "-m", "ti_trainer", "page", "--no-browser", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield next(word for line in process.stdout or () for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()


@contextmanager
def browser_page() -> Iterator[Page]:
    """An empty page in a headless Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        sys.exit(f"This needs a browser on the PATH: one of {', '.join(NAMES)}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, f"--host-resolver-rules={ALONE}"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE_S * 1000)
        yield page
        browser.close()


@contextmanager
def demo_folder() -> Iterator[Path]:
    """A folder with the demo dataset and with larger images for Preprocess, some of them poor."""
    folder = Path(tempfile.gettempdir(), "ti-trainer-demo")
    folder.mkdir()
    try:
        make_files(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def make_files(folder: Path) -> None:
    """Write the images that are shown."""
    shutil.copytree(tiny_model.DEMO, folder / NAME)
    photos, checked = folder / "photos", folder / "dataset"
    photos.mkdir()
    for number, (where, (top, bottom, horizon)) in enumerate(PLACES.items(), 1):
        scene = Scene(CONCEPTS[0], 0.26 + 0.02 * (number % 4), (0.05 * (number % 3 - 1), 0.0), top, bottom, horizon)
        width, height = SHAPES[number % len(SHAPES)]
        square = draw(scene, max(width, height))
        left, up = (square.width - width) // 2, (square.height - height) // 2
        square.crop((left, up, left + width, up + height)).save(photos / f"IMG_{number:04}.jpg", quality=92)
        (photos / f"IMG_{number:04}.txt").write_text(f"toy, {where}", encoding="utf-8")
    shutil.copytree(photos, checked)
    first, fourth = (Image.open(photos / f"IMG_000{number}.jpg") for number in (1, 4))
    first.resize((first.width // 3, first.height // 3)).save(checked / "IMG_0001 (1).jpg")
    fourth.filter(ImageFilter.GaussianBlur(12)).save(checked / "IMG_0009.jpg")
    fourth.crop((0, 200, fourth.width, 430)).save(checked / "banner.jpg")


def prepare(shots: Shots) -> None:
    """The tab Preprocess: a preview, the caption editor, the image check and a mask."""
    shots.tab("Preprocess")
    shots.tab("Create dataset")
    shots.fill("preprocess_source", "photos")
    shots.fill("preprocess_destination", "new-dataset")
    shots.choose("preprocess_resize", "focal")
    shots.part("preprocess_flip").locator("input").check()
    shots.click("preprocess_preview")
    shots.images("preprocess_images", 12)
    shots.shoot("preprocess")
    shots.tab("Edit captions")
    shots.fill("captions_folder", "dataset")
    shots.click("captions_load")
    shots.images("captions_gallery", 6)
    shots.part("captions_gallery").locator("img").nth(3).click()
    shots.images("captions_large", 1)
    shots.shoot("captions")
    shots.tab("Image quality")
    shots.fill("quality_folder", "dataset")
    shots.click("quality_start")
    shots.images("quality_images", 4)
    shots.shoot("quality")
    shots.tab("Paint masks")
    shots.fill("masks_folder", "photos")
    shots.click("masks_open")
    canvas = shots.part("masks").locator("canvas:visible").last
    canvas.wait_for()
    shots.settle()
    box = canvas.bounding_box() or {"x": 0, "y": 0, "width": 0, "height": 0}
    shots.page.mouse.move(box["x"] + box["width"] * 0.42, box["y"] + box["height"] * 0.42)
    shots.page.mouse.down()
    for x, y in ((0.58, 0.42), (0.58, 0.5), (0.42, 0.5), (0.44, 0.58), (0.56, 0.58)):
        shots.page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=8)
    shots.page.mouse.up()
    shots.shoot("masks")


def train(shots: Shots) -> None:
    """The tabs Create embedding, Train, Runs and Generate, with a run in between."""
    shots.tab("Create embedding")
    shots.fill("create_name", NAME)
    shots.fill("create_init_text", "star")
    shots.click("create_button")
    shots.part("create_outcome").locator(":visible").first.wait_for()
    shots.shoot("create")
    shots.tab("Train")
    shots.fill("train_images", NAME)
    shots.fill("train_max_steps", str(STEPS))
    shots.click("train_check")
    shots.images("preflight_images", 8)
    shots.shoot("dataset")
    shots.unfold("All options")
    shots.fill("train_preview_every", str(PREVIEW_EVERY))
    shots.fill("train_evaluate_every", "50")
    shots.fill("train_preview_prompt", "a photo of [name] on grass")
    shots.unfold("All options")
    shots.click("train_start")
    shots.images("previews", STEPS // PREVIEW_EVERY - 1)
    shots.shoot("train")
    shots.until(lambda: shots.part("progress").locator("[data-status=done]").count() > 0)
    shots.click("open_run")
    shots.images("runs_previews", 4)
    shots.shoot("runs")
    shots.tab("Generate")
    shots.fill("generate_prompt", f"a photo of a big {NAME} at night")
    shots.click("generate_button")
    shots.images("generate_images", 4)
    shots.shoot("generate")


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", metavar="DIR", help="(default: docs/images)")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with demo_folder() as folder, served(folder) as url, browser_page() as page:
        page.goto(url)
        page.wait_for_function("() => document.querySelector('#ti_trainer_answer :is(textarea, input)')?.value")
        shots = Shots(page, out)
        try:
            train(shots)
            prepare(shots)
        except Exception:
            page.screenshot(path=out / "failed.png")
            sys.stderr.write(f"{out / 'failed.png'} shows the page as it was.\n")
            raise


if __name__ == "__main__":
    main()
