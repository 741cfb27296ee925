"use strict";
// What all pages share: their data, the theme, a file to download, and the dialog that shows a run.
const DATA = JSON.parse(document.getElementById("data").textContent);

// An element; text is always text, whatever a store says.
function element(name, attributes = {}, ...children) {
  const svg = ["svg", "circle", "polyline", "path", "text"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

function number(value) {
  if (typeof value !== "number") return value === null ? "–" : String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e4 ? String(value) : value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e7 ? value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e")
    : String(Number(value.toPrecision(Math.max(4, Math.ceil(Math.log10(size)) + 2))));
}

// The value of a column for run i: see `encoded` of the builder.
function valueOf(name, i) {
  const column = DATA.runs.columns[name];
  if (column === undefined) return null;
  return "all" in column ? column.all : "each" in column ? column.each[i] : column.of[column.at[i]];
}

function download(name, rows) {
  // A spreadsheet would compute text that begins like a formula: an apostrophe keeps it text.
  const safe = text => /^[=+\-@\t\r]/.test(text) && !/^[+-]?[\d.]+(e[+-]?\d+)?$/i.test(text) ? `'${text}` : text;
  const quoted = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const csv = rows.map(row => row.map(cell => quoted(safe(String(cell ?? "")))).join(",") + "\n").join("");
  const url = URL.createObjectURL(new Blob(["\ufeff", csv], {type: "text/csv"}));
  element("a", {href: url, download: `${name}.csv`}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1e4);
}

// A colour of a figure on dark paper: greys are turned round, the dark of others are lit, and each keeps its hue.
function onDark(hex) {
  const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255);
  const high = Math.max(r, g, b), low = Math.min(r, g, b), light = (high + low) / 2;
  // A grid stays behind what is drawn on it.
  const grey = light > 0.87 ? 0.09 + 0.8 * (1 - light) : 0.89 - 0.5 * light;
  const wanted = high - low < 0.08 ? grey : Math.max(light, 0.5 + 0.3 * light);
  const lift = c => wanted >= light ? 1 - (1 - c) * (1 - wanted) / (1 - light || 1) : c * wanted / light;
  return "#" + [r, g, b].map(c => Math.round(255 * lift(c)).toString(16).padStart(2, "0")).join("");
}

function drawFor(image, dark) {
  image.dataset.light ??= image.src;
  if (dark && !image.dataset.dark) {
    const head = "data:image/svg+xml;base64,", text = atob(image.dataset.light.slice(head.length));
    // What has no colour of its own is black.
    const lit = text.replace(/#[0-9a-f]{6}\b/gi, onDark).replace("<svg ", `<svg fill="${onDark("#000000")}" `);
    image.dataset.dark = head + btoa(lit);
  }
  image.src = dark ? image.dataset.dark : image.dataset.light;
}

// A page opened from a file may have no storage.
function remembered(theme) {
  try {
    if (theme !== undefined) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch { return null; }
}

const root = document.documentElement;
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
{
  const known = remembered();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  const button = element("button", {type: "button", id: "theme", class: "quiet", click: () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    say();
  }});
  const say = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    for (const image of document.querySelectorAll(".plot img")) drawFor(image, isDark());
  };
  say();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
  addEventListener("beforeprint", () => document.querySelectorAll(".plot img").forEach(image => drawFor(image, false)));
  addEventListener("afterprint", say);
  document.querySelector("header").append(button);
  const contents = document.querySelector(".contents");
  if (contents && matchMedia("(max-width: 40rem)").matches) contents.open = false;
}

const dialog = document.getElementById("dialog"), dialogBody = document.getElementById("dialog-body");

function runNumber(id) {
  const column = DATA.runs.columns.run_id;
  return "all" in column ? (column.all === id ? 0 : -1) : column.each.indexOf(id);
}

const labelOf = i => valueOf("arm", i) ?? valueOf("model_label", i) ?? valueOf("model", i) ?? "run";
const statusOf = i => String(valueOf("status", i) ?? "").replaceAll("_", " ");

function address(hash) {
  try { history.replaceState(null, "", hash || location.href.split("#")[0]); } catch { /* An address is no need. */ }
}

function show(title, ...parts) {
  document.getElementById("dialog-title").textContent = title;
  dialogBody.replaceChildren(...parts.flat().filter(part => part !== null));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

// One run is shown whole; several are a list of which each opens.
function openRuns(numbers) {
  if (numbers.length === 1) openRun(numbers[0]);
  else if (numbers.length > 1) {
    address("");
    show(`${numbers.length} runs`, runList(numbers));
  }
}

function runList(numbers) {
  const differs = name => new Set(numbers.map(i => valueOf(name, i))).size > 1;
  const columns = ["seed", ...DATA.runs.varying, "task"].filter(differs);
  const scores = scoreColumns(numbers);
  const header = ["run", ...columns.map(name => name.split(".").at(-1)), "status", ...scores.map(score => score.title)];
  const rows = numbers.map(i => element("tr", {},
    element("td", {}, element("button", {type: "button", click: () => openRun(i, numbers)}, labelOf(i))),
    ...columns.map(name => element("td", {class: "number"}, number(valueOf(name, i)))),
    element("td", {}, statusOf(i)),
    ...scores.map(score => element("td", {class: "number"}, number(score.of(i))))));
  return element("div", {class: "scroll"}, element("table", {},
    element("thead", {}, element("tr", {}, ...header.map(name => element("th", {scope: "col"}, element("button", {tabindex: -1}, name))))),
    element("tbody", {}, ...rows)));
}

// The scores that come first in most of the runs.
function scoreColumns(numbers) {
  const found = new Map(), {kinds, of} = DATA.runs.scores;
  for (const i of numbers) for (const [kind] of (of[i] ?? []).slice(0, 4)) found.set(kind, (found.get(kind) ?? 0) + 1);
  const common = [...found].filter(([, count]) => 2 * count >= numbers.length).slice(0, 4);
  return common.map(([kind]) => ({
    title: kinds[kind].slice(0, 1).concat(kinds[kind][3] || kinds[kind][2]).join(", "),
    of: i => (of[i] ?? []).find(score => score[0] === kind)?.[1] ?? null}));
}

function pairs(entries) {
  return element("dl", {class: "pairs"}, ...entries.map(([name, value, varies]) => element("div", {class: varies ? "varies" : null},
    element("dt", {}, name), element("dd", {}, number(value)))));
}

function openRun(i, others = null) {
  const {groups, varying, columns} = DATA.runs, id = valueOf("run_id", i);
  const told = names => names.filter(name => valueOf(name, i) !== null).map(name => [name, valueOf(name, i), varying.includes(name)]);
  const settings = told(groups.settings), mine = settings.filter(entry => entry[2]);
  const typed = valueOf("command", i), reason = valueOf("reason", i);
  const back = others && element("p", {}, element("button", {type: "button", class: "quiet", click: () => openRuns(others)},
    `‹ all ${others.length}`));
  address(`#run=${encodeURIComponent(id)}`);
  show(labelOf(i), back,
    element("p", {class: "note"}, `run ${id} · ${statusOf(i)}${"seed" in columns ? ` · seed ${valueOf("seed", i)}` : ""}`),
    reason ? element("p", {class: "nothing"}, reason) : null,
    mine.length ? [element("h3", {}, "What varies"), pairs(mine)] : [],
    scoresOf(i), curveOf(i), commandOf(typed),
    folded("Settings", pairs([...mine, ...settings.filter(entry => !entry[2])])),
    folded("Facts", pairs(told(groups.facts))),
    folded("Environment", pairs(told(groups.environment))));
}

const folded = (title, body) => element("details", {}, element("summary", {}, title), body);

function scoresOf(i) {
  const {kinds, of} = DATA.runs.scores;
  const rows = (of[i] ?? []).map(([kind, value]) => {
    const [metric, stage, split, slice] = kinds[kind];
    const place = [stage === split ? null : stage, split].filter(Boolean).join(", ");
    return element("tr", {}, ...[metric, number(value), place, slice].map((text, k) =>
      element("td", {class: k === 1 ? "number" : null}, text)));
  });
  if (!rows.length) return [];
  return [element("h3", {}, "Scores"), element("div", {class: "scroll"}, element("table", {}, element("tbody", {}, ...rows)))];
}

function commandOf(typed) {
  const command = typed ?? DATA.command ?? null;
  if (command === null) return [];
  const copy = element("button", {type: "button", class: "quiet", click: async () => {
    try { await navigator.clipboard.writeText(command); copy.textContent = "Copied"; } catch { copy.textContent = "Not permitted"; }
  }}, "Copy");
  const says = typed ? "What was typed for it, with others where it lists several values" : "What makes all runs of this report";
  return [element("h3", {}, "Command"), element("pre", {}, command), element("p", {class: "note"}, `${says}. `, copy)];
}

function curveOf(i) {
  const curve = DATA.runs.curves?.[i];
  if (!curve) return [];
  const [tokens, losses] = curve, width = 520, height = 170, left = 46, right = 8, top = 10, bottom = 30;
  // The first fall would press the rest together.
  const late = losses.slice(Math.floor(losses.length / 10)), high = Math.max(...late), low = Math.min(...losses), last = tokens.at(-1);
  const x = t => left + (width - left - right) * (t - tokens[0]) / (last - tokens[0] || 1);
  const y = loss => top + (height - top - bottom) * (high - Math.min(loss, high)) / (high - low || 1);
  const line = tokens.map((t, k) => `${x(t).toFixed(1)},${y(losses[k]).toFixed(1)}`).join(" ");
  const label = (text, at) => element("text", at, text);
  return [element("h3", {}, "Training loss"), element("svg", {class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Training loss, ${number(losses.at(-1))} at the end`},
    element("path", {d: `M${left} ${top}V${height - bottom}H${width - right}`}),
    label(number(Number(high.toPrecision(4))), {x: left - 6, y: top + 8, "text-anchor": "end"}),
    label(number(Number(low.toPrecision(4))), {x: left - 6, y: height - bottom, "text-anchor": "end"}),
    label(number(tokens[0]), {x: left, y: height - 14}), label(`${number(last)} tokens`, {x: width - right, y: height - 14, "text-anchor": "end"}),
    element("polyline", {points: line}))];
}

function followAddress() {
  const found = /^#run=(.+)$/.exec(location.hash);
  if (!found) return;
  let id = found[1];
  try { id = decodeURIComponent(id); } catch { /* It is looked for as it stands. */ }
  const i = runNumber(id);
  if (i >= 0) openRun(i);
}

document.getElementById("dialog-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => address(""));
addEventListener("hashchange", followAddress);
