import random, json
from tests.proxy.test_chat import *
async def test_dbg(unknown):
    provider, _, proxy = unknown
    provider.factor = 1.3
    rng = random.Random(1)
    said = []
    for number in range(30):
        said.append(user(f"{number} {prose(rng, 150)}"))
        got = await post(proxy, said, model="gpt-4")
        print(number, got.status, note(got,"mode"), note(got,"tokens"), note(got,"block-tokens"), len(provider.refused), provider.prompts[-1].tokens, proxy.parts.memory.models.find("gpt-4", proxy.parts.upstream.base_url).window)
        if got.status != 200: break
        said.append(assistant(prose(rng, 150)))
    print(provider.refused)
