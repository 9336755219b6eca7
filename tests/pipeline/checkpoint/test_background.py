import threading

from pipeline.checkpoint.background import BackgroundWriter


def test_job_runs_beside_the_caller_and_its_error_surfaces_once_when_it_is_finished() -> None:
    writer = BackgroundWriter()
    assert writer.finish() is None
    gate = threading.Event()
    writer.start(gate.wait)
    assert writer.finish(timeout_s=0.01) is None  # still running
    gate.set()
    assert writer.finish() is None
    assert writer.last_duration_s > 0.0

    def full_disk() -> None:
        raise OSError(28, "No space left on device")

    writer.start(full_disk)
    error = writer.finish()
    assert isinstance(error, OSError)
    assert "No space left" in str(error)
    assert writer.finish() is None
    done = []
    writer.start(lambda: done.append(1))
    writer.finish()
    assert done == [1]
