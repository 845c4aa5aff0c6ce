"""Two processes and one activity: ``leave`` makes it and goes, ``join`` takes it up by its id, ends and pays it."""

import sys

from common import Payments, agree, ready, run
from golem.node import GolemNode
from golem.resources import Run

SESSION = "reattached"


async def leave():
    async with GolemNode(app_session_id=SESSION) as golem:
        allocation = await golem.create_allocation(1, autoclose=False)
        agreement = await agree(golem, allocation, autoclose=False)
        activity = await ready(await agreement.create_activity(autoclose=False))
        batch = await activity.execute_commands(Run("echo kept > /golem/work/note"))
        await batch.wait(60)
        long = await activity.execute_commands(Run("sleep 3; echo finished while away"))
        return [allocation.id, agreement.id, activity.id, long.id]


async def join(allocation_id, agreement_id, activity_id, batch_id):
    async with GolemNode(app_session_id=SESSION) as golem:
        allocation = golem.allocation(allocation_id)
        payments = Payments(golem, allocation)
        await payments.start()
        agreement = golem.agreement(agreement_id)
        activity = golem.activity(activity_id)
        agreement.add_child(activity)
        batch = golem.batch(batch_id, activity_id)
        activity.running_batch_counter += 1
        batch.start_collecting_events()
        away = (await batch.wait(60))[0].stdout
        batch = await activity.execute_commands(Run("cat /golem/work/note"))
        note = (await batch.wait(60))[0].stdout
        state = (await activity.get_state()).state[0]
        await activity.destroy()
        await payments.finish(agreement)
        await allocation.release()
        return {"away": away, "note": note, "state": state, "status": agreement.invoice.data.status}


run(leave() if sys.argv[1] == "leave" else join(*sys.argv[2:]))
