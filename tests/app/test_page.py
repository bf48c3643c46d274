"""The page of `simflow app`, driven in a headless Chromium; skipped without gradio, selenium or Chromium.

SIMFLOW_APP_SCREENSHOTS names a folder that gets a picture of each tab.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

import simflow_plugin
from simflow_plugin.app.answers import Answers
from simflow_plugin.errors import ConfigError
from tests.app.images import held_out_image
from tests.commands import simflow
from tests.evaluation.report.conftest import BINARIES
from tests.evaluation.runs import make_run

SECONDS, CSS = 60, "css selector"


def test_without_gradio_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("simflow_plugin.app.page.find_spec", lambda name: None)
    status, output = simflow("app", tmp_path)
    assert status == ConfigError.exit_status
    assert "pip install 'simflow-plugin[app]'" in output


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed (extra `app`)")
    run = os.environ.get("SIMFLOW_APP_RUN") or make_run(tmp_path_factory.mktemp("page") / "flow")
    return Answers(simflow_plugin.load(run))


def test_one_button_computes_at_a_time(answers):
    from simflow_plugin.app.page import build_page

    buttons = [function for function in build_page(answers).fns.values() if function.api_name]
    assert {function.api_name for function in buttons} == {"samples", "examine", "interpolate"}
    assert {(function.concurrency_id, function.concurrency_limit) for function in buttons} == {("model", 1)}


@pytest.fixture(scope="module")
def address(answers):
    from simflow_plugin.app.page import launch

    _, address, _ = launch(answers, waits=False)
    yield address
    import gradio

    gradio.close_all()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    pytest.importorskip("selenium", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with its chromedriver is installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, address):
    driver.get(address)
    found(driver, "#served")
    return driver


def found(driver, selector):
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(_):
        return next((one for one in driver.find_elements(CSS, selector) if one.is_displayed()), None)

    return WebDriverWait(driver, SECONDS, 0.1).until(visible)


def open_tab(driver, name):
    found(driver, "button[role=tab]")
    next(tab for tab in driver.find_elements(CSS, "button[role=tab]") if tab.text == name).click()


def upload(driver, selector, path):
    driver.find_element(CSS, f"{selector} input[type=file]").send_keys(str(path))
    found(driver, f"{selector} img")


def picture(driver, name):
    folder = os.environ.get("SIMFLOW_APP_SCREENSHOTS")
    if folder:
        driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def files(answers, tmp_path):
    for index in (0, 1):
        held_out_image(answers.run, index).save(tmp_path / f"{index}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def test_page_says_which_run_and_weights_it_serves(page, answers):
    text = found(page, "#served").text
    assert answers.run.loaded.config.name in text
    assert answers.digest[:12] in text


def test_samples_are_drawn(page):
    found(page, "#draw").click()
    image = found(page, "#samples img")
    picture(page, "samples")
    assert image.size["width"] > 0
    assert page.execute_script("return arguments[0].naturalWidth", image) == 8 * 48 + 7 * 2


def test_an_uploaded_image_gets_likelihood_and_classes(page, files, answers):
    open_tab(page, "An image")
    upload(page, "#upload", files[0])
    found(page, "#examine").click()
    text = found(page, "#likelihood p").text
    found(page, "#classes h2")
    picture(page, "image")
    assert "bits per dimension" in text
    assert "more likely than" in text
    assert found(page, "#classes h2").text in answers.run.classes


def test_two_images_give_an_interpolation(page, files):
    open_tab(page, "Between two images")
    upload(page, "#from", files[0])
    upload(page, "#to", files[1])
    found(page, "#interpolate").click()
    strip = found(page, "#strip img")
    picture(page, "interpolation")
    assert page.execute_script("return arguments[0].naturalWidth", strip) == 9 * 48 + 8 * 2


def test_a_missing_image_is_said(page):
    open_tab(page, "An image")
    found(page, "#examine").click()
    assert "Upload an image first." in found(page, ".toast-body").text


def test_nothing_outside_is_loaded(page, address):
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [one for one in loaded if not one.startswith((address, "data:", "blob:"))] == []


def test_it_listens_on_this_machine_only(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for host, answers_there in [
        ("127.0.0.1", True),
        *((one, False) for one in others if not one.startswith("127.")),
    ]:
        with socket.socket() as connection:
            connection.settimeout(5)
            assert (connection.connect_ex((host, port)) == 0) == answers_there
