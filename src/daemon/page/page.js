"use strict";
// Everything that comes from elsewhere (names, errors, events) goes in by textContent or an attribute, never as markup.

const EVERY_MS = 5000;
const PATIENCE_MS = 20000;
const MANY = 8;
const SVG = "http://www.w3.org/2000/svg";
const ORDER = ["bad", "attention", "calm", "good"];
// A state is told by a word and a shape, never by colour alone.
const SHAPES = {
  good: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Z",
  attention: "M8 1 .8 14.5h14.4ZM7.2 6h1.6v4.5H7.2Zm0 5.6h1.6v1.5H7.2Z",
  bad: "M4.6 1h6.8L15 4.6v6.8L11.4 15H4.6L1 11.4V4.6Zm.5 3L4 5.1 6.9 8 4 10.9 5.1 12 8 9.1l2.9 2.9 1.1-1.1L9.1 8 12 5.1 10.9 4 8 6.9Z",
  calm: "M4 7V5a4 4 0 0 1 8 0v2h1v8H3V7Zm1.8 0h4.4V5a2.2 2.2 0 0 0-4.4 0Z",
};
const byId = id => document.getElementById(id);

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

function shape(tone) {
  return draw("svg", {class: "shape", viewBox: "0 0 16 16", "aria-hidden": "true"},
    draw("path", {d: SHAPES[tone], fill: "currentColor", "fill-rule": "evenodd"}));
}

function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [unit, size] = units[at];
  const whole = Math.floor(seconds / size);
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds - whole * size) / next[1]) : 0;
  return rest ? `${whole} ${unit} ${rest} ${next[0]}` : `${whole} ${unit}`;
}

function latency(us) {
  return us >= 1e6 ? `${(us / 1e6).toFixed(1)} s` : us >= 1e3 ? `${(us / 1e3).toFixed(us < 1e4 ? 1 : 0)} ms` : `${us} µs`;
}

const nameOf = mount => mount.tenant || mount.mountpoint;
const answers = mount => mount.kek !== undefined;

/** What has to be looked at, in words. */
function problems(mount) {
  const found = [];
  if (mount.state === "dead") found.push("Its process is gone, and the mount is still there: whoever uses it gets errors.");
  if (mount.state === "silent") found.push("Its process does not answer.");
  if (mount.last_error) found.push(mount.last_error);
  if (mount.damaged) found.push(`${mount.damaged} damaged chunks or files were found.`);
  if (mount.uncommitted_at_lock) found.push(`The last changes of ${mount.uncommitted_at_lock} files could not be stored before a lock.`);
  const guard = mount.rollback_guard;
  if (guard && guard.suspect) found.push("A rollback was seen.");
  if (guard && guard.error) found.push(`The rollback guard cannot be written: ${guard.error}`);
  if (mount.audit && mount.audit.error) found.push(`The audit log cannot be written: ${mount.audit.error}`);
  return found;
}

function sparkline(values) {
  const [width, height] = [100, 20];
  const most = Math.max(...values, 1);
  const step = width / Math.max(values.length - 1, 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(height - 1 - value / most * (height - 2)).toFixed(1)}`);
  if (points.length === 1) points.push(`${width},${points[0].split(",")[1]}`);
  const label = `the last ${values.length} calls took up to ${latency(most)}`;
  return draw("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label},
    draw("polyline", {points: points.join(" ")}));
}

function cell(label, ...content) {
  return make("span", {}, make("small", {className: "label", textContent: label}), ...content);
}

function lease(mount) {
  if (mount.state === "locked") return cell("Lease", make("span", {textContent: "ended"}));
  const whole = mount.revalidate_s + mount.offline_grace_s;
  const part = whole > 0 ? Math.min(mount.lease_remaining_s / whole, 1) : 0;
  const filled = make("i", {});
  filled.style.width = `${(100 * part).toFixed(1)}%`;
  return cell("Lease", make("span", {className: "number", textContent: `${duration(mount.lease_remaining_s)} left`}),
    make("span", {className: part < .5 ? "bar low" : "bar"}, filled));
}

function key(mount) {
  const parts = mount.kek.split(/[/#:]+/).filter(Boolean);
  const version = parts.length > 1 ? parts.pop() : "";
  return cell("Key", make("span", {className: "clip", title: mount.kek}, make("span", {textContent: parts.pop() || "none"}),
    make("small", {className: "clip", textContent: version})));
}

function calls(mount) {
  const values = mount.recent_latencies_us || [];
  if (!values.length) return cell("KMS latency", make("span", {textContent: "no call yet"}));
  return cell("KMS latency", make("span", {className: "spark number"}, sparkline(values),
    make("span", {textContent: latency(values[values.length - 1])})));
}

function cache(mount) {
  const {hits, misses} = mount.kms;
  const text = hits + misses ? `${Math.floor(100 * hits / (hits + misses))} %` : "–";
  return cell("Cache", make("span", {className: "number", textContent: text, title: `${hits} hits, ${misses} misses`}));
}

function head(mount) {
  const word = mount.reason ? `${mount.state} (${mount.reason})` : mount.state;
  const since = answers(mount) ? [make("small", {className: "number", textContent: `for ${duration(mount.since_s)}`})] : [];
  const who = make("span", {className: "who"}, make("span", {className: "name clip", textContent: nameOf(mount), title: nameOf(mount)}),
    ...(mount.tenant ? [make("small", {className: "path", textContent: mount.mountpoint, title: mount.mountpoint})] : []));
  who.firstChild.style.display = "block";
  const columns = [
    make("span", {className: "state"}, shape(mount.tone), make("span", {}, make("span", {className: "word", textContent: word}), ...since)),
    who,
  ];
  if (answers(mount)) columns.push(lease(mount), key(mount), calls(mount), cache(mount));
  return [...columns, ...problems(mount).map(text => make("p", {className: "problem", textContent: text}))];
}

function facts(mount) {
  const {kms} = mount;
  const rows = [["Mounted at", mount.mountpoint], ["Volume", `${mount.volume} (${mount.volume_id})`], ["Process", mount.pid], ["Key", mount.kek],
    ["Granted", `${duration(mount.last_granted_s)} ago`],
    ["KMS", `${kms.calls} calls, half of them below ${latency(kms.latency_p50_us)}, 99 % below ${latency(kms.latency_p99_us)}`],
    ["Cache", `${kms.hits} hits, ${kms.misses} misses, ${kms.held} held`],
    ["In use", `${mount.open_files} open files, ${mount.inodes} known inodes`]];
  for (const [name, value] of Object.entries(mount.labels || {})) rows.push([name, value]);
  const list = rows.flatMap(([name, value]) => [make("dt", {textContent: name}), make("dd", {textContent: value})]);
  return make("section", {}, make("h2", {textContent: "Now"}), make("dl", {}, ...list));
}

function history(mount) {
  const line = event => {
    const time = make("time", {dateTime: event.time, textContent: event.time.replace("T", " ").replace(/\.\d+Z$/, "")});
    const times = event.times > 1 ? ` ×${event.times}` : "";
    return make("li", {}, time, make("span", {textContent: `${event.event}${times}${event.text ? `: ${event.text}` : ""}`}));
  };
  const events = mount.events || [];
  const content = events.length ? make("ol", {}, ...events.map(line)) : make("p", {textContent: "Nothing yet."});
  return make("section", {}, make("h2", {textContent: "Last audit events (UTC)"}), content);
}

const rows = new Map();

/** The row of a mount; it stays the same element, so that what is open or has the focus stays so. */
function row(mount) {
  let element = rows.get(mount.mountpoint);
  if (!element) {
    element = make("details", {}, make("summary", {}), make("div", {className: "more"}));
    rows.set(mount.mountpoint, element);
  }
  const [summary, more] = element.children;
  element.className = mount.tone;
  element.dataset.text = [nameOf(mount), mount.mountpoint, mount.state, mount.reason || "", mount.kek || ""].join(" ").toLowerCase();
  summary.replaceChildren(...head(mount));
  more.replaceChildren(...(answers(mount) ? [facts(mount), history(mount)] : []));
  return element;
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  for (const element of rows.values()) {
    element.hidden = !words.every(word => element.dataset.text.includes(word));
    left += element.hidden ? 0 : 1;
  }
  const nothing = byId("nothing");
  nothing.hidden = left > 0;
  nothing.textContent = rows.size ? "No mount is like that." : "Nothing is mounted.";
  byId("mounts").hidden = !left;
}

function show(data) {
  const mounts = data.mounts;
  mounts.sort((one, other) => ORDER.indexOf(one.tone) - ORDER.indexOf(other.tone) || nameOf(one).localeCompare(nameOf(other)));
  byId("host").textContent = data.host;
  const counts = new Map();
  for (const mount of mounts) {
    const word = mount.reason ? `${mount.state} (${mount.reason})` : mount.state;
    const name = `${mount.tone} ${word}`;
    counts.set(name, {tone: mount.tone, word, count: (counts.get(name) || {count: 0}).count + 1});
  }
  byId("counts").replaceChildren(...[...counts.values()].map(({tone, word, count}) =>
    make("li", {className: tone}, shape(tone), make("span", {textContent: `${count} ${word}`}))));
  const look = mounts.filter(mount => mount.tone === "bad" || mount.tone === "attention").length;
  document.title = look ? `(${look}) kmsfs ${data.host}` : `kmsfs ${data.host}`;
  const there = new Set(mounts.map(mount => mount.mountpoint));
  for (const [mountpoint, element] of rows) {
    if (!there.has(mountpoint)) {
      element.remove();
      rows.delete(mountpoint);
    }
  }
  const wanted = mounts.map(row);
  const list = byId("mounts");
  // Only what moved is moved.
  wanted.forEach((element, at) => list.children[at] === element || list.insertBefore(element, list.children[at] || null));
  byId("names").hidden = !mounts.length;
  byId("filter").hidden = mounts.length < MANY;
  filter();
}

let shown = "";
async function refresh() {
  const banner = byId("banner");
  try {
    const answer = await fetch("status.json", {signal: AbortSignal.timeout(PATIENCE_MS)});
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const data = await answer.json();
    show(data);
    shown = new Date().toLocaleTimeString();
    banner.hidden = true;
    document.body.className = "";
    byId("age").textContent = `As of ${shown}, every ${EVERY_MS / 1000} s. kmsfs ${data.version}. Nothing can be changed here.`;
  } catch (error) {
    banner.textContent = `The server does not answer (${error.message}). ${shown ? `What is shown is of ${shown}.` : "There is nothing to show yet."}`;
    banner.hidden = false;
    document.body.className = "stale";
    byId("age").textContent = "Is kmsfs serve-status running? It is asked again every few seconds.";
  }
  setTimeout(refresh, EVERY_MS);
}
byId("filter").addEventListener("input", filter);
refresh();
