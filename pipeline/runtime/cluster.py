"""Choose where work runs: in this process, in processes of this machine, or on a dask cluster."""

import contextlib
from collections.abc import Iterator

from pipeline.runtime.local import InProcess
from pipeline.runtime.options import ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster, close_stations


@contextlib.contextmanager
def open_cluster(options: ClusterOptions, job: str, report: Reporter) -> Iterator[Cluster]:
    """The place that ``--workers`` or ``--scheduler`` names for a job; in process without either.

    Raises
    ------
    ClusterError
        When the scheduler cannot be reached or no worker comes.
    """
    options.validate()
    if options.workers is not None or options.scheduler is not None:
        from pipeline.runtime.dask_cluster import open_dask  # dask takes a second to import

        with open_dask(options, job, report) as found:
            yield found
        return
    try:
        yield InProcess(job)
    finally:
        close_stations(job)
