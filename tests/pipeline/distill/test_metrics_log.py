"""The metrics of a run."""

from pathlib import Path

from pipeline.distill.metrics_log import MetricsLog, read_metrics


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    for step in range(1, 6):
        log.write("train", step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    log = MetricsLog(tmp_path, 3, tensorboard=True)
    log.write("train", 4, {"loss": 0.5})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(log.path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 0.5),
    ]
    assert list((tmp_path / "tensorboard").iterdir())
