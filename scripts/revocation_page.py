"""The page of scripts/revoke-and-verify for auditors: one HTML file with a picture, without scripts, without anything
from elsewhere. Everything that it shows is in the report of `--json` too."""

import html

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #d8dee4; vertical-align: top; overflow-wrap: anywhere }
td.n { text-align: right; white-space: nowrap } code { font-size: .9em }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; margin: 1rem 0 } .good { border-color: #1a7f37; background: #e9f7ed } .bad { border-color: #cf222e; background: #fdebec }
.PASS { color: #1a7f37; font-weight: 600 } .FAIL { color: #cf222e; font-weight: 600 } .SKIP { color: #6e7781 }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
@media print { body { margin: 0; max-width: none } }
"""
WIDTH, LEFT, RIGHT, ROW, TOP = 960, 250, 30, 20, 70


def text(value):
    return html.escape("–" if value is None else str(value))


def seconds(value):
    return "–" if value is None else f"{value:.1f} s"


def picture(report):
    """Each way to read as a bar that ends with its last byte; moments as lines across all of them."""
    ways = [check for check in report["checks"] if check["way"] and check["last_success_s"] is not None]
    times = report["times"]
    allowed = times["allowed_s"]
    locked = times.get("locked_after_s")
    kms = times.get("kms_refused_after_s")
    ends = [allowed, locked or 0, kms or 0] + [way["last_success_s"] for way in ways]
    first, last = min([-1.0] + [way["last_success_s"] for way in ways]), max(ends) + 1.0
    x = lambda at: LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT)
    bottom = TOP + ROW * len(ways)
    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="When each way to read gave its last byte">']
    if allowed > 0:
        parts.append(f'<rect x="{x(0):.1f}" y="{TOP}" width="{x(allowed) - x(0):.1f}" height="{bottom - TOP}" fill="#fff4d6"/>')
    for number, way in enumerate(ways):
        y = TOP + ROW * number
        end = way["last_success_s"]
        colour = "#1a7f37" if way["ok"] else "#cf222e"
        parts.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{text(way["name"])}</text>')
        parts.append(f'<rect x="{x(first):.1f}" y="{y + 4}" width="{max(x(end) - x(first), 1):.1f}" height="{ROW - 8}" fill="{colour}">'
                     f'<title>{text(way["name"])}: last byte {end:.2f} s after the key was taken away</title></rect>')  # fmt: skip
    marks = [(0, "key taken away", "#cf222e"), (kms, "KMS refused", "#8250df"), (locked, "locked", "#0969da"), (allowed, "allowed until", "#9a6700")]
    for place, (at, label, colour) in enumerate(mark for mark in marks if mark[0] is not None):
        dash = ' stroke-dasharray="5 4"' if label == "allowed until" else ""
        anchor = "end" if x(at) > WIDTH - 180 else "start"
        y = 14 + 14 * place
        parts.append(f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y - 8}" y2="{bottom}" stroke="{colour}" stroke-width="1.5"{dash}/>')
        offset = -5 if anchor == "end" else 5
        parts.append(f'<text x="{x(at) + offset:.1f}" y="{y}" text-anchor="{anchor}" style="fill:{colour}">{label} {at:+.2f} s</text>')
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#57606a"/>')
    step = max(1, round((last - first) / 10))
    for tick in range(int(first), int(last) + 1, step):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#57606a"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick} s</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 34}" text-anchor="end">seconds after the key was taken away</text></svg>')
    return "\n".join(parts)


def table(head, rows):
    cells = lambda row, tag: "".join(f"<{tag}>{cell}</{tag}>" for cell in row)
    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>\n{body}</tbody></table>"


def event_row(event):
    fields = {name: value for name, value in event.items() if name not in ("seq", "time", "event", "prev")}
    said = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, ""))
    return text(event["time"]), text(event["seq"]), text(event["event"]), f"<code>{text(said)}</code>"


def page(report):
    """The page of a report as `--json` prints it."""
    times, audit = report["times"], report["audit"]
    last = max(times["last_byte_after_s"], 0)
    words = {True: "PASS", False: "FAIL", None: "SKIP"}
    if report["ok"]:
        verdict = f"Nothing could be read any more {last:.1f} s after the key was taken away; {times['allowed_s']:g} s are allowed."
    else:
        failed = sum(check["ok"] is False for check in report["checks"])
        verdict = f"{failed} of {len(report['checks'])} checks failed."
    facts = [
        ("volume", report["volume"]),
        ("mountpoint", report["mountpoint"]),
        ("key", report["kek"]),
        ("asked for the key every", seconds(times["revalidate_s"])),
        ("the KMS refused after", seconds(times.get("kms_refused_after_s"))),
        ("locked after", seconds(times.get("locked_after_s"))),
        ("last byte after", seconds(last)),
        ("unlocked after the key was given back", seconds(times.get("unlocked_after_s"))),
        ("request id of the refusal", report.get("request_id")),
        ("our id of that call (CorrelationId in AuditEvent)", report.get("client_request_id")),
        ("head of the audit log", f"{audit.get('series')} line {audit.get('seq')}, {audit.get('head')}"),
        ("chain of the audit log", "whole" if audit.get("verified") else audit.get("error")),
    ]
    checks = (
        (f'<span class="{words[check["ok"]]}">{words[check["ok"]]}</span>', text(check["name"]), seconds(check["last_success_s"]), text(check["detail"]))
        for check in report["checks"]
    )
    moments = ((text(moment["time"]), f"{moment['at_s']:+.2f} s", text(moment["what"])) for moment in report["timeline"])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Revocation of {text(report["volume"])}</title><style>{STYLE}</style></head><body>
<h1>Revocation of an encrypted volume</h1>
<p class="verdict {"good" if report["ok"] else "bad"}"><strong>{"PASS" if report["ok"] else "FAIL"}</strong> {text(verdict)}</p>
{table(("", ""), ((text(name), f"<code>{text(value)}</code>") for name, value in facts))}
<h2>When each way to read gave its last byte</h2>
{picture(report)}
<h2>What happened</h2>
{table(("time (UTC)", "after the refusal", "what"), moments)}
<h2>What was tried</h2>
{table(("", "check", "last success", "now"), checks)}
<h2>What the volume's audit log says</h2>
{table(("time", "line", "event", ""), map(event_row, report["events"]))}
<p>To check later that nothing of that log was changed or cut off:
<code>kmsfs audit verify {text(report["volume"])} --deep --head {text(audit.get("head"))}</code></p>
</body></html>
"""
