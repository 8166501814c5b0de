"""A small model that learns from the tenant's conversations: allowed or not, what was learnt, and back."""

from typing import Annotated

from msgspec import Meta

from memory import nouns
from proxy.rest.asking import Asking
from proxy.rest.bodies import Answer, Asked, Flag


class Allow(Asked, frozen=True, kw_only=True):
    enabled: Flag
    past: Annotated[
        Flag, Meta(description="Learn from what is stored already, too; else from what is said from now on.")
    ] = False


class Forced(Asked, frozen=True, kw_only=True):
    force: Annotated[
        Flag, Meta(description="Also with few messages, or with a model that is too large for a processor.")
    ] = False


class LearningTold(Answer, frozen=True, kw_only=True):
    learning: nouns.LearningState


class TrainingTold(Answer, frozen=True, kw_only=True):
    training: nouns.Training


class AdaptersListed(Answer, frozen=True, kw_only=True):
    adapters: list[nouns.AdapterTold]
    count: int


async def state(asking: Asking) -> LearningTold:
    return LearningTold(learning=await asking.memory.learning.state(asking.tenant))


async def switch(asking: Asking, body: Allow) -> LearningTold:
    return LearningTold(learning=await asking.memory.learning.switch(asking.tenant, body.enabled, body.past))


async def train(asking: Asking, body: Forced) -> TrainingTold:
    return TrainingTold(training=await asking.memory.learning.want(asking.tenant, body.force))


async def roll_back(asking: Asking) -> AdaptersListed:
    found = await asking.memory.learning.roll_back(asking.tenant)
    return AdaptersListed(adapters=found, count=len(found))
