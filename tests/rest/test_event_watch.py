"""However many follow events, the database is asked by one, and by nobody once they have left."""

import asyncio

from tunesmith.rest import job_stream
from tunesmith.rest.job_stream import EventWatch


class Stopping:
    is_stopping = False


def test_one_question_for_all_and_none_for_nobody(monkeypatch):
    monkeypatch.setattr(job_stream, "_LOOK_SECONDS", 0.02)
    asked = []

    async def follow_all():
        watch = EventWatch(None, Stopping())
        monkeypatch.setattr(watch, "_ask", lambda: asked.append(1) or len(asked) // 5)

        async def follow():
            with watch.followed():
                for _ in range(3):
                    await asyncio.wait_for(watch.news.wait(), 10)

        await asyncio.sleep(0.1)
        assert asked == []
        await asyncio.gather(*(follow() for _ in range(50)))
        # Three numbers, each the same five times: one after the other, whoever waits.
        assert 10 <= len(asked) <= 12
        await asyncio.sleep(0.1)
        end = len(asked)
        await asyncio.sleep(0.2)
        assert len(asked) == end
        await follow()

    asyncio.run(follow_all())
