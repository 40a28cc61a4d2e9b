"""How many searches run at a time, and what becomes of one that nobody waits for any more."""

import asyncio
from functools import partial

from services.memory.recall.admission import Admission


class Works:
    """Work that lasts until it is told to end."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._ends: dict[int, asyncio.Event] = {}

    async def work(self, number: int) -> int:
        self.begun.append(number)
        await self._ends.setdefault(number, asyncio.Event()).wait()
        self.ended.append(number)
        return number

    def end(self, number: int) -> None:
        self._ends.setdefault(number, asyncio.Event()).set()


async def test_so_many_begin_and_the_others_in_the_order_in_which_they_came() -> None:
    admission, works = Admission(most=2), Works()
    tasks = [asyncio.create_task(admission.run(partial(works.work, number))) for number in range(4)]
    await asyncio.sleep(0.01)
    assert works.begun == [0, 1]
    works.end(1)
    await asyncio.sleep(0.01)
    assert works.begun == [0, 1, 2]
    for number in range(4):
        works.end(number)
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3]


async def test_what_nobody_waits_for_ends_all_the_same_and_keeps_its_place_till_then() -> None:
    admission, works = Admission(most=1), Works()
    left = asyncio.create_task(admission.run(lambda: works.work(0)))
    await asyncio.sleep(0.01)
    given_up = asyncio.create_task(admission.run(lambda: works.work(1)))
    waiting = asyncio.create_task(admission.run(lambda: works.work(2)))
    await asyncio.sleep(0.01)
    left.cancel()
    given_up.cancel()
    await asyncio.wait([left, given_up])
    await asyncio.sleep(0.01)
    assert (works.begun, works.ended) == ([0], [])
    works.end(0)
    works.end(2)
    assert await waiting == 2
    assert (works.begun, works.ended) == ([0, 2], [0, 2])
