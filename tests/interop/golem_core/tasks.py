"""Many works on a pool of three machines; a plugin tries a work again that failed."""

import asyncio

from common import Managers, run
from golem.managers import ConcurrentWorkManager, PoolActivityManager, retry, work_plugin
from golem.node import GolemNode

WORKS, POOL = 9, 3
FAILED = []


def square(number, everybody):
    @work_plugin(retry(tries=2))
    async def work(context):
        if number < POOL:
            await everybody.wait()
        batch = await context.create_batch()
        batch.run(f"echo {number} > /golem/work/n")
        fails = number == 4 and not FAILED
        if fails:
            FAILED.append(number)
        batch.run("exit 3" if fails else "n=$(cat /golem/work/n); echo $((n * n))")
        events = await batch()
        return [number, int(events[-1].stdout), await context.get_provider_id()]

    return work


async def main():
    everybody = asyncio.Barrier(POOL)
    async with GolemNode() as golem, Managers(golem, budget=10) as managers:
        pool = PoolActivityManager(golem, managers.agreement.get_agreement, pool_size=POOL)
        async with pool, ConcurrentWorkManager(golem, pool.get_activity, size=POOL) as work:
            results = await work.do_work_list([square(n, everybody) for n in range(WORKS)])
    tried = next(r.extras["retry"] for r in results if r.result[0] == 4)
    return {
        "squares": [r.result[1] for r in sorted(results, key=lambda r: r.result[0])],
        "providers": sorted({r.result[2] for r in results}),
        "errors": [str(error) for error in tried["errors"]],
    }


run(main())
