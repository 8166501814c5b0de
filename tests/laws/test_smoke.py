def test_smoke(client, provider, proxy):
    r = client.chat.completions.create(model="small-8k", messages=[{"role": "user", "content": "hi"}])
    assert r.choices[0].message.content.startswith("Noted")
    print(proxy.export())


def test_smoke2(client, provider, proxy):
    with client.chat.completions.create(
        model="small-8k", messages=[{"role": "user", "content": "hi"}], stream=True
    ) as s:
        t = "".join(c.choices[0].delta.content or "" for c in s)
    assert t.startswith("Noted")
    print(proxy.metric("infold_turns_total", kept="committed"), proxy.get("/metrics").status_code)
