"""The page of `simflow app`, in gradio: three tabs over the answers of one run.

It listens on this machine only, unless another address is named, sends nothing to anybody, and loads no font from
elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simflow_plugin.app.answers import ALL_CLASSES, MOST_SAMPLES, Answers
from simflow_plugin.errors import ConfigError, SimflowError
from simflow_plugin.run import load

if TYPE_CHECKING:
    from PIL import Image

LOOPBACK = "127.0.0.1"
LARGEST_UPLOAD = "20mb"
UPLOAD_HEIGHT = 240
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Of every button: all of them compute on one model, whose memory is for one batch."""


def build_page(answers: Answers) -> Any:
    """Return the page, a `gradio.Blocks`.

    Raises:
        ConfigError: if gradio is not installed.
    """
    gradio = _gradio()
    with gradio.Blocks(title=f"{answers.run.loaded.config.name}: SimFlow", analytics_enabled=False) as page:
        gradio.Markdown(answers.title, elem_id="served")
        with gradio.Tabs():
            if answers.has_model:
                with gradio.Tab("Samples"):
                    _samples_tab(gradio, answers)
            with gradio.Tab("An image"):
                _image_tab(gradio, answers)
            with gradio.Tab("Between two images"):
                _interpolation_tab(gradio, answers)
    return page


def serve(run: Path | str, host: str = LOOPBACK, port: int | None = None, **options: Any) -> Any:
    """Load a run, serve its page, and return when it ends.

    Args:
        run: a run directory, an exported folder, or `owner/name` on the Hub.
        host: address to listen on; the default is reached from this machine only.
        port: None takes the first free one from 7860 on.
        options: of `simflow_plugin.load`.
    Raises:
        ConfigError: if gradio is not installed, there is no such run, or the port is taken.
    """
    _gradio()
    return launch(Answers(load(run, **options)), host, port)


def launch(answers: Answers, host: str | None = LOOPBACK, port: int | None = None, waits: bool = True) -> Any:
    """Serve a page; see `serve`.

    Args:
        host: None leaves it to gradio's environment variables, as a Space sets them.
        port: likewise.
        waits: return only when the page ends.
    """
    gradio = _gradio()
    page = build_page(answers)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=not waits,
            max_file_size=LARGEST_UPLOAD,
            theme=gradio.themes.Default(**fonts),
            footer_links=[],
        )
    except OSError as error:
        raise ConfigError(f"simflow app: {error} Name another --port.") from error


def serve_folder(folder: Path | str) -> Any:
    """Serve the exported run of a Hub Space, on the address that the Space names; its `app.py` calls this."""
    return launch(Answers(load(folder)), host=None)


def _gradio() -> Any:
    if find_spec("gradio") is None:
        raise ConfigError("simflow app needs gradio: pip install 'simflow-plugin[app]'")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    return gradio


def _samples_tab(gradio: Any, answers: Answers) -> None:
    with gradio.Row():
        own = answers.run.loaded.config.sampling.guidance
        inputs = [
            _class_choice(gradio, answers, "class"),
            gradio.Slider(
                0, max(5, own), value=own, step=0.1, label="guidance (0: off)", visible=answers.can_guide
            ),
            gradio.Number(0, label="seed", precision=0, elem_id="seed"),
            gradio.Slider(1, MOST_SAMPLES, value=16, step=1, label="samples"),
        ]
    button = gradio.Button("Draw", variant="primary", elem_id="draw")
    grid = _picture(gradio, "samples")
    button.click(_reporting(gradio, answers.samples), inputs, grid, api_name="samples", **ONE_AT_A_TIME)


def _image_tab(gradio: Any, answers: Answers) -> None:
    def examine(image: Image.Image | None) -> tuple[Any, str, Any]:
        if image is None:
            raise gradio.Error("Upload an image first.")
        found = answers.examine(image)
        return found.picture, found.likelihood, found.classes

    with gradio.Row():
        with gradio.Column():
            upload = gradio.Image(
                label="image", type="pil", image_mode=None, height=UPLOAD_HEIGHT, elem_id="upload"
            )
            button = gradio.Button("Examine", variant="primary", elem_id="examine")
        with gradio.Column():
            gradio.Markdown("As the model sees it, and reconstructed:")
            picture = _picture(gradio, "reconstruction")
            likelihood = gradio.Markdown(elem_id="likelihood")
            classes = gradio.Label(
                label="likeliest classes: share of p(image given class), all classes equally likely before",
                num_top_classes=5,
                visible=bool(answers.class_choices),
                elem_id="classes",
            )
    button.click(
        _reporting(gradio, examine),
        [upload],
        [picture, likelihood, classes],
        api_name="examine",
        **ONE_AT_A_TIME,
    )


def _interpolation_tab(gradio: Any, answers: Answers) -> None:
    def between(start: Image.Image | None, end: Image.Image | None, class_name: str | None) -> Image.Image:
        if start is None or end is None:
            raise gradio.Error("Upload two images first.")
        return answers.interpolation(start, end, class_name)

    with gradio.Row():
        ends = [
            gradio.Image(label=name, type="pil", image_mode=None, height=UPLOAD_HEIGHT, elem_id=name)
            for name in ("from", "to")
        ]
    class_ = _class_choice(gradio, answers, "class of both (all: unconditional)")
    button = gradio.Button("Interpolate", variant="primary", elem_id="interpolate")
    strip = _picture(gradio, "strip")
    button.click(_reporting(gradio, between), [*ends, class_], strip, api_name="interpolate", **ONE_AT_A_TIME)


def _class_choice(gradio: Any, answers: Answers, label: str) -> Any:
    if not answers.class_choices:
        return gradio.State(None)
    return gradio.Dropdown(answers.class_choices, value=ALL_CLASSES, label=label)


def _picture(gradio: Any, name: str) -> Any:
    """Return a place for a picture that was computed; a label would lie on top of it."""
    return gradio.Image(
        type="pil",
        format="png",
        interactive=False,
        show_label=False,
        buttons=["download", "fullscreen"],
        elem_id=name,
        label=name,
    )


def _reporting(gradio: Any, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a user's mistake as a message of the page."""

    @wraps(answer)
    def reporting(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except SimflowError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return reporting
