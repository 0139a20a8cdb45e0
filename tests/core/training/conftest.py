import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_no_garbage():
    """Every run ends in a garbage collection, which need not walk through PEFT and Accelerate a hundred times."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
