"""What the tools of the demo return, and what the assistant says of it. Every figure it names stands in the result."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from random import Random
from typing import Any

PLACES = ("Storholm", "Langholm", "Nordskjer", "Varnsund", "Ytterholm", "Gammelvaag")
SAMPLES = 17  # in the log of a night
FORECAST_DAYS = 5
MOST_WIND = 6.0  # m/s, above which nobody is put on the rocks


@dataclass(frozen=True, slots=True)
class Scene:
    """A question, a call, its result, and what the assistant makes of it."""

    slots: Mapping[str, object]  # what the question names
    arguments: Mapping[str, object]
    result: str
    answer: str


Play = Callable[[Random, date], Scene]


def station_log(rng: Random, day: date) -> Scene:
    """A night of a station: samples, messages, and one thing that stands out."""
    n = station(rng, day)
    oddity, meaning = rng.choice(ODDITIES)
    at = datetime.combine(day, time(rng.randrange(1, 4), 10 * rng.randrange(6)))
    seq, odd_at, lines, repeats, volts = rng.randrange(400, 9000), rng.randrange(4, SAMPLES - 2), [], 0, []
    for step in range(SAMPLES):
        moment = at + timedelta(minutes=10 * step, seconds=rng.randrange(3))
        volts.append(round(13.3 - 0.006 * step + rng.uniform(-0.02, 0.02), 2))
        level = 1500 + round(620 * math.sin(step / 9 + seq))
        air = 1009 + rng.uniform(-4, 4)
        lines.append(
            f"{moment:%Y-%m-%dT%H:%M:%SZ} S{n} INFO sample level_mm={level} water_c={5 + rng.random():.2f}"
            f" air_hpa={air:.1f} batt_v={volts[-1]}"
        )
        sent = moment + timedelta(seconds=rng.randrange(4, 30))
        if rng.random() < 0.15:
            repeats += 1
            lines.append(f"{sent:%Y-%m-%dT%H:%M:%SZ} S{n} WARN modem no ack seq={seq + step}, repeat in {step + 21} s")
        else:
            rssi = -rng.randrange(88, 109)
            lines.append(f"{sent:%Y-%m-%dT%H:%M:%SZ} S{n} INFO modem sent seq={seq + step} bytes=41 rssi={rssi}")
        if step == odd_at:
            odd = sent + timedelta(seconds=2)
            lines.append(f"{odd:%Y-%m-%dT%H:%M:%SZ} S{n} {oddity.format(x=rng.randrange(3, 90))}")
    answer = (
        f"S{n}: {SAMPLES} samples, none missing, {times(repeats)} repeated, the pack between {min(volts)} and"
        f" {max(volts)} volts. One thing stands out, at {odd:%H:%M}: {meaning}"
    )
    return Scene({"n": n}, {"station": f"S{n}", "lines": len(lines)}, "\n".join(lines), answer)


ODDITIES = (
    (
        "WARN storage write slow ms=9{x}",
        "a slow write to the card. Once is nothing; three in one night mean a new card.",
    ),
    ("WARN watchdog bite, restart cause=4", "the watchdog restarted it. It came back by itself, and nothing was lost."),
    ("WARN clock step +{x} ms after sync", "the clock was set. It stays inside what we allow in a day."),
    (
        "WARN sensor reread 2, spread={x} mm",
        "two readings did not agree and it read again. Probably a bubble in the pipe.",
    ),
    ("WARN modem search 9.{x} s", "a long search for the network, which costs energy. Try the antenna a metre higher."),
    ("INFO housekeeping freed {x} kB", "only the nightly tidying up. I would leave this station alone."),
    (
        "WARN humidity {x} % inside",
        "a reading of humidity that I would watch. Look at the silica gel before you close it.",
    ),
    ("WARN queue depth {x}, oldest first", "messages had queued up, and it worked them off in the right order."),
)


def weather(rng: Random, day: date) -> Scene:
    """Five days of forecast in steps of six hours, against the limit for the rocks."""
    place = rng.choice(PLACES)
    base = rng.uniform(3.5, 9)
    rows: list[dict[str, Any]] = []
    for step in range(4 * FORECAST_DAYS):
        at = datetime.combine(day, time(0)) + timedelta(hours=6 * step)
        wind = max(1.0, base + 2.8 * math.sin(step / 2.3 + base) + rng.uniform(-0.8, 0.8))
        rows.append({
            "time": f"{at:%Y-%m-%dT%H:%M}",
            "wind_ms": round(wind, 1),
            "gust_ms": round(wind * rng.uniform(1.3, 1.6), 1),
            "from": rng.choice(["N", "NW", "W", "SW", "S", "NE"]),
            "swell_m": round(0.2 + wind / 8, 1),
            "visibility_km": rng.choice([4, 9, 14, 20, 30]),
        })  # fmt: skip
    good = [row for row in rows if row["wind_ms"] <= MOST_WIND and "T00" not in row["time"]]
    best = min(rows, key=lambda row: row["wind_ms"])
    worst = max(rows, key=lambda row: row["gust_ms"])
    verdict = (
        f"{len(good)} of {3 * FORECAST_DAYS} blocks of daylight stay below {MOST_WIND:.0f} m/s"
        if good
        else f"no block of daylight stays below {MOST_WIND:.0f} m/s, so it would be no week for the rocks"
    )
    answer = (
        f"At {place} {verdict}. Calmest is {clock(best['time'])} with {best['wind_ms']} m/s from {best['from']} and"
        f" {best['swell_m']} m of swell; the strongest gusts come {clock(worst['time'])}, {worst['gust_ms']} m/s."
        f" {rng.choice(WEATHER_ADVICE)}"
    )
    result = json.dumps({"place": place, "model": "regional-2km", "steps": rows})
    return Scene({"place": place}, {"place": place, "days": FORECAST_DAYS}, result, answer)


WEATHER_ADVICE = (
    "I would want two such blocks in a row before anybody leaves the quay.",
    "The direction matters more than the speed there: from the west nothing breaks the swell.",
    "Forecasts for that corner have been too friendly so far, by about one metre per second.",
    "With this visibility you would see the skerries an hour before you reach them.",
    "It is only practice, but write down what you would have done and compare it with what comes.",
)


def inventory(rng: Random, day: date) -> Scene:
    """What lies on the shelf against what is needed."""
    what, items = rng.choice(SHELVES)
    rows: list[dict[str, Any]] = []
    for n, name in enumerate(rng.sample(items, 10)):
        need = rng.choice([6, 12, 18, 24, 36])
        rows.append({
            "item": name,
            "bin": f"{rng.choice('ABCD')}{rng.randrange(1, 40):02d}",
            "have": max(0, need + rng.randrange(-9, 14)),
            "need": need,
            "unit_eur": round(Random(name).uniform(0.2, 9), 2),  # the same whenever it is asked
            "counted": f"{day - timedelta(days=n + 1):%Y-%m-%d}",
        })  # fmt: skip
    short = [row for row in rows if row["have"] < row["need"]]
    cost = sum((row["need"] - row["have"]) * row["unit_eur"] for row in short)
    missing = "; ".join(f"{row['need'] - row['have']} x {row['item']} (bin {row['bin']})" for row in short)
    answer = (
        f"Short of {missing}. Together that is about {cost:,.0f} euros; everything else is there."
        if short
        else "Nothing is short, all ten kinds are there in the number that the list asks for."
    )
    answer += f" {rng.choice(SHELF_ADVICE)}"
    return Scene({"what": what}, {"query": what}, json.dumps({"shelf": what, "items": rows}), answer)


SHELVES = (
    (
        "screws and bolts",
        ["M5x20 A4", "M5x35 A4", "M5 washer", "M5 lock nut", "M8x60 A4", "rock bolt 120 mm", "rock bolt 160 mm",
         "M3x8", "M3 sleeve", "shackle 8 mm", "U-bolt 75 mm"],
    ),
    (
        "cable and plugs",
        ["metre of two-core cable", "metre of coax RG-58", "plug IP68 4-pin", "plug IP68 2-pin", "gland M16",
         "gland M20", "ferrule 0.75", "heat shrink 6 mm", "cable clip", "N connector", "label roll"],
    ),
    (
        "sealing things",
        ["O-ring 120x4", "O-ring 22x2", "silicone grease", "silica gel 10 g", "resin 500 ml", "hardener 100 ml",
         "butyl tape", "thread sealant", "acrylic window", "foam strip", "vent plug"],
    ),
    (
        "electronics",
        ["sensor board v3", "modem board", "charge controller", "clock chip", "fuse 2 A", "surge arrester",
         "reed switch", "memory card 8 GB", "antenna 3 dBi", "LED green", "pressure cell 0-1 bar"],
    ),
    (
        "field kit",
        ["drill bit 16 mm", "dry bag 20 l", "glove pair", "head torch", "whistle", "survival bag", "metre of line",
         "metre of garden hose", "spray can yellow", "spirit level", "notebook waterproof"],
    ),
)  # fmt: skip
SHELF_ADVICE = (
    "The counts are a few days old; whoever takes the last one, please say so.",
    "I would order ten percent more of whatever can fall into the water.",
    "Two of these have been borrowed by the students next door before.",
    "The dearest of them comes from one maker alone, so order that one first.",
    "I have put the missing ones on the list for the next order.",
)


def quotes(rng: Random, day: date) -> Scene:
    """Offers of several makers; the assistant takes the cheapest that comes in time."""
    part, low, high = rng.choice(PARTS)
    count = rng.choice([6, 7, 12, 14])
    offers: list[dict[str, Any]] = [
        {
            "supplier": name,
            "part": part,
            "unit_eur": round(rng.uniform(low, high), 2),
            "shipping_eur": rng.choice([0, 9, 18, 35]),
            "lead_days": rng.choice([3, 5, 8, 12, 21, 40]),
            "in_stock": rng.choice([0, 4, 20, 150]),
            "valid_until": f"{day + timedelta(days=rng.randrange(7, 30)):%Y-%m-%d}",
        }
        for name in rng.sample(SUPPLIERS, 6)
    ]
    for offer in offers:
        offer["total_eur"] = round(offer["unit_eur"] * count + offer["shipping_eur"], 2)
    soon = [offer for offer in offers if offer["lead_days"] <= 12] or offers
    pick, cheapest = (min(some, key=lambda offer: offer["total_eur"]) for some in (soon, offers))
    price = f"{pick['total_eur']:,.2f} euros for {count}"
    answer = f"I would take {pick['supplier']}: {price}, here in {pick['lead_days']} days."
    if pick is not cheapest:
        saved = pick["total_eur"] - cheapest["total_eur"]
        answer += f" {cheapest['supplier']} is {saved:,.2f} cheaper but needs {cheapest['lead_days']} days."
    answer += f" {rng.choice(QUOTE_ADVICE)}"
    result = json.dumps({"part": part, "count": count, "offers": offers})
    return Scene({"part": part, "count": count}, {"part": part, "count": count}, result, answer)


SUPPLIERS = (
    "Kestrel Marine", "Halden Parts", "Rotek", "Sund & Sons", "Pikko Electronics", "Brandt Hydraulik", "Osmo",
    "Lofoten Supply", "Quayside", "Tessel", "Nautika", "Meyer Messtechnik",
)  # fmt: skip
PARTS = (
    ("housings 200x160", 48, 95), ("pressure cells 0-1 bar", 110, 190), ("solar panels 40 W", 32, 61),
    ("antennas 3 dBi", 9, 24), ("charge controllers", 18, 44), ("PVC pipes 75 mm", 6, 15), ("modem boards", 22, 39),
    ("dry bags 60 l", 25, 52), ("stainless frames", 70, 140), ("glands M16", 1, 4), ("surge arresters", 7, 16),
    ("base plates 8 mm", 21, 40), ("mooring lines 12 m", 14, 33),
)  # fmt: skip
QUOTE_ADVICE = (
    "The offer is good for at least a week, so you can sleep on it.",
    "Ask them for the data sheet first; the last one that we had was of the wrong type.",
    "One of the six has no stock at all, whatever its page says.",
    "We have bought from them before, without trouble.",
    "I would order one more than we need: it is the part that breaks.",
)


def bench_test(rng: Random, day: date) -> Scene:
    """A calibration in the drain pipe: depth against reading, and a line through it."""
    n = station(rng, day)
    slope, offset, noise = 1 + rng.uniform(-4, 4) / 1000, rng.uniform(-9, 9), rng.choice([0.4, 0.8, 1.6])
    depths = [*range(1900, 0, -100), *range(100, 1901, 200)]
    rows = [
        {
            "depth_mm": depth,
            "read_mm": round(depth * slope + offset + rng.gauss(0, noise), 1),
            "water_c": round(17.8 + rng.random() / 5, 2),
            "spread_mm": round(abs(rng.gauss(0, noise)) + 0.1, 1),
        }
        for depth in depths
    ]
    gain, zero, worst = fitted([row["depth_mm"] for row in rows], [row["read_mm"] for row in rows])
    verdict = "You can close it." if worst < 3 else "I would repeat it after a night of rest before closing it."
    answer = (
        f"S{n}: a straight line fits, gain {gain:.4f} and zero {zero:+.1f} mm; the largest residual of {len(rows)}"
        f" points is {worst:.1f} mm. {verdict} {rng.choice(BENCH_ADVICE)}"
    )
    result = json.dumps({"station": f"S{n}", "cell": f"PC-{rng.randrange(2000, 9000)}", "points": rows})
    return Scene({"n": n}, {"station": f"S{n}"}, result, answer)


BENCH_ADVICE = (
    "The way up and the way down agree, so the cell does not remember where it was.",
    "The residuals show no bend.",
    "Write both numbers into the lid as well as into the file.",
    "The water was calm, the spread of the single readings is what one can hope for.",
    "Compared with its last run the zero has moved by less than the reading error.",
)


def fitted(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """A line by least squares: gain, zero, largest residual."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    gain = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    zero = mean_y - gain * mean_x
    return gain, zero, max(abs(b - gain * a - zero) for a, b in zip(x, y, strict=True))


def tides(rng: Random, day: date) -> Scene:
    """High and low water for three days, and how long the rock is dry."""
    place = rng.choice(PLACES)
    first = date(day.year, 5, 1) + timedelta(days=rng.randrange(2, 26))
    moment, rows = datetime.combine(first, time(rng.randrange(5), rng.randrange(60))), []
    for n in range(12):
        low = n % 2 == 0
        height = round(rng.uniform(0.1, 0.5) if low else rng.uniform(1.5, 2.2), 2)
        rows.append({"time": f"{moment:%Y-%m-%dT%H:%M}", "kind": "low" if low else "high", "height_m": height})
        moment += timedelta(hours=6, minutes=rng.randrange(8, 20))
    day_lows = [row for row in rows if row["kind"] == "low" and 5 <= int(str(row["time"])[11:13]) <= 20]
    best = min(day_lows or rows, key=lambda row: float(str(row["height_m"])))
    hours = rng.choice(["two and a half", "three", "just over three"])
    answer = (
        f"Lowest water by daylight at {place} is {clock(str(best['time']))}, {best['height_m']} m. For {hours} hours"
        f" around it the rock stays dry where the base plate goes. {rng.choice(TIDE_ADVICE)}"
    )
    slots = {"place": place, "day": f"{first.day} {first:%B}"}
    return Scene(
        slots, {"place": place, "from": f"{first}", "days": 3}, json.dumps({"place": place, "tides": rows}), answer
    )


TIDE_ADVICE = (
    "I would be there an hour and a half before, not on the dot.",
    "With wind from the west the water stays ten centimetres higher than the table says.",
    "It is the harmonic prediction of the old gauge; take ten minutes either way.",
    "The next one comes in the dark and does not count.",
)


def ledger(rng: Random, day: date) -> Scene:
    """The latest expenses."""
    rows: list[dict[str, Any]] = [
        {
            "date": f"{day - timedelta(days=n // 3):%Y-%m-%d}",
            "to": rng.choice(SUPPLIERS),
            "for": part,
            "eur": round(rng.uniform(low, high) * rng.choice([1, 2, 6]), 2),
            "paid_by": rng.choice(["card", "card", "invoice", "Ines", "Tomas"]),
        }
        for n, (part, low, high) in enumerate(rng.sample(PARTS, 11))
    ]
    total = sum(row["eur"] for row in rows)
    largest = max(rows, key=lambda row: row["eur"])
    own = [row for row in rows if row["paid_by"] in ("Ines", "Tomas")]
    owed = {name: sum(row["eur"] for row in own if row["paid_by"] == name) for name in ("Ines", "Tomas")}
    back = " and ".join(f"{eur:,.2f} to {name}" for name, eur in owed.items() if eur)
    answer = (
        f"{len(rows)} entries, {total:,.2f} euros together. The largest is {largest['eur']:,.2f} to {largest['to']} for"
        f" {largest['for']}. {f'We owe {back}. ' if back else ''}{rng.choice(LEDGER_ADVICE)}"
    )
    return Scene({}, {"since": f"{day - timedelta(days=7)}"}, json.dumps({"entries": rows}), answer)


LEDGER_ADVICE = (
    "At this pace the money lasts.",
    "Two receipts are still missing; I would look for them while you remember the shops.",
    "Shipping is a tenth of it. One order a week instead of three would halve that.",
    "Nothing in it looks like a mistake.",
)

PLAYS: Mapping[str, Play] = {
    "station_log": station_log,
    "weather": weather,
    "inventory": inventory,
    "quotes": quotes,
    "bench_test": bench_test,
    "tides": tides,
    "ledger": ledger,
}
# How often a tool is used: while planning, and from the third week on, when there are stations.
EARLY = {"station_log": 1, "weather": 3, "inventory": 4, "quotes": 6, "bench_test": 2, "tides": 4, "ledger": 2}
LATE = {"station_log": 8, "weather": 4, "inventory": 3, "quotes": 2, "bench_test": 6, "tides": 3, "ledger": 2}

ABOUT = {
    "station_log": "The newest lines of a station's log.",
    "weather": "Forecast of wind, gusts, swell and visibility for a place.",
    "inventory": "What the workshop has of something, and what the parts list asks for.",
    "quotes": "Offers of suppliers for a part.",
    "bench_test": "The last calibration of a station's pressure cell in the drain pipe.",
    "tides": "High and low water at a place.",
    "ledger": "Expenses since a day.",
}


def tool_schemas() -> list[dict[str, Any]]:
    """The tools as the client declares them with each request."""
    scenes = {name: play(Random(0), date(2025, 4, 1)) for name, play in PLAYS.items()}
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": ABOUT[name],
                "parameters": {
                    "type": "object",
                    "properties": {
                        key: {"type": "integer" if isinstance(value, int) else "string"}
                        for key, value in scene.arguments.items()
                    },
                    "required": list(scene.arguments),
                },
            },
        }
        for name, scene in scenes.items()
    ]


def station(rng: Random, day: date) -> int:
    """One of the stations that exist by then: a new one every week."""
    return rng.randint(1, min(6, 1 + (day - date(day.year, 3, 3)).days // 7))


def times(n: int) -> str:
    return ("no message was", "one message was", "two messages were")[n] if n < 3 else f"{n} messages were"


def clock(moment: str) -> str:
    """`2025-05-03T14:20` as one says it."""
    return f"{datetime.fromisoformat(moment):%A at %H:%M}"
