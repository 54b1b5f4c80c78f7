"""Which models this run serves and what for: its own names, and the adapters that its engines have loaded. Pure."""

from __future__ import annotations

from typing import Any

from proxy.errors import NotFound, UnknownModel
from proxy.fleet.fleet import Fleet
from proxy.routes import Route
from proxy.spec import ProxySpec


def models_json(spec: ProxySpec, fleet: Fleet) -> dict[str, Any]:
    length = min((loaded.max_model_len for loaded in fleet.loaded()), default=None)
    shared = {"object": "model", "created": 0, "owned_by": "sluice", "max_model_len": length}
    return {"object": "list", "data": [{"id": model, **shared} for model in _model_ids(spec, fleet)]}


def check_model(model: Any, spec: ProxySpec, fleet: Fleet) -> None:
    """None is the run's own. Raises UnknownModel."""
    if model is None or model in spec.models:
        return
    if model not in (known := _model_ids(spec, fleet)):
        raise UnknownModel(f"the model {model!r} does not exist; this run serves {', '.join(known)}")


def check_task(route: Route, model: str, fleet: Fleet) -> None:
    """Engines of one run do all the same; before one is there, nothing is known. Raises NotFound."""
    loaded = fleet.any_loaded()
    if loaded is not None and route.generates is (not loaded.generates):
        does, needs = (
            ("generates text", "embeds or scores") if loaded.generates else ("embeds or scores", "generates text")
        )
        raise NotFound(f"{route.path} needs a model that {needs}; in this run {model} {does}", param="model")


def _model_ids(spec: ProxySpec, fleet: Fleet) -> list[str]:
    adapters = [model for loaded in fleet.loaded() for model in loaded.models]
    return list(dict.fromkeys([*spec.models, *adapters]))
