# mypy: ignore-errors
"""A Dask scheduler and two workers, each a subprocess of its own."""

import asyncio

from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster


async def main() -> None:
    cluster = SubprocessCluster(
        n_workers=2,
        threads_per_worker=1,
        asynchronous=True,
        dashboard_address=":0",
        worker_class="distributed.Worker",
        scheduler_kwargs={"dashboard": False},
    )
    async with cluster, Client(cluster, asynchronous=True) as client:
        print(await client.submit(sum, range(100)))
        print(sum(await client.gather(client.map(pow, range(10), [2] * 10))))
        processes = [cluster.scheduler.process]
        processes += [worker.process for worker in cluster.workers.values()]
        print([process.returncode for process in processes])
    print([process.returncode for process in processes])


if __name__ == "__main__":
    asyncio.run(main())
