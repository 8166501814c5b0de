"""Conversations with facts in them, as many as a test wants: the same number gives the same ones."""

import random

from memory.slm.samples import Conversation, Utterance

NAMES = "Marta Lindqvist|Omar Haddad|Jule Brandt|Teresa Okonkwo|Pavel Novak|Ines Carvalho|Ravi Menon|Clara Whitfield"
PLACES = "Lisbon|Gdansk|Bologna|Aarhus|Leipzig|Marseille|Tampere|Girona"
FIRMS = "Kestrel Freight|Northgate Dental|Bluefin Software|Harrow Timber|Sable Optics|Linden Books|Orion Tiles"
THINGS = "the new racking|the lease|the boiler|the translation|the scanner|the catering|the delivery van|the printer"
MONTHS = "March|April|May|June|September|October"

SCRIPTS = (
    (
        "user: We have to order {thing}. {name} wants it before {date}.",
        "assistant: Understood. Is there a budget for {thing}, and a supplier?",
        "user: At most {money}, and we agreed to take {firm}. Their offer has the number {code}.",
        "assistant: So {firm} delivers, with offer {code}. Who signs the order?",
        "user: {name} signs. She sits in the office in {place} on Tuesdays.",
        "assistant: Then I will send the papers to {place}. How many do you need in all?",
        "user: We need {amount} of floor kept free for it, please tell them that in the order.",
        "assistant: Noted. The order goes out today, and I remind you one week before {date}.",
    ),
    (
        "user: I am planning a trip to {place} with {name} and would like some help with it.",
        "assistant: With pleasure. When do you leave, and how do you travel?",
        "user: We leave on {date} by train, and the reservation has the number {code}.",
        "assistant: Good. Have you booked a place to stay in {place} already?",
        "user: Yes, a small flat near the harbour for {money} in all. It has only {amount} but a balcony.",
        "assistant: That sounds pleasant. Shall I look for something to do on the first evening?",
        "user: Please do, but nothing loud. {name} goes to bed early when she has travelled.",
        "assistant: Then I suggest the concert in the cloister, and a table at a place that {firm} recommends.",
    ),
    (
        "user: The invoice from {firm} is wrong. They charged {money} for {thing}.",
        "assistant: I am sorry to hear that. Which number does the invoice have?",
        "user: It has the number {code}, and it was written on {date} by a certain {name}.",
        "assistant: Thank you. What would be the right amount in your opinion?",
        "user: We ordered {amount} and not a metre more, the contract says so in the second paragraph.",
        "assistant: I have written to {firm} about {code} and asked for a correction within two weeks.",
        "user: Please send a copy to our branch in {place}, they keep the originals there.",
        "assistant: Done. The branch in {place} has a copy now, and {name} has been informed.",
    ),
    (
        "user: My mother moves to {place} and I have to organise it from far away.",
        "assistant: That is a lot of work. When does she move, and who helps her there?",
        "user: She moves on {date}. Her neighbour {name} has a key and lets the people in.",
        "assistant: Good to know. Which company takes the furniture?",
        "user: We chose {firm}, they asked for {money} with insurance. The job has the number {code}.",
        "assistant: Does everything fit into the new flat?",
        "user: No, it has {amount} and the cupboard stays behind. She decided that herself.",
        "assistant: I will tell {firm} that the cupboard is not part of the move.",
    ),
)


def talks(many: int, seed: int = 7) -> tuple[Conversation, ...]:
    """`many` conversations, a day apart."""
    rng = random.Random(seed)
    return tuple(talk(number, rng) for number in range(many))


def talk(number: int, rng: random.Random) -> Conversation:
    slots = {
        "name": rng.choice(NAMES.split("|")),
        "place": rng.choice(PLACES.split("|")),
        "firm": rng.choice(FIRMS.split("|")),
        "thing": rng.choice(THINGS.split("|")),
        "date": f"{rng.choice(MONTHS.split('|'))} {rng.randint(1, 28)}",
        "money": f"€{rng.randint(2, 99) * 50:,}",
        "code": f"{rng.choice('ABKLRT')}{rng.choice('NPQ')}-{rng.randint(1000, 9999)}",
        "amount": f"{rng.randint(12, 90)} square metres",
    }
    lines = [line.format(**slots).partition(": ") for line in SCRIPTS[number % len(SCRIPTS)]]
    said = tuple(Utterance(f"t{number}-{place}", role, text) for place, (role, _, text) in enumerate(lines))
    return Conversation(f"talk-{number:03d}", 1_700_000_000.0 + number * 86_400, said)
