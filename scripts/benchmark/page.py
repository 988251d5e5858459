"""One HTML page with everything in it: plots as SVG, in the colours of the reader's screen."""

import html

from .figures import number, ratio

# Of the places, light and dark; whoever is not named takes the next of the last ones.
COLOURS = {"ext4": ("#9aa0a6", "#7d848c"), "passthrough": ("#6f8fbf", "#7fa3d9"), "gocryptfs": ("#d98a3d", "#e39a52"),
           "kmsfs": ("#0b7a75", "#2bb5ad")}  # fmt: skip
MORE_COLOURS = [("#8d5fb5", "#b58ae0"), ("#b5485d", "#e07a8f"), ("#7a7a1f", "#c5c552")]

WIDTH = 720
LABEL = 250
ROW = 30

STYLE = """
:root { color-scheme: light dark; --back: #fdfdfb; --card: #fff; --text: #1d2326; --quiet: #667077; --line: #dfe3e4;
        --good: #1b7f3b; --bad: #b3402e; LIGHT }
@media (prefers-color-scheme: dark) { :root { --back: #14181a; --card: #1c2124; --text: #e6eaeb; --quiet: #96a1a7;
        --line: #323a3e; --good: #5ecb81; --bad: #ef8b7a; DARK } }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--back); color: var(--text); max-width: 1080px;
       margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { max-width: 46rem } .quiet, figcaption { color: var(--quiet); font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem }
figcaption b { color: var(--text); font-weight: 600 }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--text) }
svg .quiet { fill: var(--quiet) } svg .axis { stroke: var(--line) } svg .one { stroke: var(--quiet); stroke-dasharray: 3 3 }
svg .whisker { stroke: var(--text); stroke-width: 1.2; opacity: .65 } svg .goal { stroke: var(--text); stroke-width: 2.5 }
.key span { display: inline-block; margin-right: 1.2rem } .key i { display: inline-block; width: .8em; height: .8em;
       border-radius: 3px; margin-right: .4em; vertical-align: -.05em }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .met { color: var(--good) } .missed { color: var(--bad) }
"""


def text(value):
    return html.escape(str(value))


def style(places):
    more = iter(MORE_COLOURS * len(places))
    colours = [COLOURS.get(place) or next(more) for place in places]
    sheet = STYLE
    for word, which in (("LIGHT", 0), ("DARK", 1)):
        sheet = sheet.replace(word, " ".join(f"--p{n}: {colour[which]};" for n, colour in enumerate(colours)))
    return sheet + "".join(f".p{n} {{ fill: var(--p{n}); background: var(--p{n}) }}\n" for n in range(len(places)))


def bar(x, y, width, height, place, tip):
    return (f'<rect class="p{place}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" rx="3">'
            f"<title>{text(tip)}</title></rect>")  # fmt: skip


def whisker(low, high, y):
    return f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 3}v6M{high:.1f} {y - 3}v6" fill="none"/>'


def speedups(figures, subject, other, goals):
    """One bar for each work: how much faster the subject is than another place. 1 is as fast."""
    rows = []
    for work in figures.works:
        values = figures.speedups(work, subject, other)
        if values:
            rows.append((work.title, figures.speedup(work, subject, other), min(values), max(values), work.goal))
        if work.cpu_goal and (saving := figures.cpu_saving(work, subject, other)):
            rows.append(("– CPU of the daemon", saving, saving, saving, work.cpu_goal))
    if not rows:
        return ""
    most = max(max(high, (wanted or 0) if goals else 0, 1.2) for _, _, _, high, wanted in rows) * 1.08
    height = ROW * len(rows) + 26
    scale = (WIDTH - LABEL - 60) / most
    number_of = figures.places.index(subject)
    parts = []
    step = 1 if most < 12 else 5
    for tick in range(0, int(most) + 1, step):
        x = LABEL + tick * scale
        parts.append(f'<path class="{"one" if tick == 1 else "axis"}" d="M{x:.1f} 4V{height - 20}"/>')
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{height - 5}" text-anchor="middle">{tick}×</text>')
    for row, (title, value, low, high, wanted) in enumerate(rows):
        y = row * ROW + 8
        parts.append(f'<text x="{LABEL - 10}" y="{y + 13}" text-anchor="end">{text(title)}</text>')
        parts.append(bar(LABEL, y, value * scale, 18, number_of, f"{title}: {value:.2f} ({low:.2f} to {high:.2f})"))
        if high > low:
            parts.append(whisker(LABEL + low * scale, LABEL + high * scale, y + 9))
        shown = f"{value:.2f}"
        colour = ""
        if goals and wanted:
            x = LABEL + wanted * scale
            parts.append(f'<path class="goal" d="M{x:.1f} {y - 3}v24"><title>goal: {wanted}</title></path>')
            shown += " ✓" if value >= wanted else " ✗"
            colour = f' style="fill: var(--{"good" if value >= wanted else "bad"})"'
        x = LABEL + max(high, (wanted or 0) if goals else 0) * scale + 8
        parts.append(f'<text x="{x:.1f}" y="{y + 13}"{colour}>{shown}</text>')
    return (f'<figure><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="speed-up of {text(subject)} over '
            f'{text(other)}">{"".join(parts)}</svg></figure>')  # fmt: skip


def bars(title, note, values, unit):
    """A small plot: (place, its number, median, lowest, highest) as bars of one scale."""
    values = [value for value in values if value[2] is not None]
    if not values:
        return ""
    width, label, row = 320, 84, 24
    most = max(high for *_, high in values) or 1
    scale = (width - label - 66) / most
    parts = []
    for n, (place, number_of, median, low, high) in enumerate(values):
        y = n * row + 2
        parts.append(f'<text x="{label - 8}" y="{y + 13}" text-anchor="end">{text(place)}</text>')
        parts.append(bar(label, y, median * scale, 17, number_of, f"{place}: {number(median, unit)} {unit}"))
        if high > low:
            parts.append(whisker(label + low * scale, label + high * scale, y + 8.5))
        parts.append(f'<text x="{label + high * scale + 6:.1f}" y="{y + 13}">{number(median, unit)}</text>')
    return (f"<figure><figcaption><b>{text(title)}</b><br>{text(note)}</figcaption>"
            f'<svg viewBox="0 0 {width} {row * len(values) + 2}" role="img" aria-label="{text(title)}">'
            f"{''.join(parts)}</svg></figure>")  # fmt: skip


def cell(value, kind="td", of=""):
    return f"<{kind}{f' class={of}' if of else ''}>{value}</{kind}>"


def table(figures, subject, other):
    heads = ["", "unit", *figures.places, f"× {other}", "goal"]
    rows = ["<tr>" + "".join(cell(text(head), "th") for head in heads) + "</tr>"]
    for work in figures.works:
        reached = figures.speedup(work, subject, other)
        cells = [cell(text(work.title)), cell(work.unit)]
        for place in figures.places:
            spread = figures.spread(work, place)
            note = f' <span class="quiet">±{spread:.0%}</span>' if spread else ""
            cells.append(cell(number(figures.median(work, place), work.unit) + note))
        state = "" if None in (reached, work.goal) else "met" if reached >= work.goal else "missed"
        cells += [cell(ratio(reached), of=state), cell(work.goal or "")]
        rows.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def page(figures, subject, facts):
    """The whole page. `subject` is compared with gocryptfs and passthrough, as far as they were measured."""
    places = figures.places
    key = "".join(f'<span><i class="p{n}"></i>{text(place)}</span>' for n, place in enumerate(places))
    sections = []
    notes = {
        "gocryptfs": "How many times as fast as gocryptfs, next to each other in each round. The black mark is the goal.",
        "passthrough": "How many times as fast as a mirror that encrypts nothing, on the same library: 1 is the price of FUSE.",
    }
    for other, note in notes.items():
        if other in places and other != subject:
            plot = speedups(figures, subject, other, other == "gocryptfs")
            sections.append(f"<h2>{text(subject)} against {other}</h2><p>{note}</p>{plot}")
    plots = []
    for work in figures.works:
        values = [
            (place, n, figures.median(work, place), *edges(figures.values(work, place))) for n, place in enumerate(places)
        ]
        plots.append(bars(work.title, f"{work.unit}, {'more' if work.more else 'less'} is better", values, work.unit))
    sections.append(f'<h2>All places</h2><p class="key">{key}</p><div class="cards">{"".join(plots)}</div>')
    plots = []
    for work in figures.works:
        values = [(place, n, cpu, cpu, cpu) for n, place in enumerate(places) if (cpu := figures.cpu(work, place))]
        unit = "seconds per GiB" if work.per == "GiB" else "µs per operation"
        plots.append(bars(work.title, f"{unit}, less is better", values, ""))
    if any(plots):
        note = "User and system time of the process that serves, with what it did afterwards until all was stored."
        sections.append(f'<h2>CPU of the daemon</h2><p>{note}</p><div class="cards">{"".join(plots)}</div>')
    other = "gocryptfs" if "gocryptfs" in places else next((place for place in places if place != subject), subject)
    sections.append(f"<h2>Figures</h2>{table(figures, subject, other)}")
    if figures.errors:
        items = "".join(f"<li>{text(what)}: {text(error)}</li>" for what, error in figures.errors.items())
        sections.append(f"<h2>Failed</h2><ul>{items}</ul>")
    line = " · ".join(text(fact) for fact in facts)
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{text(subject)}: benchmark</title><style>{style(places)}</style>"
            f'<h1>How fast is {text(subject)}?</h1><p class="quiet">{line}</p>{"".join(sections)}</html>\n')  # fmt: skip


def edges(values):
    return (min(values), max(values)) if values else (0, 0)
