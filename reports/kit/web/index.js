// All runs of a store: only the first of those that fit are in the page, so that ten thousand sort and filter at once.
const SHOWN_AT_ONCE = 200;
const runs = DATA.runs, total = runs.count;
const NAMES = Object.keys(runs.columns);
let visible = [...DATA.shown], order = [...Array(total).keys()], sorted = null, found = order, limit = SHOWN_AT_ONCE;

const table = document.getElementById("table"), shownText = document.getElementById("shown");
const titleOf = name => DATA.titles[name] ?? name;

// What free words are looked for in, made at the first of them.
let words = null;
function haystacks() {
  const parts = NAMES.filter(name => !("all" in runs.columns[name])).map(name => {
    const column = runs.columns[name], lower = value => value === null ? "" : String(value).toLowerCase();
    if ("each" in column) return i => lower(column.each[i]);
    const of = column.of.map(lower);
    return i => of[column.at[i]];
  });
  const shared = NAMES.filter(name => "all" in runs.columns[name]).map(name => String(runs.columns[name].all ?? "").toLowerCase()).join(" ");
  return Array.from({length: total}, (_, i) => `${parts.map(part => part(i)).join(" ")} ${shared}`);
}

// "lr" is "train.lr": the name itself, or what alone ends in it.
function columnNamed(key) {
  if (key in runs.columns) return key;
  const ends = NAMES.filter(name => name.endsWith(`.${key}`));
  return ends[0] ?? NAMES.find(name => titleOf(name).toLowerCase() === key) ?? null;
}

function condition(word) {
  const parts = /^([\w.-]+)(!=|<=|>=|=|<|>)(.*)$/.exec(word), name = parts && columnNamed(parts[1]);
  if (!parts || name === null) {
    const text = word.toLowerCase();
    words ??= haystacks();
    return i => words[i].includes(text);
  }
  const [, , sign, asked] = parts, limitTo = Number(asked);
  const equal = (value, wanted) => typeof value === "number" && wanted !== "" ? value === Number(wanted)
    : String(value ?? "").toLowerCase() === wanted;
  const values = asked.toLowerCase().split(",");
  const fits = {
    "=": value => values.some(wanted => equal(value, wanted)) || equal(value, asked.toLowerCase()),
    "!=": value => !values.some(wanted => equal(value, wanted)),
    "<": value => typeof value === "number" && value < limitTo, "<=": value => typeof value === "number" && value <= limitTo,
    ">": value => typeof value === "number" && value > limitTo, ">=": value => typeof value === "number" && value >= limitTo,
  }[sign];
  // One answer a value, not one a run.
  const column = runs.columns[name];
  if ("of" in column) {
    const answers = column.of.map(fits);
    return i => answers[column.at[i]];
  }
  return i => fits(valueOf(name, i));
}

function filterRuns() {
  const conditions = filter.value.split(/\s+/).filter(Boolean).map(condition);
  found = conditions.length ? order.filter(i => conditions.every(fits => fits(i))) : order;
  limit = SHOWN_AT_ONCE;
  fill();
}

function sortRuns(name) {
  const descending = sorted !== null && sorted.name === name && !sorted.descending;
  sorted = {name, descending};
  const keys = order.map((_, i) => valueOf(name, i)), collator = new Intl.Collator("en", {numeric: true});
  const rank = value => typeof value === "number" ? 0 : value === null || value === "" ? 2 : 1;
  order.sort((a, b) => {
    const x = keys[a], y = keys[b], by = rank(x) - rank(y);
    if (by) return by;
    const way = rank(x) === 0 ? x - y : collator.compare(x ?? "", y ?? "");
    return (descending ? -way : way) || a - b;
  });
  filterRuns();
}

const numeric = new Map();
function isNumeric(name) {
  if (!numeric.has(name)) {
    const column = runs.columns[name], values = "all" in column ? [column.all] : column.of ?? column.each;
    numeric.set(name, values.some(value => typeof value === "number"));
  }
  return numeric.get(name);
}

function cell(name, i) {
  const value = valueOf(name, i), text = name === "status" ? statusOf(i) : value === null ? "" : number(value);
  return element("td", {class: isNumeric(name) ? "number" : null, title: text.length > 40 ? text : null}, text);
}

function fill() {
  table.tHead.replaceChildren(element("tr", {}, ...visible.map(name => element("th", {scope: "col", class: isNumeric(name) ? "number" : null,
    "aria-sort": sorted?.name === name ? (sorted.descending ? "descending" : "ascending") : null},
    element("button", {type: "button", title: name, click: () => sortRuns(name)}, titleOf(name))))));
  const rows = found.slice(0, limit).map(i => {
    const [first, ...rest] = visible.map(name => cell(name, i));
    first.replaceChildren(element("button", {type: "button", click: () => openRun(i)}, first.textContent));
    return element("tr", {"data-run": i}, first, ...rest);
  });
  table.tBodies[0].replaceChildren(...rows);
  const left = found.length - rows.length;
  shownText.replaceChildren(`${found.length.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} runs`);
  if (left > 0) {
    shownText.append(`, the first ${rows.length} shown. `, element("button", {type: "button", class: "quiet", click: () => {
      limit += SHOWN_AT_ONCE;
      fill();
    }}, "Show more"));
  }
}

const filter = element("input", {type: "search", placeholder: "model=gla lr<1e-3 words", "aria-label": "Filter runs", input: filterRuns});
const menu = element("details", {class: "menu", toggle: () => {
  if (!menu.open || menu.lastElementChild.childElementCount) return;
  menu.lastElementChild.append(...NAMES.map(name => element("label", {},
    element("input", {type: "checkbox", checked: visible.includes(name), change: event => {
      visible = event.target.checked ? [...visible, name] : visible.filter(each => each !== name);
      fill();
    }}), " ", titleOf(name))));
}}, element("summary", {}, "Columns"), element("div", {}));
const save = element("button", {type: "button", class: "quiet", click: () => download("runs",
  [visible, ...found.map(i => visible.map(name => valueOf(name, i)))])}, "Download CSV");
document.getElementById("tools").append(filter, menu, save);
addEventListener("click", event => { if (menu.open && !menu.contains(event.target)) menu.open = false; });
table.addEventListener("click", event => {
  const row = event.target.closest("tr[data-run]");
  if (row && !event.target.closest("button")) openRun(Number(row.dataset.run));
});
fill();
followAddress();
