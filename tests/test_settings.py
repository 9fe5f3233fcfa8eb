"""The settings of server and worker as keywords: they cannot differ from the fields of the models."""

from typing import get_type_hints

import pytest
from pydantic import BaseModel, SecretStr

from gearflow.server.settings import ServerOptions, ServerSettings
from gearflow.worker.settings import WorkerOptions, WorkerSettings

WIDER = {
    "token": SecretStr | str | None,
    "postgres": SecretStr | str | None,
    "servers": tuple[str, ...] | list[str] | None,
}
"""Keywords that also take a type that is converted."""


@pytest.mark.parametrize(
    ("settings", "options"), [(ServerSettings, ServerOptions), (WorkerSettings, WorkerOptions)]
)
def test_the_keywords_are_the_fields_of_the_settings(settings: type[BaseModel], options: type) -> None:
    keywords = get_type_hints(options)
    fields = {name: kind for name, kind in get_type_hints(settings).items() if name in settings.model_fields}
    assert list(keywords) == list(settings.model_fields)
    assert keywords == {name: WIDER.get(name, kind) for name, kind in fields.items()}
