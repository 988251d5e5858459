"""Samples of all works, places and rounds, and what can be said about them."""

import statistics
import sys
from dataclasses import asdict

from .system import MIB, Trouble


class Figures:
    def __init__(self, works, places):
        self.works, self.places = works, list(places)
        self.samples = {work.key: {place: [] for place in self.places} for work in works}
        self.errors = {}

    def add(self, work, place, sample):
        self.samples[work.key][place].append(sample)

    def values(self, work, place, what="value"):
        """One figure for each round in which there was one."""
        values = [getattr(sample, what) for sample in self.samples[work.key].get(place, [])]
        return [value for value in values if value is not None]

    def median(self, work, place, what="value"):
        values = self.values(work, place, what)
        return statistics.median(values) if values else None

    def spread(self, work, place):
        """Half of the distance between the worst and the best round, as a share of the median."""
        values = self.values(work, place)
        median = statistics.median(values) if values else 0
        return (max(values) - min(values)) / 2 / median if median else None

    def cpu(self, work, place):
        """CPU of the daemon, median: seconds per GiB, or microseconds per operation."""
        samples = [sample for sample in self.samples[work.key].get(place, []) if sample.cpu_s is not None]
        scale = 1 if work.per == "GiB" else 1e6
        return statistics.median(scale * sample.cpu_s / sample.amount for sample in samples) if samples else None

    def speedups(self, work, place, other):
        """How much faster one place is than another, in each round; both were measured next to each other."""
        pairs = zip(self.values(work, place), self.values(work, other))
        return [(a / b if work.more else b / a) for a, b in pairs if a and b]

    def speedup(self, work, place, other):
        ratios = self.speedups(work, place, other)
        return statistics.median(ratios) if ratios else None

    def cpu_saving(self, work, place, other):
        """How many times the CPU of this place the other one needs."""
        a, b = self.cpu(work, place), self.cpu(work, other)
        return b / a if a and b else None

    def as_json(self):
        rows = {}
        for work in self.works:
            by_place = {
                place: {
                    "median": self.median(work, place),
                    "spread": self.spread(work, place),
                    "p99_us": self.median(work, place, "p99_us"),
                    "synced_s": self.median(work, place, "synced_s"),
                    "cpu": self.cpu(work, place),
                    "samples": [asdict(sample) for sample in self.samples[work.key][place]],
                }
                for place in self.places
            }
            rows[work.key] = {
                "title": work.title,
                "unit": work.unit,
                "more_is_better": work.more,
                "cpu_unit": "s/GiB" if work.per == "GiB" else "us/op",
                "goal": work.goal,
                "cpu_goal": work.cpu_goal,
                "places": by_place,
                "speedup": {
                    place: {other: self.speedup(work, place, other) for other in self.places if other != place}
                    for place in self.places
                },
            }
        return {"rows": rows, "errors": self.errors}


def measure(works, places, sizes, rounds, say):
    """Each work in all places before the next one, and all of it so many times; nobody is always the first."""
    figures = Figures(works, [place.name for place in places])
    try:
        for number in range(rounds):
            order = places[number % len(places) :] + places[: number % len(places)]
            for place in places:
                place.prepare(3 * sizes.size * MIB)
            for work in works:
                say(f"round {number + 1} of {rounds}: {work.title}")
                for place in order:
                    try:
                        figures.add(work, place.name, work.measure(place, sizes))
                    except (Trouble, OSError) as trouble:
                        figures.errors[f"{work.title}: {place.name}"] = str(trouble)
    finally:
        say("")
        for place in places:
            place.clean()
    return figures


def progress():
    """Says what is being done: in one line that is written over, where there is somebody to see it."""
    if sys.stderr.isatty():
        return lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    return lambda text: print(text, file=sys.stderr, flush=True) if text else None


def number(value, unit=""):
    """As a person reads it: three figures at least, no more decimals than that."""
    if value is None:
        return "-"
    if value >= 100 or (unit == "IOPS" and value >= 10):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


def lines(rows):
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield f"{row[0]:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))


def table(figures, subject, others, goals_against=None):
    """Medians, and how much faster `subject` is than the others. The goals are against one of them."""
    rows = [["", "unit", *figures.places, *(f"× {other}" for other in others), *(["goal"] if goals_against else [])]]
    for work in figures.works:
        cells = [with_spread(figures, work, place) for place in figures.places]
        ratios = [ratio(figures.speedup(work, subject, other)) for other in others]
        row = [work.title, work.unit, *cells, *ratios]
        if goals_against:
            row.append(goal(figures.speedup(work, subject, goals_against), work.goal))
        rows.append(row)
        if work.cpu_goal:
            cells = [number(figures.cpu(work, place)) for place in figures.places]
            savings = [ratio(figures.cpu_saving(work, subject, other)) for other in others]
            row = ["  CPU of the daemon", "s/GiB", *cells, *savings]
            if goals_against:
                row.append(goal(figures.cpu_saving(work, subject, goals_against), work.cpu_goal))
            rows.append(row)
    return lines(rows)


def with_spread(figures, work, place):
    text, spread = number(figures.median(work, place), work.unit), figures.spread(work, place)
    return f"{text} ±{spread:>3.0%}" if spread is not None and len(figures.values(work, place)) > 1 else text


def goal(reached, wanted):
    if wanted is None:
        return "-"
    return f"{wanted:.1f} {' ' if reached is None else '✓' if reached >= wanted else '✗'}"


def details(figures):
    """CPU of the daemons and the 99th percentile of an operation."""
    served = [place for place in figures.places if any(figures.cpu(work, place) is not None for work in figures.works)]
    rows = [["", *(f"CPU {place}" for place in served), *(f"p99 {place}" for place in figures.places)]]
    for work in figures.works:
        unit = "s/GiB" if work.per == "GiB" else "µs/op"
        cpu = [figures.cpu(work, place) for place in served]
        p99 = [figures.median(work, place, "p99_us") for place in figures.places]
        rows.append([
            work.title,
            *("-" if value is None else f"{number(value)} {unit}" for value in cpu),
            *("-" if value is None else f"{value:,.0f} µs" for value in p99),
        ])  # fmt: skip
    return lines(rows)
