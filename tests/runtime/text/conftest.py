"""Every release's text side, built once."""

from collections.abc import Callable
from functools import cache

import pytest

from deepseek_runtime.text.template import ChatTemplate
from releases import make_release


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChatTemplate]:
    """The chat template of a release, by the name of its file."""
    return cache(lambda name: make_release(name, tmp_path_factory.mktemp("release")))
