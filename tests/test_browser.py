"""What a browser shows of a run's event files, tab by tab, in a real TensorBoard and a real Chromium.

Every tab is also opened on a run that has nothing for it, where the same assertion must fail.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

import pgce
from pgce.logger import Logger

pytestmark = pytest.mark.browser
BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PLUGINS = {"scalars", "custom_scalars", "images", "hparams", "text", "graphs", "histograms", "pr_curves"}


@contextmanager
def tensorboard(logdir, plugins, last):
    """The address of a TensorBoard that has read what lies there, of each run up to its last tag."""

    def read(path):
        with urllib.request.urlopen(address + path) as answer:
            return json.load(answer)

    log = logdir.with_suffix(".log")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1",
               "--port", "0", "--reload_interval", "1", "--samples_per_plugin", "images=100"]  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
            if found := re.search(r"at (http://127\.0\.0\.1:\d+)/", log.read_text()):
                address = found[1]
                enabled = {
                    name for name, plugin in read("/data/plugins_listing").items() if plugin["enabled"]
                }
                tags = read("/data/plugin/scalars/tags")
                if plugins <= enabled and all(tag in tags.get(run, ()) for run, tag in last.items()):
                    break
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of an agent and one of a classifier, in one folder."""
    root = tmp_path_factory.mktemp("runs")
    common = {"quiet": True, "runs_dir": str(root), "device": "cpu"}
    agent = pgce.agents.PPO.preset("CartPole-v1", run="agent", capture_video=True, **common)
    agent.train(total_timesteps=30_000)
    pgce.agents.Supervised(run="classifier", epochs=8, data="digits", **common).train()
    with tensorboard(
        root, PLUGINS | {"projector"}, {"agent": "eval/mean_reward", "classifier": "eval/brier"}
    ) as address:
        yield address


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run that logged one number, by the writer itself: no tab but Scalars has anything of it."""
    root = tmp_path_factory.mktemp("bare")
    with Logger(root / "run") as logger:
        logger.scalars(1, {"time/fps": 1.0})
    with tensorboard(root, {"scalars"}, {"run": "time/fps"}) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=path, headless=True,
            args=FLAGS, viewport={"width": 1400, "height": 1000},
        )  # fmt: skip
        yield context
        context.close()


@contextmanager
def opened(browser, address, where):
    """A page, whose errors fail the test."""
    errors = []
    page = browser.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(f"{address}/{where}", wait_until="domcontentloaded")
        yield page
    finally:
        page.close()
    assert not errors


def scalars(page, see):
    see(page.locator("tf-scalar-card").first)
    see(page.locator("tf-category-paginated-view").first.locator("path.line[d^=M]").first)


def custom_scalars(page, see):
    see(page.locator("tf-custom-scalar-multi-line-chart-card path.line[d^=M]").first)
    see(page.get_by_text("The weight: mean and spread"))
    see(page.locator("tf-custom-scalar-margin-chart-card path.area[d^=M]").first)


def image(page, see):
    picture = page.locator("tf-image-loader img").first
    see(picture)
    page.wait_for_function(
        "image => image.complete && image.naturalWidth > 100", arg=picture.element_handle()
    )


def film(page, see):
    """A film moves: two looks at it differ."""
    image(page, see)
    picture = page.locator("tf-image-loader img").first
    looks = set()
    for _ in range(40):
        looks.add(picture.screenshot())
        if len(looks) > 2:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the picture stands still: {len(looks)} looks")


def graph(page, see):
    see(page.locator("tf-graph-scene g.node[data-name='actor']"))
    see(page.locator("tf-graph-scene g.node[data-name='critic']"))


def histograms(page, see):
    see(page.locator("vz-histogram-timeseries g.histogram path.outline").first)


def distributions(page, see):
    see(page.locator("vz-distribution-chart path.area[d^=M]").first)


def settings(page, see):
    see(page.locator("tf-markdown-view").get_by_text("pgce.agents.ppo").first)
    see(page.locator("tf-markdown-view td").get_by_text("clip_coef", exact=True))


def curves(page, see):
    see(page.locator("tf-pr-curve-card path.line[d^=M]").first)


def hyperparameters(page, see):
    cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content:visible")
    see(cells.get_by_text("tanh", exact=True))  # of the agent
    see(cells.get_by_text("relu", exact=True))  # of the classifier
    see(cells.get_by_text(re.compile(r"\d\d\d\.\d\d")).first)  # the mean return


def projector(page, see):
    inner = page.frame_locator("iframe").frame_locator("iframe").locator("vz-projector")
    see(inner.get_by_text("Points: 450"))
    see(inner.locator("#scatter canvas").first)


TABS = {
    "scalars": ("#scalars&tagFilter=rollout%2Fep_rew_mean", scalars),
    "custom scalars": ("#custom_scalars", custom_scalars),
    "rows of an agent's batch": ("#images&tagFilter=batch%2Frows", image),
    "confusion matrix": ("#images&tagFilter=confusion_matrix", image),
    "film": ("#images&tagFilter=episode", film),
    "graph": ("#graphs", graph),
    "histograms": ("#histograms", histograms),
    "distributions": ("#distributions", distributions),
    "text": ("#text", settings),
    "PR curves": ("#pr_curves", curves),
    "hyperparameters": ("#hparams", hyperparameters),
    "projector": ("#projector", projector),
}


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_shows_the_run(browser, trained, tab):
    expect = pytest.importorskip("playwright.sync_api").expect
    where, check = TABS[tab]
    with opened(browser, trained, where) as page:
        check(page, lambda locator: expect(locator).to_be_visible(timeout=30_000))


@pytest.mark.parametrize("tab", TABS)
def test_without_data_the_same_look_fails(browser, bare, tab):
    expect = pytest.importorskip("playwright.sync_api").expect
    where, check = TABS[tab]
    with opened(browser, bare, where) as page:
        page.locator("plugin-selector").wait_for()
        with pytest.raises(AssertionError):
            check(page, lambda locator: expect(locator).to_be_visible(timeout=2_000))
