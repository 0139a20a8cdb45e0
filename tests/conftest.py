"""No test writes into its user's home, and none finds what another has left in a cache of embeddings."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache_of_the_session(tmp_path_factory: pytest.TempPathFactory):
    """For what lives as long as the session, and for processes that are started from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
