"""Which tests stay together: pytest's hooks for the order of tests, and for what each worker is given."""

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# Their tests share one edge, or whole suites of a dozen processes, which take seconds to start: these folders come first,
# each in one worker, and what they share ends with them.
ONE_SUITE = ("e2e", "access", "gateway")


def unit_of(nodeid: str) -> str:
    """What stays together in one worker: the tests of a file, or of a folder of ONE_SUITE."""
    path = nodeid.split("::", 1)[0]
    folder = path.removeprefix("tests/").split("/", 1)[0]
    return folder if folder in ONE_SUITE else path


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each worker a unit after the other, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> UnitScheduling:
    return UnitScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts each unit's tests side by side again, which were shuffled, and the units of ONE_SUITE first."""
    places = {unit: place for place, unit in enumerate(ONE_SUITE)}
    for item in items:
        places.setdefault(unit_of(item.nodeid), len(places))
    items.sort(key=lambda item: places[unit_of(item.nodeid)])
