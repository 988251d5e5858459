"use strict";
// Everything that comes from elsewhere (names, errors) goes in by textContent.

const EVERY_MS = 5000;
const SVG = "http://www.w3.org/2000/svg";
// A state is told by a word, a shape and a tone: never by colour alone.
const SHAPES = {
  good: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.6 4.9-4.3 5-3-2.7 1-1.1 1.9 1.7 3.2-3.8Z",
  warn: "M8 1 .8 14.5h14.4ZM7.2 6h1.6v4.5H7.2Zm0 5.6h1.6v1.5H7.2Z",
  bad: "M4.6 1h6.8L15 4.6v6.8L11.4 15H4.6L1 11.4V4.6Zm.5 3L4 5.1 6.9 8 4 10.9 5.1 12 8 9.1l2.9 2.9 1.1-1.1L9.1 8 12 5.1 10.9 4 8 6.9Z",
  calm: "M4 7V5a4 4 0 0 1 8 0v2h1v8H3V7Zm1.8 0h4.4V5a2.2 2.2 0 0 0-4.4 0Z",
};

function make(name, properties, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [unit, size] = units[at];
  const whole = Math.floor(seconds / size);
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds - whole * size) / next[1]) : 0;
  return rest && at < 3 ? `${whole} ${unit} ${rest} ${next[0]}` : `${whole} ${unit}`;
}

function latency(us) {
  return us >= 1e6 ? `${(us / 1e6).toFixed(1)} s` : us >= 1e3 ? `${(us / 1e3).toFixed(us < 1e4 ? 1 : 0)} ms` : `${us} µs`;
}

function tone(mount) {
  if (mount.reason === "operator") return "calm";
  if (mount.state !== "unlocked") return "bad";
  return mount.granted && !mount.rollback && !mount.audit_error && !mount.damaged ? "good" : "warn";
}

function sparkline(values) {
  const [width, height] = [100, 20];
  const most = Math.max(...values);
  const step = width / Math.max(values.length - 1, 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(height - 1 - value / most * (height - 2)).toFixed(1)}`);
  if (points.length === 1) points.push(`${width},${points[0].split(",")[1]}`);
  const label = `the last ${values.length} calls, up to ${latency(most)}`;
  return draw("svg", {class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label},
    draw("polyline", {points: points.join(" ")}));
}

function facts(mount) {
  const rows = [];
  const row = (name, ...content) => rows.push(make("dt", {textContent: name}), make("dd", {}, ...content));
  if (mount.state !== "locked") {
    const meter = make("meter", {min: 0, max: mount.lease_s, value: mount.lease_remaining_s, low: mount.lease_s * .5});
    meter.setAttribute("aria-label", "lease");
    row("Lease", meter, `${duration(mount.lease_remaining_s)} left`);
  }
  row("Key", mount.kek);
  const calls = mount.latencies_us;
  if (calls.length) row("KMS", sparkline(calls), latency(calls[calls.length - 1]));
  const asked = mount.hits + mount.misses;
  row("Cache", asked ? `${Math.floor(100 * mount.hits / asked)} % of ${asked.toLocaleString("en")} from memory` : "not asked yet");
  if (mount.damaged) row("Damage", `${mount.damaged} found`);
  if (mount.rollback) row("Rollback", "an older version was put back");
  for (const error of [mount.last_error, mount.audit_error].filter(Boolean)) {
    row("Error", error);
    rows.at(-1).className = "error";
  }
  return make("dl", {}, ...rows);
}

function card(mount, opened) {
  const kind = tone(mount);
  const word = mount.reason ? `${mount.state} (${mount.reason})` : mount.state;
  const since = make("span", {className: "since", textContent: `for ${duration(mount.since_s)}`});
  const shape = draw("svg", {viewBox: "0 0 16 16", "aria-hidden": "true"}, draw("path", {d: SHAPES[kind], fill: "currentColor", "fill-rule": "evenodd"}));
  const article = make("article", {className: kind === "good" ? kind : `${kind} trouble`},
    make("header", {},
      make("h2", {textContent: mount.tenant || mount.mountpoint}),
      make("p", {className: "place", textContent: mount.tenant ? mount.mountpoint : "no tenant"}),
      make("p", {className: "state"}, shape, make("span", {textContent: word}), since)),
    facts(mount));
  article.dataset.mountpoint = mount.mountpoint;
  if (mount.events.length) {
    const line = ([time, event]) => make("li", {}, make("time", {dateTime: time, textContent: time.replace("T", " ").replace("Z", "")}), make("span", {textContent: event}));
    const events = make("details", {open: opened.has(mount.mountpoint)},
      make("summary", {textContent: `Last events: ${mount.events[0][1]}`}), make("ol", {}, ...mount.events.map(line)));
    article.append(events);
  }
  return article;
}

function show(data) {
  const order = {bad: 0, warn: 1, calm: 2, good: 3};
  const mounts = data.mounts.sort((one, other) => order[tone(one)] - order[tone(other)]);
  const opened = new Set([...document.querySelectorAll("details[open]")].map(open => open.closest("article").dataset.mountpoint));
  document.getElementById("host").textContent = data.host;
  const good = mounts.filter(mount => tone(mount) === "good").length;
  const parts = [mounts.length === 1 ? "1 mount" : `${mounts.length} mounts`, good === mounts.length ? "all is well" : `${mounts.length - good} to look at`];
  if (data.silent) parts.push(data.silent === 1 ? "1 does not answer" : `${data.silent} do not answer`);
  document.getElementById("summary").textContent = mounts.length || data.silent ? parts.join(" · ") : "nothing is mounted";
  document.title = good === mounts.length && !data.silent ? "kmsfs" : `(${mounts.length - good + data.silent}) kmsfs`;
  document.getElementById("mounts").replaceChildren(...mounts.map(mount => card(mount, opened)));
}

let shown = 0;
async function refresh() {
  const age = document.getElementById("age");
  try {
    const answer = await fetch("status.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    shown = Date.now();
    age.className = "";
    age.textContent = `As of ${new Date(shown).toLocaleTimeString()}. Nothing can be changed here.`;
  } catch (error) {
    age.className = "stale";
    age.textContent = `kmsfs serve-status does not answer${shown ? `; this is of ${new Date(shown).toLocaleTimeString()}` : ""}: ${error.message}`;
  }
  setTimeout(refresh, EVERY_MS);
}
refresh();
