"""Names of timm's models, `architecture` or `architecture.tag`, checked before anything is built or looked for.

timm itself takes a tag that it does not know for an internal error, or ignores it where no weights are asked for.
"""

from __future__ import annotations

import difflib

from simflow_plugin.errors import ConfigError, SimflowError

NUM_NEAREST = 8


def check_timm_name(name: str, option: str, error: type[SimflowError] = ConfigError) -> None:
    """Refuse a name that timm does not know.

    Args:
        name: architecture, or architecture and tag of its weights: `vit_base_patch14_dinov2.lvd142m`.
        option: that gives it, for the message.
        error: raised in place of `ConfigError`.
    Raises:
        ConfigError: with the nearest names.
    """
    import timm  # imported here: it takes seconds

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=NUM_NEAREST, cutoff=0.5)
        raise error(f"{option}: timm has no model `{name}`.{_nearest(nearest)} See timm.list_models().")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        nearest = difflib.get_close_matches(name, known, n=NUM_NEAREST, cutoff=0.0)
        raise error(
            f"{option}: timm has the model `{architecture}`, but no weights of it tagged `{tag}`.{_nearest(nearest)} "
            f"See timm.list_pretrained('{architecture}.*')."
        )


def _nearest(names: list[str]) -> str:
    return f" Did you mean `{names[0]}`? Nearest: {', '.join(names)}." if names else ""
