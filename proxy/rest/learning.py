"""A small model that learns from the tenant's conversations: allowed or not, what was learnt, and back."""

from proxy.rest.asking import Asking
from proxy.rest.bodies import AdaptersListed, Allow, Forced, LearningTold, TrainingTold


async def state(asking: Asking) -> LearningTold:
    return LearningTold(learning=await asking.memory.learning.state(asking.tenant))


async def switch(asking: Asking, body: Allow) -> LearningTold:
    return LearningTold(learning=await asking.memory.learning.switch(asking.tenant, body.enabled, body.past))


async def train(asking: Asking, body: Forced) -> TrainingTold:
    return TrainingTold(training=await asking.memory.learning.want(asking.tenant, body.force))


async def roll_back(asking: Asking) -> AdaptersListed:
    found = await asking.memory.learning.roll_back(asking.tenant)
    return AdaptersListed(adapters=found, count=len(found))
