"""Jobs in the record: states, claims, leases, events; no process and no model."""

import time

import pytest
from sqlalchemy import insert, select, text

from job_workers import JobBench
from tunesmith.errors import RequestError, RunError
from tunesmith.record import job_leases, jobs
from tunesmith.record.job_events import NewEvent, add_events, list_events
from tunesmith.record.job_leases import StaleAttempt, beat, claim, fenced, find_work, leases, note_progress
from tunesmith.record.jobs import ENDS, JobFilter, JobStateError, change_job, list_jobs, move_job
from tunesmith.record.pages import Page
from tunesmith.record.tables import jobs as jobs_table
from tunesmith.runs.job_endings import conclude, take_back

STATES = ["validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"]


@pytest.fixture
def bench(home, database_url, tmp_path):
    bench = JobBench(home, database_url, tmp_path / "no-base")
    yield bench
    bench.close()


def queued(bench, **changes):
    job = bench.submit(**changes)
    with bench.database.write() as connection:
        return change_job(connection, job.id, state="queued")


def taken(bench, owner="me"):
    with bench.database.write() as connection:
        return claim(connection, "training", owner, int(time.time()))


def test_only_states_that_follow_each_other(bench):
    job = bench.submit()
    allowed = {(one, to) for one in STATES for to in jobs._NEXT[one]}
    assert len(allowed) == 19
    for one in STATES:
        for to in STATES:
            with bench.database.write() as connection:
                now = change_job(connection, job.id, state=one)
                if (one, to) in allowed:
                    assert move_job(connection, now, to, to).state == to
                else:
                    with pytest.raises(JobStateError) as refused:
                        move_job(connection, now, to, to)
                    assert refused.value.code == "job_state"


def test_what_has_ended_stays_as_it_is(bench):
    for end in sorted(ENDS):
        job = bench.submit()
        with bench.database.write() as connection:
            change_job(connection, job.id, state=end)
        for ask in (bench.queue.cancel, bench.queue.pause, bench.queue.resume):
            with pytest.raises(JobStateError):
                ask(job.id)
        assert bench.job(job.id).state == end


def test_claims_go_by_priority_then_by_order(bench):
    asked = [queued(bench, priority=priority) for priority in (0, 5, 0, 5)]
    order = [taken(bench).id for _ in range(4)]
    assert order == [asked[number].id for number in (1, 3, 0, 2)]
    assert taken(bench) is None


def test_the_next_job_of_very_many_is_found_by_the_index_alone(bench):
    """Else each claim, and each look for one, would read and sort all that waits."""
    first = queued(bench, priority=1)
    with bench.database.read() as connection:
        row = connection.execute(select(jobs_table).where(jobs_table.c.id == first.id)).mappings().one()
    with bench.database.write() as connection:
        many = [{**row, "seq": row["seq"] + n, "id": f"{first.id}-{n}", "priority": n % 2} for n in range(1, 20_000)]
        connection.execute(insert(jobs_table), many)
        connection.execute(text("ANALYZE"))
    with bench.database.read() as connection:
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        query = job_leases._waiting("training", int(time.time()))
        statement = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = [str(line) for line in connection.execute(text(f"{explain} {statement}"))]
    assert sum("ix_jobs_queue" in line for line in plan) == 1, plan
    assert not [line for line in plan for word in ("Sort", "TEMP B-TREE", "Seq Scan", "SCAN") if word in line], plan
    assert taken(bench).id == first.id


def test_a_claim_waits_for_its_time_but_not_for_a_clock_that_jumped(bench):
    job = queued(bench)
    now = int(time.time())
    with bench.database.write() as connection:
        change_job(connection, job.id, not_before=now + 10)
        assert not find_work(connection, "training", now)
        assert claim(connection, "training", "me", now) is None
        # An hour back: what waits until 10 s after "now" would wait for more than an hour.
        assert claim(connection, "training", "me", now - 3600).id == job.id


def test_what_a_stale_attempt_writes_is_refused(bench):
    queued(bench)
    job = taken(bench)
    with bench.database.read() as connection:
        (lease,) = leases(connection)
    with bench.database.write() as connection:
        assert take_back(connection, lease).state == "queued"
    again = taken(bench, "another")
    assert again.fence > job.fence
    with bench.database.write() as connection:
        with pytest.raises(StaleAttempt):
            fenced(connection, job.id, job.fence)
        assert fenced(connection, job.id, again.fence).id == job.id
        assert beat(connection, "me") == {}
        assert conclude(connection, job.id, job.fence, 1, was_stopped=False).lease_owner == "another"


def test_a_lease_with_a_sign_of_life_is_not_taken(bench):
    queued(bench)
    taken(bench)
    with bench.database.write() as connection:
        (lease,) = leases(connection)
        beat(connection, "me")
        assert take_back(connection, lease) is None


def test_f25_three_failures_in_a_row_are_enough_and_progress_counts_anew(bench):
    job = queued(bench)

    def crash():
        with bench.database.write() as connection:
            change_job(connection, job.id, not_before=0)
        attempt = taken(bench)
        with bench.database.write() as connection:
            return conclude(connection, job.id, attempt.fence, 1, was_stopped=False)

    before = time.time()
    waiting = crash()
    assert waiting.state == "queued" and waiting.not_before >= before
    assert crash().state == "queued"
    with bench.database.write() as connection:
        change_job(connection, job.id, not_before=0)
    attempt = taken(bench)
    with bench.database.write() as connection:
        note_progress(connection, attempt, 10)
        conclude(connection, job.id, attempt.fence, 1, was_stopped=False)
    assert [crash().state for _ in range(3)] == ["queued", "queued", "failed"]
    assert bench.job(job.id).error["code"] == "attempts_failed"


def test_steps_are_told_once(bench):
    job = bench.submit()

    def tell(steps):
        with bench.database.write() as connection:
            add_events(
                connection, job.id, [NewEvent(f"step {n}", type="metrics", data={"step": n}, step=n) for n in steps]
            )

    tell(range(1, 6))
    tell(range(3, 9))
    assert bench.steps(job.id) == list(range(1, 9))


def test_lists_page_and_filter(bench):
    made = [bench.submit(metadata=metadata) for metadata in (None, {"a": "1"}, {"a": "2", "b": ""}, None, {"a": "1"})]

    def listed(**changes):
        page = changes.pop("page", Page(limit=2))
        with bench.database.read() as connection:
            return list_jobs(connection, JobFilter(made[0].project_id, **changes), page)

    seen, after = [], None
    while True:
        page = listed(page=Page(limit=2, after=after))
        seen += [job.id for job in page.items]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == [job.id for job in reversed(made)]
    assert [job.id for job in listed(metadata={"a": "1"}).items] == [made[4].id, made[1].id]
    assert [job.id for job in listed(metadata={"b": ""}).items] == [made[2].id]
    assert [job.id for job in listed(without_metadata=True).items] == [made[3].id, made[0].id]
    assert made[2].metadata == {"a": "2", "b": ""}
    with pytest.raises(RequestError):
        listed(page=Page(after="ftjob-unknown"))
    with pytest.raises(RunError):
        bench.queue.cancel(made[0].id, project_id="proj_another")


def test_f24_order_and_leases_do_not_depend_on_the_clock(bench, monkeypatch):
    real = time.time
    made = []
    for jump in (0, 3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        made.append(queued(bench))
    with bench.database.read() as connection:
        page = list_jobs(connection, JobFilter(made[0].project_id), Page())
        assert [job.id for job in page.items] == [job.id for job in reversed(made)]
        first = list_events(connection, made[1].id, Page())
        assert first.items[0].message.startswith("Validating")
    assert [taken(bench).id for _ in range(3)] == [job.id for job in made]
    # No clock says that a lease is over; only a whole lease without a beat does.
    assert not hasattr(job_leases.Lease, "until")
