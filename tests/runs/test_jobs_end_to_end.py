"""A job from its file to a model that can be asked, through a real worker, on both databases."""

import pytest

from job_workers import ROWS, JobBench
from tunesmith.models.versions import list_versions
from tunesmith.record.files import Files
from tunesmith.record.job_events import all_checkpoints


@pytest.fixture
def bench(home, database_url, tiny_folder):
    bench = JobBench(home, database_url, tiny_folder("smollm2"))
    yield bench
    bench.close()


def test_a_job_ends_with_a_model_its_checkpoints_and_its_file(bench):
    job = bench.submit()
    worker = bench.start_worker()
    done = bench.wait_over(job.id)
    assert done.state == "succeeded", bench.logs()
    told = bench.messages(job.id)
    assert told[:4] == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file: file-training",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert told[4].startswith("Step 1/30: training loss=")
    assert bench.steps(job.id) == list(range(1, 31))
    with bench.database.read() as connection:
        checkpoints = all_checkpoints(connection, job.id)
    assert [one.step for one in checkpoints] == [10, 20, 30]
    assert told[34:] == [
        *(f"Checkpoint created at step {one.step} with Snapshot ID: {one.model}" for one in checkpoints[:2]),
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert done.fine_tuned_model == checkpoints[-1].model
    assert done.fine_tuned_model.startswith("ft:tiny-smollm2:local:numbers:")
    assert checkpoints[0].model.endswith(":ckpt-step-10")
    assert len({one.model.split(":")[4] for one in checkpoints}) == 3
    assert {one.name for one in list_versions(bench.home)} == {one.model for one in checkpoints}
    assert done.trained_tokens and done.finished_at and done.error is None
    assert done.hyperparameters == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    (file,) = done.result_files
    found = Files(bench.database, bench.store).get(job.project_id, file)
    lines = b"".join(bench.store.read(found.sha256)).decode().splitlines()
    assert found.filename == "step_metrics.csv" and len(lines) == 31
    assert lines[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert bench.held() == 0


def test_a_file_that_is_too_short_fails_its_job(bench):
    job = bench.submit(ROWS[:9])
    bench.start_worker()
    failed = bench.wait_over(job.id)
    assert failed.state == "failed"
    assert (failed.error["code"], failed.error["param"]) == ("invalid_n_examples", "training_file")
    assert failed.hyperparameters["learning_rate_multiplier"] == "auto"
